"""The k most likely ids with their log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from potstill.devices import exact
from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.signals import ids as stored
from potstill.signals.signal import Chunks
from potstill.signals.support import NEG_INF, Support, Tail, complement, gather, tempered


@dataclass(frozen=True)
class TopK:
    """The k most likely ids with their log-probabilities at T = 1; -1 in unused places.

    `lse` maps a temperature T to logsumexp over the whole vocabulary of log p / T, which
    re-tempers the stored values exactly; at T = 1 it is 0 and need not be stored.

    `vocabulary` counts the teacher's ids where they are more than the student's: stored ids that the student
    lacks are left out, and the rest is renormalised. Ids that were not stored stay in the bucket, which is all that
    is left of a position whose stored ids the student lacks.
    """

    kind: ClassVar[str] = "topk"
    estimated: ClassVar[bool] = False

    ids: Tensor  # [N, k] int64
    lp: Tensor  # [N, k]
    lse: Mapping[float, Tensor] = field(default_factory=dict)  # T -> [N]
    vocabulary: int | None = None

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        """Without the tail's mass only for a divergence that is linear in the teacher."""
        divergence.require_support(self.kind)
        checked = self.checked()
        if tail == "truncate" and not (divergence.vanishes and divergence.linear):
            raise SignalError(
                f"true masses without the tail are defined for forward KL only, not for {divergence.name}.",
                fix="Use the tail bucket.",
            )
        return checked._chunk

    def checked(self) -> TopK:
        """Put unused places last.

        Raises:
            SignalError: shapes disagree, a position has no id or one twice, log-probabilities are above 0
                or hold more mass than 1.
        """
        rows = {f"log-sum-exp at T = {t}": values for t, values in self.lse.items()}
        stored.require_shapes(self.ids, self.lp, rows)
        ids, lp = stored.used_first(self.ids, self.lp, self.ids >= 0)
        _require_distribution(lp, ids >= 0)
        return replace(self, ids=ids, lp=lp)

    def _chunk(self, rows: slice, student_logits: Tensor) -> TopK:
        width = student_logits.shape[1]
        if self.vocabulary is None or self.vocabulary <= width:
            stored.require_within(self.ids[rows], width)
            return self.at(rows)
        stored.require_within(self.ids[rows], self.vocabulary, "teacher")
        device = self.lp.device
        return self.at(rows)._on(exact.home(device))._shared(width)._on(device)

    def at(self, rows: slice | Tensor) -> TopK:
        lse = {t: values[rows] for t, values in self.lse.items()}
        return replace(self, ids=self.ids[rows], lp=self.lp[rows], lse=lse)

    def _on(self, device: torch.device) -> TopK:
        lse = {t: values.to(device) for t, values in self.lse.items()}
        return replace(self, ids=self.ids.to(device), lp=self.lp.to(device), lse=lse)

    def _shared(self, width: int) -> TopK:
        """The ids below `width`, and every probability divided by 1 minus the mass of those above.

        With log m the log of what is left at T = 1, log p becomes log p - log m, and a log-sum-exp at T loses
        the same ids and becomes log(exp(lse) - sum of exp(log p / T)) - log m / T. A position without such an id
        has unused places alone.
        """
        outside, lp = self.ids >= width, self.lp.double()
        kept = (self.ids >= 0) & ~outside

        def left(values: Tensor) -> Tensor:
            """Log of 1 minus the mass outside [N]; at least the mass on kept ids, however both were rounded."""
            beyond = torch.where(outside, values.exp(), 0.0).sum(-1).clamp(max=1.0)
            return torch.maximum(torch.log1p(-beyond), values.masked_fill(~kept, NEG_INF).logsumexp(-1))

        log_left = left(lp)
        lse = {}
        for t, total in self.lse.items():
            wide = total.double()
            lse[t] = (wide + left(lp / t - wide.unsqueeze(-1)) - log_left / t).to(total.dtype)
        ids, shared = stored.unused_last(self.ids, (lp - log_left.unsqueeze(-1)).to(self.lp.dtype), kept)
        most = max(1, int(kept.sum(-1).max()))
        return replace(self, ids=ids[:, :most], lp=shared[:, :most], lse=lse)

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "bucket"
    ) -> Support:
        """The stored ids, and by default one bucket for all the others.

        `tail="renormalise"` divides both sides by their mass on the stored ids; `"truncate"` keeps the
        true masses and leaves the rest out (its optimum is not the teacher). Both are biased.

        Raises:
            SignalError: the signal has no log-sum-exp at this temperature.
        """
        part = self.at(rows)
        ids, teacher_lp = part.ids, part._tempered(temperature, student_logits.dtype)
        full = tempered(student_logits, temperature)
        on_ids = gather(full, ids)
        if ids.shape[1] >= full.shape[1] and bool((ids >= 0).all()):
            return Support(on_ids, teacher_lp, full, ids)
        if tail == "renormalise":
            # A softmax over the stored ids alone; every other id gets no gradient.
            return Support(_inside(on_ids, ids), _inside(teacher_lp, ids), full, ids)
        others = complement(full, ids)
        student_lp = torch.cat([on_ids, others], -1)
        if tail == "truncate":
            log_mass = torch.logsumexp(teacher_lp, -1, keepdim=True)
            teacher_lp = torch.cat([teacher_lp, torch.full_like(log_mass, NEG_INF)], -1)
            missing = torch.expm1(log_mass).squeeze(-1)
            return Support(student_lp, teacher_lp, full, ids, tail=True, offset=missing)
        teacher_lp = torch.cat([teacher_lp, _rest(teacher_lp, others, self.lp.dtype)], -1)
        return Support(student_lp, teacher_lp, full, ids, tail=True)

    def _tempered(self, temperature: float, dtype: torch.dtype) -> Tensor:
        """Log-probabilities at that temperature, -inf in unused places; at least fp32."""
        lp = self.lp.to(torch.promote_types(dtype, torch.float32))
        if temperature != 1.0:
            if temperature not in self.lse:
                held = ", ".join(str(t) for t in sorted({1.0, *self.lse}))
                raise SignalError(
                    f"the stored top-k targets cannot be re-tempered to T={temperature}: they hold T={held}",
                    fix="Capture again with that temperature, or use a stored one.",
                )
            lp = lp / temperature - self.lse[temperature].to(lp).unsqueeze(-1)
        return lp.masked_fill(self.ids < 0, NEG_INF)


