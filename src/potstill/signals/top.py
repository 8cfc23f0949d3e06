"""A distribution cut to the teacher's likeliest ids and renormalised on them: the support of on-policy distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.signals.signal import Chunk, Chunks, Signal
from potstill.signals.support import NEG_INF, Support, Tail, gather


@dataclass(frozen=True)
class TopIds:
    """Which ids are compared: at each position the k likeliest of the teacher, without some that never are.

    Both sides are renormalised on them, so no other id gets a gradient. "Revisiting OPD" (arXiv:2603.25562) takes
    32, and leaves out special tokens that a template means differently in two models.
    """

    k: int
    left_out: tuple[int, ...] = ()

    def of(self, signal: Signal) -> Signal:
        """A whole distribution on these ids."""
        return _OnTopIds(signal, self)


@dataclass(frozen=True)
class _OnTopIds:
    """A dense signal that is read on its likeliest ids, chosen a chunk at a time."""

    kind: ClassVar[str] = "topk"
    estimated: ClassVar[bool] = False

    signal: Signal
    top: TopIds

    @property
    def rows(self) -> int:
        return self.signal.rows

    def at(self, rows: Tensor) -> _OnTopIds:
        return _OnTopIds(self.signal.at(rows), self.top)

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        divergence.require_support(self.kind)
        whole = self.signal.chunks(divergence, tail)
        return lambda rows, student_logits: _Chunk(whole(rows, student_logits), self.top)


@dataclass(frozen=True)
class _Chunk:
    whole: Chunk
    top: TopIds

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "renormalise"
    ) -> Support:
        """Both sides on the likeliest ids, each with the mass 1 there; fewer where the teacher allows fewer."""
        both = self.whole.beside(student_logits, rows, temperature)
        if both.parts:
            raise SignalError(
                "a sum of several teachers' losses cannot be compared on the likeliest ids alone.",
                fix="Average their distributions (teacher.combine), or compare the whole vocabulary.",
            )
        teacher_lp, width = both.teacher_lp, both.full_lp.shape[1]
        left_out = [index for index in self.top.left_out if index < width]
        if left_out:
            teacher_lp = teacher_lp.index_fill(1, torch.tensor(left_out, device=teacher_lp.device), NEG_INF)
        likeliest = teacher_lp.topk(min(self.top.k, width - len(left_out)), -1)
        ids = likeliest.indices.masked_fill(likeliest.values == NEG_INF, -1)
        student_lp = gather(both.full_lp, ids)
        return Support(
            student_lp - student_lp.logsumexp(-1, keepdim=True),
            likeliest.values - likeliest.values.logsumexp(-1, keepdim=True),
            both.full_lp,
            ids,
        )
