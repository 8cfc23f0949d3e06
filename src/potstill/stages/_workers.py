"""A capture by workers of Ray: each has the teacher's weights and writes whole parts of a cache, as this process would.

Plain actors: a part is one task, whose blocks and batches are those of the plan, so that the bytes are the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from potstill.cache.header import Header
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.console import Bar
from potstill.errors import MachineError, RecipeError
from potstill.generate import ray
from potstill.models import loading
from potstill.stages._entries import Entries
from potstill.stages._plan import Block
from potstill.stages._vectors import FrozenHead
from potstill.stages._writing import in_bytes
from potstill.stages.capture import Capture
from potstill.teachers.local import LocalTeacher

if TYPE_CHECKING:
    from potstill.stages._capture import Job

DEFAULTS: dict[str, Any] = {"workers": 2, "cpus": 1.0, "gpus": 0.0, "address": None}


@dataclass(frozen=True)
class Task:
    """A part of a cache: its blocks, and the time of `time.time` after which none is begun."""

    folder: Path
    header: Header
    part: int
    blocks: tuple[Block, ...]
    ends: float | None


class Worker:
    """A process with a teacher's weights that writes parts."""

    def __init__(
        self,
        source: Any,
        dtype: Any,
        device: str,
        vocabulary: int,
        pad_id: int,
        student: FrozenHead | None,
        states: Cache | None,
    ) -> None:
        model = loading.load(source, dtype=dtype, device=device).model
        teacher = LocalTeacher(model, vocabulary=vocabulary, fingerprint="")
        self._entries = Entries(teacher, torch.device(device), pad_id, student, states)

    def write(self, task: Task) -> bool:
        """Write the blocks that are not there; false where the time came first.

        Raises:
            MachineError: this machine does not see the folder, or its disk is full.
        """
        if not task.folder.is_dir():
            raise MachineError(
                f"a worker does not see {task.folder}.", fix="Put runs on a disk that all machines share."
            )
        with Writer(task.folder, task.header, shard_bytes=2**62, part=task.part) as writer:
            if writer.headless:
                writer.keep_head(next(self._entries.of(task.blocks[0], task.header))[1])
            for block in task.blocks:
                if not all(key_of(row.input_ids, row.scored) in writer for row in block.rows):
                    if task.ends is not None and time.time() > task.ends:
                        return False
                    writer.add_block(list(self._entries.of(block, task.header)))
        return True


class Workers:
    """The workers of one capture."""

    def __init__(self, pool: ray.Pool, job: Job) -> None:
        self._pool, self._job = pool, job

    def write(
        self,
        folder: Path,
        header: Header,
        parts: Sequence[tuple[int, tuple[Block, ...]]],
        ends: float | None,
        bar: Bar,
        bytes_per_token: float,
    ) -> bool:
        """Write parts; false where a deadline (of `time.monotonic`) or a signal came first."""
        folder.mkdir(parents=True, exist_ok=True)
        at = None if ends is None else time.time() + ends - time.monotonic()
        tasks = [Task(folder.resolve(), header, part, blocks, at) for part, blocks in parts]
        whole, done, stopped = True, 0, self._job.context.stop_signal
        for number, written in self._pool.each(tasks, lambda: bool(stopped())):
            whole = whole and written
            done += sum(block.count for block in tasks[number].blocks)
            bar.update(done, in_bytes(done * bytes_per_token))
        return whole and not stopped()


def require_workers(spec: Capture, teacher: Any) -> None:
    """Refuse workers that could not work, before anything is loaded.

    Raises:
        RecipeError: the teacher has no weights that a worker could load, or an option cannot be as it is.
        MachineError: ray is not installed.
    """
    if spec.engine.name != "ray":
        return
    path = f"stages.{spec.name}.engine"
    if not hasattr(teacher, "source"):
        raise RecipeError(
            f"cannot be ray: {getattr(teacher, 'name', 'this teacher')} has no weights that a worker could load.",
            path=path,
            fix="Leave it out, or name a teacher with {model: …}.",
        )
    options = DEFAULTS | spec.engine.options
    ray.require_above_zero(f"{path}.ray", workers=options["workers"], cpus=options["cpus"])
    ray.require(teacher, path)


@contextmanager
def workers_of(job: Job) -> Iterator[Workers | None]:
    """The workers that a capture's engine names, until the end of the block; None where this process asks by itself."""
    spec, teacher = job.spec, job.teacher
    if spec.engine.name != "ray":
        yield None
        return
    options, entries = DEFAULTS | spec.engine.options, job.entries
    # What measured the settings is done; the workers have weights of their own.
    teacher.close()
    device = "cuda" if options["gpus"] else "cpu"
    vocabulary = job.context.setup.readers.teacher_reader.vocabulary.size
    arguments = (
        teacher.source, teacher.dtype, device, vocabulary, entries.pad_id, entries.student, entries.kept,
    )  # fmt: skip
    pool = ray.Pool(
        Worker,
        [arguments] * options["workers"],
        cpus=options["cpus"],
        gpus=options["gpus"],
        address=options["address"],
        path=f"stages.{spec.name}.engine.ray",
    )
    try:
        yield Workers(pool, job)
    finally:
        pool.close()
