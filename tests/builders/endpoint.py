"""A server of the OpenAI protocol on loopback that plays a script, and clocks that tests turn."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from potstill.generate.served import Clock


@dataclass(frozen=True)
class Act:
    """What the server does with a request: `how` is reply, drip, hang up, reset within the body, "drip, reset" (half
    of the body byte by byte, then a reset), or stall within it until `Endpoint.gone` is set."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    how: str = "reply"


def answer(text: Any = "fine", finish: Any = "stop", **changes: Any) -> Act:
    """A reply of chat completions; `usage`, `model` and keys of the message may be changed."""
    usage = changes.pop("usage", {"prompt_tokens": 10, "completion_tokens": 5})
    model = changes.pop("model", "big-2026-01-01")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **changes},
        "finish_reason": finish,
    }
    value = {"object": "chat.completion", "model": model, "choices": [choice]}
    return Act(body=json.dumps(value | ({} if usage is None else {"usage": usage})).encode())


def error(status: int, code: str = "", message: str = "no", **headers: str) -> Act:
    """An error as the protocol writes it; headers with underscores for dashes."""
    body = json.dumps({"error": {"message": message, "code": code or None, "type": "x", "param": None}})
    return Act(status, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()})


HANG_UP, RESET, DRIP = Act(how="hang up"), Act(how="reset"), Act(body=b" " * 64, how="drip")
DRIP_AND_RESET = replace(answer("never whole"), how="drip, reset")


@dataclass(frozen=True)
class Sent:
    """A request as the server saw it."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """What the user said last."""
        if "prompt" in self.body:
            return self.body["prompt"]
        return self.body["messages"][-1]["content"]


@dataclass
class Endpoint:
    """An open server. `script(request, times)` decides; `times` counts that prompt's requests so far, from 0."""

    url: str
    script: Callable[[Sent, int], Act]
    sent: list[Sent] = field(default_factory=list)
    prompts: Counter[str] = field(default_factory=Counter)
    flying: int = 0
    most_flying: int = 0
    lock: Any = field(default_factory=threading.Lock)
    gone: threading.Event = field(default_factory=threading.Event)

    def act(self, request: Sent) -> Act:
        with self.lock:
            self.sent.append(request)
            times = self.prompts[request.prompt]
            self.prompts[request.prompt] += 1
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
        try:
            return self.script(request, times)
        finally:
            with self.lock:
                self.flying -= 1


@contextmanager
def serving(
    script: Callable[[Sent, int], Act] | Act | None = None,
    more: Callable[[str, str, Mapping[str, str], bytes], Act] | None = None,
) -> Iterator[Endpoint]:
    """A server on a free port of loopback; without a script it answers everything.

    `more` is given method, path, headers and body of requests for other addresses than answers.
    """
    act = script if callable(script) else lambda request, times: script or answer(f"so {request.prompt}")
    endpoint = Endpoint("", act)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if more is not None and not self.path.endswith("completions"):
                self.play(more("POST", self.path, dict(self.headers), body))
            else:
                self.play(endpoint.act(Sent(self.path, dict(self.headers), json.loads(body))))

        def do_GET(self) -> None:
            self.play(more("GET", self.path, dict(self.headers), b"") if more else Act(404))

        def play(self, act: Act) -> None:
            if act.how != "reply":
                self.close_connection = True
            if act.how == "hang up":
                return
            self.send_response(act.status)
            self.send_header("x-request-id", f"request-{len(endpoint.sent)}")
            for name, value in act.headers.items():
                self.send_header(name, value)
            length = len(act.body) + 1000 if act.how == "reset" else len(act.body)
            self.send_header("content-length", str(length))
            self.end_headers()
            if act.how == "stall":
                self.wfile.write(act.body[:1])
                self.wfile.flush()
                endpoint.gone.wait(60)
            elif act.how == "drip":
                self.drip(act.body)
            elif act.how == "drip, reset":
                self.drip(act.body[: len(act.body) // 2])
                self.reset()
            elif act.how == "reset":
                self.wfile.write(b'{"choices": [')
                self.wfile.flush()
                self.reset()
            else:
                self.wfile.write(act.body)

        def drip(self, body: bytes) -> None:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
            except OSError:
                return  # the client has had enough

        def reset(self) -> None:
            # Zero seconds of lingering: the connection ends with a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # clients that go away are part of the script

    server = Server(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Turned(Clock):
    """A clock whose time passes only where somebody waits, or a test turns it."""

    def __init__(self) -> None:
        self.time = 1_000_000_000.0
        self.waits: list[float] = []
        self._lock = threading.Lock()

    def now(self) -> float:
        return self.time

    def date(self) -> float:
        return self.time

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        with self._lock:
            self.time += seconds
            self.waits.append(seconds)
