"""What several teachers say at the same positions: one distribution, or several that are compared one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.signals.pool import Average, averaged, on_union
from potstill.signals.signal import Chunk, Chunks, Signal
from potstill.signals.support import NEG_INF, Support, Tail, complement, gather, tempered
from potstill.signals.text import Text
from potstill.types import Batch

Combine = Literal["probabilities", "log_probabilities", "losses"]


@dataclass(frozen=True)
class Ensemble:
    """Signals of M teachers. At the temperature T teacher k is softmax(z_k / (T · temperatures[k])).

    Whole vocabularies are averaged id by id. Where any teacher has stored ids, all are compared on the union of them
    and one bucket (`pool.on_union`). `losses` sums the divergences of the teachers, each on its own support.

    A teacher that is asked about some rows alone has a signal of these; `Text()` where it is asked about none.
    """

    kind: str
    estimated: bool
    names: tuple[str, ...]
    signals: tuple[Signal, ...]
    temperatures: tuple[float, ...]
    combine: Combine
    weights: Tensor  # [N, M], each row sums to 1
    asked: Tensor | None = None  # [N, M] bool: which positions the signals hold; None all

    def __post_init__(self) -> None:
        for index, (name, signal) in enumerate(zip(self.names, self.signals, strict=True)):
            wanted = self.rows if self.asked is None else int(self.asked[:, index].sum())
            if signal.rows != wanted:
                raise SignalError(
                    f"the teacher {name} says something of {signal.rows} positions, and was asked about {wanted}.",
                    fix="No teacher of an ensemble may be left out silently; see why it said nothing.",
                )

    @property
    def rows(self) -> int:
        return self.weights.shape[0]

    @property
    def average(self) -> Average:
        """The one distribution that stands for all; a sum of losses is measured on the average of probabilities."""
        return "log_probabilities" if self.combine == "log_probabilities" else "probabilities"

    def at(self, rows: Tensor) -> Ensemble:
        index = rows.nonzero().squeeze(-1) if rows.dtype == torch.bool else rows
        index = index.to(self.weights.device)
        asked = None if self.asked is None else self.asked[index]
        signals = []
        for number, signal in enumerate(self.signals):
            kept = index
            if self.asked is not None:
                column = self.asked[:, number]
                kept = (column.cumsum(0) - 1)[index[column[index]]]
            signals.append(signal.at(kept) if signal.rows else signal)
        return replace(self, signals=_held(signals), weights=self.weights[index], asked=asked)

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        divergence.require_support(self.kind)
        if tail != "bucket" and self.kind != "dense":
            raise SignalError(
                f"several teachers' stored ids are compared with a bucket for the others, not with tail {tail}.",
                fix="Use the tail bucket.",
            )
        of_each = [s.chunks(divergence, tail) if s.rows else None for s in self.signals]
        return _Chunks(self, of_each)

    def mass_beyond(self, vocabulary: int, rows: slice) -> Tensor | None:
        """The probability [c] of ids from `vocabulary` on at T = 1, averaged; None where no teacher has such ids."""
        total = None
        for number, signal in enumerate(self.signals):
            measure = getattr(signal, "mass_beyond", None)
            local, mask = _local(self.asked, number, rows)
            mass = None if measure is None or not signal.rows else measure(vocabulary, local)
            if mass is not None:
                total = torch.zeros_like(self.weights[rows, 0]) if total is None else total
                places = slice(None) if mask is None else mask
                total[places] += self.weights[rows, number][places] * mass
        return total

    def weights_by_row(self, batch: Batch) -> dict[str, dict[str, float]]:
        """Each row's mean weight of each teacher, by the row's id; of rows with scored tokens."""
        owners, counts = batch.owners().unique_consecutive(return_counts=True)
        parts = self.weights.split(counts.tolist()) if len(counts) else ()
        return {
            batch.row_ids[row]: dict(zip(self.names, part.mean(0).tolist(), strict=True))
            for row, part in zip(owners.tolist(), parts, strict=True)
        }


def _held(signals: Sequence[Signal]) -> tuple[Signal, ...]:
    """The signals, and `Text()` for those without a position."""
    return tuple(signal if signal.rows else Text() for signal in signals)


def _local(asked: Tensor | None, number: int, rows: slice) -> tuple[slice, Tensor | None]:
    """Where a teacher's signal holds these rows, and which of them it holds."""
    if asked is None:
        return rows, None
    column = asked[:, number]
    begin = int(column[: rows.start].sum())
    mask = column[rows]
    return slice(begin, begin + int(mask.sum())), mask


