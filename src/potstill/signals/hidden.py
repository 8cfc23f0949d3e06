"""Final hidden states and the head that reads them: the full vocabulary, exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.models.projection import Projection, mass_beyond, module_logits
from potstill.signals.dense import Dense
from potstill.signals.signal import Chunks
from potstill.signals.support import Tail
from potstill.types import Head


@dataclass(frozen=True)
class Hidden:
    """Final hidden states and their head. To a divergence it is dense; logits exist for a chunk at a time.

    For a student with fewer ids the head is cut to the first of them, which both models share.
    """

    kind: ClassVar[str] = "dense"
    estimated: ClassVar[bool] = False

    hidden: Tensor  # [N, H]
    head: Head

    @property
    def rows(self) -> int:
        return self.hidden.shape[0]

    def at(self, rows: Tensor) -> Hidden:
        return Hidden(self.hidden[rows], self.head)

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        divergence.require_support(self.kind)
        return _Chunks(self)

    def mass_beyond(self, vocabulary: int, rows: slice) -> Tensor | None:
        """The probability [c] of ids from `vocabulary` on, at T = 1: what a cut leaves out. None without such ids."""
        return mass_beyond(self.head, self.hidden[rows], vocabulary)


class _Chunks:
    """Logits of one chunk after the other, in one buffer: the next chunk overwrites them."""

    def __init__(self, signal: Hidden) -> None:
        self._signal = signal
        self._projection: Projection | None = None
        self._buffer: Tensor | None = None

    def __call__(self, rows: slice, student_logits: Tensor) -> Dense:
        head, hidden = self._signal.head, self._signal.hidden[rows]
        width = student_logits.shape[1]
        if head.vocabulary < width:
            raise SignalError(
                f"the teacher's vocabulary has {head.vocabulary} ids, the student's {width}.",
                fix="Cut the student's to the ids that both know.",
            )
        head = head.cut(width)
        if head.module is not None:
            return Dense(module_logits(head, hidden).to(student_logits.dtype))
        if self._projection is None or self._buffer is None or self._buffer.shape[1] != width:
            self._projection, self._buffer = Projection(head, hidden.dtype), None
        if self._buffer is None or self._buffer.shape[0] < hidden.shape[0]:
            shape, device = (hidden.shape[0], width), student_logits.device
            self._buffer = torch.empty(shape, dtype=self._projection.dtype, device=device)
        logits = self._projection.logits(hidden, self._buffer[: hidden.shape[0]])
        return Dense(logits.to(student_logits.dtype))
