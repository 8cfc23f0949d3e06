"""Teacher-preference pairs: the teacher's answer is preferred to the student's, with the teacher as the reference.

    -log σ(m),  m = β [ log q/p (teacher's answer) - log q/p (student's answer) ]

Summed over answers, a mean over pairs. DPKD (Li, Gu, Dong, Wang, Cheng & Wei 2024, arXiv:2406.19774) gives the
formula; its official code applies it to single tokens (the models' likeliest ids), the baseline of the same name
in DistiLLM-2's repository to whole answers, as here. β is 0.1 in both.

m is that of the time when the rows were scored: a step right behind has the exact gradient, later ones on the
same text have the weights of before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from potstill.devices import ranks
from potstill.objectives.drawn import drawn_loss
from potstill.objectives.terms import DRAWN, HIDDEN, StudentView
from potstill.signals.signal import Signal
from potstill.types import Batch, Loss

Key = tuple[str, bool]  # of a row: its id, and whether the student wrote it


class _Row(NamedTuple):
    asked_by: str  # the example whose prompt both answer
    key: Key
    log_ratio: float  # log q/p of the answer


class _Part(NamedTuple):
    """What a row adds to the loss of the step."""

    slope: float = 0.0  # d loss / d log q of each of its tokens
    value: float = 0.0  # its pairs' losses, stated by the student's answer
    preferred: float = 0.0  # pairs with m > 0, stated by the student's answer

    def plus(self, other: _Part) -> _Part:
        return _Part(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Preference:
    """The term; answers to one prompt in one step make pairs, whatever process has them.

    Each answer of the student has one pair. Weights of rows and tokens play no part.

    Args:
        beta: β > 0.
    """

    beta: float = 0.1
    parts: Mapping[Key, _Part] = field(default_factory=dict)  # from `prepared`
    scale: float = 0.0  # the step's divisor by the number of pairs, from `prepared`
    spread: float = 0.0  # the step's tokens by the number of pairs, from `prepared`

    name: ClassVar[str] = "preference"
    needs: ClassVar[frozenset[str]] = frozenset({HIDDEN, DRAWN})

    @property
    def totals(self) -> tuple[str, ...]:
        """Both figures, and none in a step without pairs."""
        return ("preference", "preferred") if self.spread else ()

    def prepared(self, batches: Sequence[Batch]) -> Preference:
        """The term with this step's pairs.

        Raises:
            ValueError: rows of a pair were not scored.
        """
        rows = [row for batch in batches for row in _rows(batch)]
        weight = sum(float(b.count) if b.weights is None else float(b.weights.sum()) for b in batches)
        everywhere = ranks.gather((rows, weight, sum(batch.count for batch in batches)))
        parts, pairs = self._parts([row for one, _, _ in everywhere for row in one])
        if not pairs:
            return replace(self, parts={}, scale=0.0, spread=0.0)
        divisor = sum(part for _, part, _ in everywhere)
        tokens = sum(part for _, _, part in everywhere)
        return replace(self, parts=parts, scale=divisor / pairs, spread=tokens / pairs)

    def _parts(self, rows: Sequence[_Row]) -> tuple[dict[Key, _Part], int]:
        """What each row adds, and the number of pairs."""
        by_prompt: dict[str, tuple[list[_Row], list[_Row]]] = defaultdict(lambda: ([], []))
        for row in sorted(rows, key=lambda row: row.key):  # in an order that no process decides
            by_prompt[row.asked_by][row.key[1]].append(row)
        parts: dict[Key, _Part] = defaultdict(_Part)
        pairs = 0
        for others, own in by_prompt.values():
            for index, worse in enumerate(own if others else ()):
                better = others[index % len(others)]
                pairs += 1
                if math.isnan(margin := self.beta * (better.log_ratio - worse.log_ratio)):
                    raise ValueError(
                        f"rows {better.key[0]} and {worse.key[0]} are a pair and were not scored"
                    )
                slope = self.beta * _sigmoid(-margin)
                parts[better.key] = parts[better.key].plus(_Part(-slope))
                stated = _Part(slope, -_log_sigmoid(margin), float(margin > 0))
                parts[worse.key] = parts[worse.key].plus(stated)
        return dict(parts), pairs

    def __call__(self, student: StudentView, signal: Signal) -> Loss:
        """The term on a batch; the signal is not read."""
        batch = student.batch
        owners, counts = batch.owners(), batch.example_counts()
        keys = list(zip(batch.row_ids, _of_student(batch), strict=True))
        parts = torch.tensor([self.parts.get(key, _Part()) for key in keys], dtype=torch.float64).view(-1, 3)
        like = torch.promote_types(student.hidden.dtype, torch.float32)
        # The dtype first: not every device has float64.
        slope, value, preferred = parts.to(like).to(counts.device)[owners].unbind(-1)
        stated = value / counts

        def surrogate(lp: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            return stated[rows].to(lp), slope[rows].to(lp)

        loss = drawn_loss(self.name, replace(student, batch=replace(batch, weights=None)), surrogate)
        sums = {"preference": stated.sum(), "preferred": (preferred / counts).sum()}
        metrics = {name: total.detach() * self.spread for name, total in sums.items()} if self.spread else {}
        return Loss(loss.sum * self.scale, loss.count, metrics)

    def check(self, sums: Mapping[str, float], tokens: int) -> None:
        """Every value can be."""


def _rows(batch: Batch) -> Iterator[_Row]:
    """The scored rows of a batch; log q/p is NaN where nobody asked."""
    ratio = torch.full((batch.count,), math.nan, dtype=torch.float64)
    if batch.student_lp is not None and batch.teacher_lp is not None:
        ratio = batch.student_lp.double() - batch.teacher_lp.double()
    owners = batch.owners()
    sums = ratio.new_zeros(len(batch.row_ids)).index_add_(0, owners, ratio).tolist()
    students = _of_student(batch)
    for index in owners.unique().tolist():
        yield _Row(batch.asked_by[index], (batch.row_ids[index], students[index]), sums[index])


def _of_student(batch: Batch) -> list[bool]:
    """Whether the student wrote each row's scored tokens."""
    result = [False] * len(batch.row_ids)
    for owner, hard in zip(batch.owners().tolist(), batch.hard.tolist(), strict=True):
        result[owner] = not hard
    return result


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))