def _inside(lp: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [N, k] renormalised on the ids; without an id one outcome is certain, the same on both sides."""
    first = lp[:, :1].masked_fill(ids[:, :1] < 0, 0.0)
    lp = torch.cat([first, lp[:, 1:]], -1)
    return lp - lp.logsumexp(-1, keepdim=True)


def _require_distribution(lp: Tensor, used: Tensor) -> None:
    """Refuse log-probabilities above 0, and more mass than 1 beyond the rounding of the stored values."""
    eps = torch.finfo(lp.dtype).eps
    home = exact.home(lp.device)
    lp, used = lp.to(home), used.to(home)
    wide = torch.where(used, lp.double(), NEG_INF)
    mass = wide.exp().sum(-1)
    wrong = used & ~(lp <= 4 * eps)
    heavy = mass > 1 + _rounding(wide, eps).squeeze(-1) + 1e-5
    if not torch.stack([wrong.any(), heavy.any()]).any():  # one question to the device for both
        return
    if wrong.any():
        row = stored.first(wrong.any(-1))
        raise SignalError(
            f"position {row} of the targets holds {float(lp[row][wrong[row]][0]):g} as a log-probability, "
            "which is at most 0.",
            fix="Give natural log-probabilities, normalised over the whole vocabulary.",
        )
    row = stored.first(heavy)
    raise SignalError(
        f"position {row} of the targets holds the mass {float(mass[row]):.3g}, and no distribution has more than 1.",
        fix="Normalise log-probabilities over the whole vocabulary, at T = 1.",
    )


def _rounding(lp: Tensor, eps: float) -> Tensor:
    """Bound the error [N, 1] in the mass of rounded log-probabilities: each moves its p by p |lp| eps."""
    p = lp.exp()
    return 2 * eps * torch.where(p > 0, p * (1 - lp), 0.0).sum(-1, keepdim=True)


def _rest(teacher_lp: Tensor, others: Tensor, stored_as: torch.dtype) -> Tensor:
    """Log of the teacher's mass outside the stored ids, [N, 1]: 1 minus their mass, in float64.

    Where that is less than the rounding of the stored values, only its upper end is known: the student's
    own mass there is taken up to that end, so an exact copy is at 0 and no target is called impossible.
    """
    eps = max(torch.finfo(stored_as).eps, torch.finfo(teacher_lp.dtype).eps)
    lp = exact.wide(teacher_lp)
    mass = 1.0 - lp.exp().sum(-1, keepdim=True)
    noise = _rounding(lp, eps)
    highest = (mass.clamp(min=0) + noise).log()
    certain = mass.clamp(min=1e-300).log()
    rest = torch.where(mass > noise, certain, torch.minimum(exact.wide(others), highest))
    return exact.back(rest, teacher_lp)