class _Chunks:
    """Cuts every teacher's signal together."""

    def __init__(self, signal: Ensemble, of_each: Sequence[Chunks | None]) -> None:
        self._signal = signal
        self._of_each = of_each

    def __call__(self, rows: slice, student_logits: Tensor) -> _Chunk:
        chunks: list[Chunk | None] = []
        for number, chunk in enumerate(self._of_each):
            local, mask = _local(self._signal.asked, number, rows)
            logits = student_logits if mask is None else student_logits[mask]
            chunks.append(None if chunk is None or local.start == local.stop else chunk(local, logits))
        asked = None if self._signal.asked is None else self._signal.asked[rows]
        weights = self._signal.weights[rows].to(student_logits.dtype)
        return _Chunk(self._signal, chunks, weights, asked, student_logits.shape[1])


@dataclass(frozen=True)
class _Chunk:
    signal: Ensemble
    chunks: Sequence[Chunk | None]
    weights: Tensor  # [c, M]
    asked: Tensor | None  # [c, M]
    vocabulary: int

    @property
    def logits(self) -> Tensor:
        """The average at T = 1 as log-probabilities [c, V]; of whole vocabularies alone."""
        nobody = self.weights.new_zeros(()).expand(self.weights.shape[0], self.vocabulary)
        return self.beside(nobody, slice(0, self.weights.shape[0]), 1.0).teacher_lp

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "bucket"
    ) -> Support:
        """Both sides on the whole vocabulary, or on the union of the stored ids and a bucket."""
        full = tempered(student_logits, temperature)
        said = {
            number: one
            for number in range(len(self.chunks))
            if (one := self._said(number, student_logits, rows, temperature)) is not None
        }
        used, average = self.weights[rows][:, list(said)], self.signal.average
        if all(one.ids is None for one in said.values()):
            both = Support(full, averaged([one.teacher_lp for one in said.values()], used, average), full)
        else:
            ids, sides, has_tail = on_union(list(said.values()), full)
            both = Support(
                _student_side(full, ids, has_tail), averaged(sides, used, average), full, ids, has_tail
            )
        if self.signal.combine != "losses":
            return both
        parts = (self._compared(number, one, full, rows) for number, one in said.items())
        return replace(both, parts=tuple(zip(used.unbind(-1), parts, strict=True)))

    def _said(self, number: int, student_logits: Tensor, rows: slice, temperature: float) -> Support | None:
        """A teacher's side at these rows, without an id and without mass where it is not asked; None if nowhere."""
        chunk = self.chunks[number]
        local, mask = _local(self.asked, number, rows)
        if chunk is None or local.start == local.stop:
            return None
        logits = student_logits if mask is None else student_logits[mask]
        said = _teacher_side(chunk, logits, local, temperature * self.signal.temperatures[number])
        if mask is None:
            return said
        return replace(
            said,
            teacher_lp=_placed(said.teacher_lp, mask, NEG_INF),
            ids=None if said.ids is None else _placed(said.ids, mask, -1),
            offset=None if said.offset is None else _placed(said.offset, mask, 0.0),
        )

    def _compared(self, number: int, said: Support, full: Tensor, rows: slice) -> Support:
        """A teacher beside the student; where it is not asked, both sides are the student's, and no loss remains."""
        mask, ids = None if self.asked is None else self.asked[rows, number], said.ids
        if mask is not None and ids is not None:
            first = torch.where(mask, ids[:, 0], 0)
            ids = torch.cat([first.unsqueeze(-1), ids[:, 1:]], -1)
        student_lp = full if ids is None else _student_side(full, ids, said.tail)
        teacher_lp = said.teacher_lp
        if mask is not None:
            teacher_lp = torch.where(mask.unsqueeze(-1), teacher_lp, student_lp)
        return Support(student_lp, teacher_lp, full, ids, said.tail, said.offset)


def _student_side(full: Tensor, ids: Tensor, tail: bool) -> Tensor:
    """The student's log-probabilities on the ids, and on all the others together."""
    on_ids = gather(full, ids)
    return torch.cat([on_ids, complement(full, ids)], -1) if tail else on_ids


def _teacher_side(chunk: Any, logits: Tensor, rows: slice, temperature: float) -> Support:
    """A teacher's own side; of a whole vocabulary without the student's softmax at another temperature."""
    if hasattr(chunk, "logits"):
        side = tempered(chunk.logits[rows], temperature)
        return Support(side, side, side)
    return chunk.beside(logits, rows, temperature)


def _placed(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    """The values in the rows of the mask, `fill` in the others."""
    placed = values.new_full((mask.shape[0], *values.shape[1:]), fill)
    placed[mask] = values
    return placed
