"""Token means of a student on rows that it does not train on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from potstill.data.batch import collate
from potstill.devices import ranks
from potstill.models.beside import evaluating
from potstill.objectives.terms import Terms
from potstill.signals.teacher import Teacher
from potstill.signals.text import Text
from potstill.train.step import each_row_once, one_row_each
from potstill.types import Batch, Example

_TOKENS = "scored tokens"


@dataclass(frozen=True)
class Validation:
    """What is measured, and on which rows.

    Args:
        rows: examples that choose the best weights.
        teacher: None where the student learns from text alone.
        objective: the objective at the end of the training.
        yardstick: a divergence that is measured beside it, as `forward_kl`; None without a teacher.
        tokens: padded tokens of one forward pass.
        before_batch: called before each batch; may raise to stop.
        by_row: every row counts the same in `loss`, as in a training with `normalize: sequence_mean`.
    """

    rows: Sequence[Example]
    teacher: Teacher | None
    objective: Terms
    yardstick: Terms | None
    tokens: int
    pad_id: int
    before_batch: Callable[[], None] = lambda: None
    by_row: bool = False

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> Mapping[str, float]:
        """The objective (`loss`), as a training divides it; cross-entropy and diagnostics as means over scored tokens."""
        with evaluating(module):
            return self._means(module)

    def _means(self, module: nn.Module) -> Mapping[str, float]:
        sums: dict[str, float] = {}
        device = next(module.parameters()).device
        for batch in self._batches():
            self.before_batch()
            batch = batch.to(device)
            signal = Text() if self.teacher is None else self.teacher.signal(batch.for_teacher)
            total, weights, metrics = module(batch, signal, self.objective, metrics=True)
            figures = {"loss": total, **metrics, _TOKENS: batch.count}
            figures.setdefault("weight", weights)
            if self.yardstick is not None:
                figures["forward_kl"] = module(replace(batch, weights=None), signal, self.yardstick)[0]
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        parts = ranks.gather(sums)
        sums = {name: math.fsum(part.get(name, 0.0) for part in parts) for name in parts[0]}
        tokens, weight = sums.pop(_TOKENS), sums.pop("weight") or math.inf
        return {name: value / (weight if name == "loss" else tokens) for name, value in sums.items()}

    def _batches(self) -> list[Batch]:
        """This process's batches: as many as every other one has, the last ones perhaps without a scored token."""
        rows = one_row_each(self.rows) if self.by_row else self.rows
        rows = sorted(rows, key=lambda example: len(example.input_ids))
        size = max(1, self.tokens // max(1, max(len(row.input_ids) for row in rows)))
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        batches += [[rows[0].silent()]] * (-len(batches) % ranks.world())
        collated = [collate(batch, pad_id=self.pad_id) for batch in ranks.mine(batches)]
        return [each_row_once(batch) for batch in collated] if self.by_row else collated
