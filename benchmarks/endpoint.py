"""A served teacher that answers after 50 ms, and potstill's engine asking it, on one core.

The server is a process of its own, on another core where there is one. It answers every request alike, so that
what is measured is the asking.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocol import resident

DELAY = 0.05  # seconds until a request is answered
WORKERS = 64
MOST_FILES = 256  # that the asking process may open
REPLY = {
    "object": "chat.completion",
    "model": "big-2026-01-01",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "A text of some sixty words. " * 10},
        }
    ],
    "usage": {"prompt_tokens": 40, "completion_tokens": 80, "total_tokens": 120},
}


class Answering(asyncio.Protocol):
    """One connection, kept alive; a request is whole once its body is there."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._read = transport, b""
        body = json.dumps(REPLY).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._answer = head.encode() + body

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, rest = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(rest) >= int(fields[b"content-length"]):
            self._read = b""
            asyncio.get_running_loop().call_later(DELAY, self._transport.write, self._answer)


async def serve() -> None:
    """Answer on a free port of loopback, and print the port."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server, which has the other cores; this process has one."""
    cores = sorted(os.sched_getaffinity(0))
    server = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    try:
        os.sched_setaffinity(server.pid, set(cores[1:] or cores))
        os.sched_setaffinity(0, cores[:1])
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    finally:
        server.kill()
        server.communicate()
        os.sched_setaffinity(0, cores)


def request(url: str, place: Path, count: int, **changes: Any) -> Any:
    """A request for so many prompts."""
    from potstill.generate.price import Price
    from potstill.generate.sampling import Sampling
    from potstill.generate.served import Asked, TextRequest
    from potstill.teachers.served import ServedTeacher

    words = "Explain in a few sentences what a still does with a mash that has fermented, and why. "
    prompts = [Asked(({"role": "user", "content": f"{words * 2}({i})"},), 40, (0,)) for i in range(count)]
    teacher = ServedTeacher(endpoint=url, model="big", price=Price(0.0, 0.0))
    return TextRequest(
        teacher, prompts, Sampling(128, 0.7), 0, WORKERS, place / "answers.sqlite", "benchmark", **changes
    )


def api(count: int) -> dict[str, Any]:
    """Ask for so many answers through the whole engine: answers a second, memory and open files."""
    from potstill.generate import openai

    sizes: list[int] = []
    files: list[int] = []

    def look(_: Any) -> None:
        sizes.append(resident())
        files.append(len(os.listdir("/proc/self/fd")))

    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))
    with serving() as url, tempfile.TemporaryDirectory() as place:
        made = request(url, Path(place), count, on_progress=look)
        began, cpu = time.perf_counter(), time.process_time()
        usable = sum(not given.reason for given in openai.write(made))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert usable == count
    return {
        "responses_per_second": round(count / seconds, 1),
        "cpu_ms_per_response": round(1000 * cpu / count, 3),
        "memory_growth_mb": round((sizes[-1] - sizes[len(sizes) // 4]) / 1e6, 1),
        "open_files": max(files),
    }


class NoJournal:
    """Writes nothing down."""

    def intend(self, intent: Any, now: float) -> int:
        return 0

    def keep(self, number: int, reply: bytes, **values: Any) -> None:
        return None

    def settle(self, number: int, state: str, **values: Any) -> None:
        return None


def campaign(count: int, journalled: bool) -> dict[str, Any]:
    """Send so many requests, with everything written down or nothing: CPU and wall seconds."""
    from potstill.generate.asks import asks_of
    from potstill.generate.campaign import Campaign
    from potstill.generate.entries import Spent
    from potstill.generate.journal import Journal
    from potstill.generate.pace import Breaker, Pace
    from potstill.generate.price import Budget, Most
    from potstill.generate.wire import Wire

    with serving() as url, tempfile.TemporaryDirectory() as place:
        made = request(url, Path(place), count)
        journal: Any = Journal(made.journal) if journalled else NoJournal()
        wire = Wire(url, "chat", ("",), {}, 60.0, made.clock)
        dice = random.Random(0)
        sending = Campaign(
            journal=journal,
            wire=wire,
            pace=Pace(WORKERS, None, None, 60.0, made.clock, dice),
            budget=Budget(Most(), Spent()),
            breaker=Breaker(),
            teacher=made.teacher,
            payer=made.payer,
            workers=WORKERS,
            attempts=1,
            timeout=60.0,
            clock=made.clock,
            dice=dice,
            say=lambda text: None,
        )
        asks = asks_of(made)
        sending.run(asks[:WORKERS], lambda: None, lambda: False)  # connections are open, libraries imported
        began, cpu, writing = time.perf_counter(), time.process_time(), own_time(journal)
        sending.run(asks[WORKERS:], lambda: None, lambda: False)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        writing = own_time(journal) - writing
        assert sending.answered == count
        if journalled:
            journal.close()
        wire.close()
    sent = count - WORKERS
    return {
        "ms_per_response": round(1000 * seconds / sent, 3),
        "cpu_ms_per_response": round(1000 * cpu / sent, 3),
        "writing_ms_per_response": round(1000 * writing / sent, 3),
    }


def own_time(journal: Any) -> float:
    """CPU seconds of the journal's own thread: its statements and commits, without the workers' waiting."""
    if isinstance(journal, NoJournal):
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(journal._thread.ident))


if __name__ == "__main__":
    asyncio.run(serve())
