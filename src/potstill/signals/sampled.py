"""Ids drawn from the teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.signals import ids as stored
from potstill.signals.signal import Chunks
from potstill.signals.support import NEG_INF, Support, Tail, complement, gather, tempered


@dataclass(frozen=True)
class Sampled:
    """Ids drawn with replacement from the teacher at `temperature`: unbiased for losses
    linear in the teacher. Unused places have count 0."""

    kind: ClassVar[str] = "sampled"
    estimated: ClassVar[bool] = True

    ids: Tensor  # [N, u] int64
    counts: Tensor  # [N, u]
    entropy: Tensor | None = None  # [N] nats, the teacher's H(p) at that temperature
    temperature: float = 1.0

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        """A divergence that vanishes at equality needs the teacher's entropy; another one leaves it out."""
        divergence.require_support(self.kind)
        checked = self.checked()
        if not divergence.vanishes:
            return replace(checked, entropy=None)._chunk
        if self.entropy is None:
            raise SignalError(
                f"drawn ids without the teacher's entropy cannot report {divergence.name}, only its gradient.",
                fix="Store the entropy beside the ids, or use soft_cross_entropy: the gradient is the same.",
            )
        return checked._chunk

    def checked(self) -> Sampled:
        """Put unused places last.

        Raises:
            SignalError: shapes disagree, a position has no id or one twice, or a count is negative.
        """
        stored.require_shapes(self.ids, self.counts, {"entropy": self.entropy})
        ids, counts = stored.used_first(self.ids, self.counts, (self.ids >= 0) & (self.counts != 0))
        wrong = (ids >= 0) & ~(counts > 0)
        if wrong.any():
            row = stored.first(wrong.any(-1))
            raise SignalError(
                f"position {row} of the targets holds {float(counts[row][wrong[row]][0]):g} as a count, "
                "which is at least 0."
            )
        return replace(self, ids=ids, counts=counts)

    def _chunk(self, rows: slice, student_logits: Tensor) -> Sampled:
        stored.require_within(self.ids[rows], student_logits.shape[1])
        return self.at(rows)

    def at(self, rows: slice | Tensor) -> Sampled:
        entropy = None if self.entropy is None else self.entropy[rows]
        return replace(self, ids=self.ids[rows], counts=self.counts[rows], entropy=entropy)

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "bucket"
    ) -> Support:
        """The drawn ids with their shares, and one bucket for all the others.

        The value plus `offset` is CE - H(p): unbiased, and negative about half the time near equality;
        without a stored entropy it is the biased plug-in KL.

        Raises:
            SignalError: the ids were drawn at another temperature.
        """
        if temperature != self.temperature:
            raise SignalError(
                f"ids drawn at T={self.temperature} cannot serve T={temperature}",
                fix=f"Draw again at T={temperature}, or set temperature: {self.temperature}.",
            )
        part = self.at(rows)
        full = tempered(student_logits, temperature)
        counts = part.counts.to(full.dtype)
        share = counts / counts.sum(-1, keepdim=True)
        teacher_lp = share.log()
        offset = None
        if part.entropy is not None:
            offset = -torch.xlogy(share, share).sum(-1) - part.entropy.to(full.dtype)
        return Support(
            torch.cat([gather(full, part.ids), complement(full, part.ids)], -1),
            torch.cat([teacher_lp, torch.full_like(teacher_lp[:, :1], NEG_INF)], -1),
            full,
            part.ids,
            tail=True,
            offset=offset,
        )
