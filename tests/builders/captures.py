"""Captures without a recipe: rows that are handed over, a teacher in memory, and processes that are forked."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from builders.jobs import Memory, context
from builders.tiny import tiny_model
from potstill.devices import jobs, ranks
from potstill.stages import _capture
from potstill.stages._context import State
from potstill.stages._later import Needs
from potstill.stages._plan import drawn_order, each_once
from potstill.stages.capture import Capture
from potstill.store.artifacts import Artifact
from potstill.teachers.cached import CachedTeacher
from potstill.types import Example


def rows(count: int = 24, seed: int = 0) -> list[Example]:
    """Rows of 5 to 16 tokens, of which the last half is scored."""
    dice = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = 5 + index % 12
        ids = torch.randint(4, 128, (length,), generator=dice).tolist()
        made.append(Example(f"r{index}", tuple(ids), tuple(i >= length // 2 for i in range(length))))
    return made


def teacher(seed: int = 1, **how: Any) -> Memory:
    return Memory(tiny_model(seed=seed, **how))


def job(
    folder: Path,
    examples: Sequence[Example],
    source: Any = None,
    stop: Callable[[], int] = lambda: 0,
    kinds: tuple[str, ...] = ("hidden",),
    **options: Any,
) -> _capture.Job:
    """A capture of these rows in a store below `folder`; small batches and files, so that there are many of them."""
    small = {"batch_tokens": 32, "shard_bytes": 2048, "signal": "hidden", "max_kl_nats": 1e-5}
    where = context(folder, source or teacher(), stop)
    spec = Capture().model_copy(update=small | options)
    ordered = tuple(drawn_order(each_once(examples), 0))
    return _capture.Job(spec, State(), where, ordered, (), Needs(kinds, (1.0,)))


def captured(folder: Path, examples: Sequence[Example], source: Any = None, **how: Any) -> Artifact:
    return _capture.made(job(folder, examples, source, **how))


def reading(artifact: Artifact, source: Any = None) -> CachedTeacher:
    """The teacher that a capture left."""
    reader = context(artifact.path.parent, source or teacher()).setup.readers.teacher_reader
    return CachedTeacher(artifact.path, reader, torch.device("cpu"))


def hashes(folder: Path) -> dict[str, str]:
    """What a capture's folder holds, but for the manifest, which knows how long it took."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json")
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files}


def forked(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Do work in a process of its own, killed after so many seconds; returns how it ended, as `waitpid` says."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def together(folder: Path, world: int, work: Callable[[], None]) -> None:
    """Do work in so many processes that know each other."""
    folder.mkdir(parents=True, exist_ok=True)

    def member(rank: int) -> Callable[[], None]:
        def joined() -> None:
            os.environ |= {jobs.LAUNCHED: str(folder), "RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ["LOCAL_RANK"] = str(rank)
            with ranks.joined(world):
                work()

        return joined

    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                member(rank)()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world


def changed(example: Example, **changes: Any) -> Example:
    return replace(example, **changes)
