"""What a teacher says of rows, as a cache keeps it: the same in this process and in a worker elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, compress, pairwise
from typing import Any

import torch

from potstill.cache.header import Header
from potstill.cache.keys import key_of
from potstill.cache.probabilities import pieces
from potstill.cache.reader import Cache
from potstill.cache.vectors import vectors_of
from potstill.data.batch import collate
from potstill.signals.given import Given
from potstill.signals.hidden import Hidden
from potstill.stages._plan import Block
from potstill.stages._vectors import FrozenHead
from potstill.teachers._shared import shares_prompts
from potstill.types import Example, Head


@dataclass(frozen=True)
class Entries:
    """A teacher that is asked about rows.

    Args:
        device: where signals are read.
        student: the head that vectors are made with.
        kept: what the teacher drew the rows' answers from, where it was kept.
    """

    teacher: Any
    device: torch.device
    pad_id: int
    student: FrozenHead | None = None
    kept: Cache | None = None

    def ask(self, rows: Sequence[Example], kind: str = "hidden") -> Iterator[tuple[bytes, Any]]:
        """The key of each row and the teacher's signal, to be stored as a kind; of one that was kept as it was written
        nobody asks."""
        kept, keys = serving(self.kept, kind), [key_of(row.input_ids, row.scored) for row in rows]
        new = [row for row, key in zip(rows, keys, strict=True) if kept is None or key not in kept]
        said = iter(self._said(new))
        for key in keys:
            yield key, self._here(kept.batch([key])) if kept is not None and key in kept else next(said)

    def of(self, block: Block, header: Header) -> Iterator[tuple[bytes, Any]]:
        """Every row of a block with what the cache keeps of it."""
        for rows in block.batches:
            for row, (key, signal) in zip(rows, self.ask(rows, header.kind), strict=True):
                yield key, self._stored(signal, row, header)

    def _said(self, rows: Sequence[Example]) -> list[Any]:
        """The signal of each row, in one pass; a prompt that rows share is read once."""
        teacher = self.teacher
        whole = hasattr(teacher, "signals") and not getattr(teacher, "sharded", False)
        if whole and shares_prompts(rows):
            said: list[Any] = teacher.signals(rows, self.pad_id)
            return said
        if not rows:
            return []
        signal = teacher.signal(collate(rows, pad_id=self.pad_id).to(self.device))
        ends = [*accumulate((row.count for row in rows), initial=0)]
        return [signal.at(torch.arange(begin, end, device=self.device)) for begin, end in pairwise(ends)]

    def _stored(self, signal: Any, row: Example, header: Header) -> Any:
        """What the cache holds of a row, where the codec cannot make it of the teacher's signal alone."""
        if header.kind == "token":
            return self._given(signal, row, header.vocabulary)
        if header.kind == "kl_vector":
            return vectors_of(signal, self._student_head, header.setting["temperature"])
        return signal

    def _here(self, signal: Any) -> Any:
        """What was kept, where signals are read; of other kinds than hidden states the codec takes the bytes."""
        if not isinstance(signal, Hidden):
            return signal
        if "_kept_head" not in self.__dict__:  # copied once, not for each row
            self.__dict__["_kept_head"] = signal.head.to(self.device)
        return Hidden(signal.hidden.to(self.device), self.__dict__["_kept_head"])

    @cached_property
    def _student_head(self) -> Head:
        """On the device once, not for each row."""
        assert self.student is not None
        return self.student.head.to(self.device)

    def _given(self, signal: Any, row: Example, vocabulary: int) -> Given:
        """What the teacher says of the row's own tokens."""
        targets = torch.tensor([*compress(row.input_ids, row.scored)], device=self.device)
        parts = pieces(signal, vocabulary)
        return Given(torch.cat([Given.of(lp_at(1.0), targets[place]).lp for place, lp_at in parts]))


def serving(kept: Cache | None, kind: str) -> Cache | None:
    """What decoding left, where a cache of this kind can be made of it: hidden states are all that a teacher says."""
    return kept if kept is not None and kept.header.kind in ("hidden", kind) else None
