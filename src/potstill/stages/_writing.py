"""One cache on its way to the disk: parts, blocks and batches of a plan, each asked for once."""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cache.header import Header
from potstill.cache.keys import key_of
from potstill.cache.writer import Writer
from potstill.devices import ranks
from potstill.errors import MachineError
from potstill.stages._mending import mend
from potstill.stages._plan import Plan
from potstill.types import Example

if TYPE_CHECKING:
    from potstill.stages._capture import Job
    from potstill.stages._workers import Workers

ROOM = 2**20  # bytes that stay free beside a block
OVERHEAD = 1.05  # of directories and indices beside signals


@dataclass(frozen=True)
class Writing:
    """The cache in `folder`: its plan, and about how many bytes a scored token takes there."""

    job: Job
    folder: Path
    header: Header
    plan: Plan
    bytes_per_token: float

    def go(
        self,
        share: tuple[int, int],
        ends: float | None,
        *,
        mending: bool = False,
        workers: Workers | None = None,
    ) -> bool:
        """Write the blocks of this process's parts that are not there; false where a deadline or signal came first.

        Args:
            share: (i, n), of n runs that write parts side by side.
            ends: the time of `time.monotonic` after which no block is begun.
            mending: what is there comes from a damaged cache, and is read before it is taken.
            workers: who write in place of this process.
        """
        context, name = self.job.context, self.job.spec.name
        parts = [part for part in range(len(self.plan.parts)) if part % share[1] == share[0]]
        mine = [part for part in (parts if self._together else ranks.mine(parts)) if self.plan.parts[part]]
        total = sum(block.count for part in mine for block in self.plan.parts[part])
        done = 0
        with context.console.bar(f"{name}: the teacher reads {self.folder.name}", total) as bar:
            if mending and not self._together and not all(mend(self, part) for part in mine):
                return False
            if workers is not None:
                blocks = [(part, self.plan.parts[part]) for part in mine]
                return workers.write(self.folder, self.header, blocks, ends, bar, self.bytes_per_token)
            for part in mine:
                with self._writer(part) as writer:
                    if writer is not None and writer.headless:
                        writer.keep_head(next(self.job.entries.of(self.plan.parts[part][0], self.header))[1])
                    written = self._written(writer)
                    for block in self.plan.parts[part]:
                        if not all(_key(row) in written for row in block.rows):
                            late = ends is not None and time.monotonic() > ends
                            if self._agreed(late or bool(context.stop_signal())):
                                return False
                            self._require_room(total - done, block.count)
                            entries = list(self.job.entries.of(block, self.header))
                            if writer is not None:
                                writer.add_block(entries)
                        done += block.count
                        bar.update(done, in_bytes(done * self.bytes_per_token))
        return True

    @property
    def _together(self) -> bool:
        """Of a teacher in parts every pass needs all processes, and the first one writes."""
        return bool(getattr(self.job.teacher, "sharded", False))

    def _writer(self, part: int) -> AbstractContextManager[Any]:
        if self._together and not ranks.first():
            return nullcontext()
        return Writer(self.folder, self.header, shard_bytes=2**62, part=part)

    def _written(self, writer: Writer | None) -> frozenset[bytes]:
        """The rows of a part that are there."""
        there = frozenset[bytes]() if writer is None else writer.written
        return ranks.broadcast(there) if self._together else there

    def _agreed(self, stop: bool) -> bool:
        return ranks.anyone(stop) if self._together else stop

    def _require_room(self, left: int, block: int) -> None:
        """Refuse to ask for a block that the disk has no room for.

        Raises:
            MachineError: says how many bytes are missing for all that is to be written.
        """
        free = shutil.disk_usage(self.folder).free
        if free > block * self.bytes_per_token * OVERHEAD + ROOM:
            return
        wanted = int(left * self.bytes_per_token * OVERHEAD) + ROOM
        raise MachineError(
            f"{wanted - free} bytes are missing in {self.folder}: {wanted} are still to be written, {free} are free.",
            fix="Free them and run the same command again: every block that is written is kept.",
        )


def _key(row: Example) -> bytes:
    return key_of(row.input_ids, row.scored)


def in_bytes(size: float) -> str:
    """A number of bytes in words."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size:.0f} bytes"
