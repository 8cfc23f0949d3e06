"""What a loss says besides its value: free metrics, and why it is not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.devices import exact
from potstill.divergences._math import may_ask
from potstill.errors import NotFinite
from potstill.signals.support import Support
from potstill.signals.vector import MeanSupport


def add_sum(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    """Add the values of a block to a metric."""
    total = exact.total(values.detach())
    sums[name] = sums[name] + total if name in sums else total


def add_free_metrics(sums: dict[str, Tensor], support: Support) -> None:
    """Add entropies, top-1 agreement and acceptance sum(min(p, q)) on the support, in nats and shares; with a
    bucket, also how much mass the stored ids hold on either side."""
    student, teacher = support.student_lp, support.teacher_lp
    q, p = student.exp(), teacher.exp()
    add_sum(sums, "student_entropy", -torch.where(q > 0, q * student, 0.0).sum(-1))
    if isinstance(support, MeanSupport):  # no id of the teacher is known
        add_sum(sums, "teacher_entropy", support.entropy)
        return
    add_sum(sums, "teacher_entropy", -torch.where(p > 0, p * teacher, 0.0).sum(-1))
    add_sum(sums, "agreement", (student.argmax(-1) == teacher.argmax(-1)).float())
    add_sum(sums, "acceptance", torch.minimum(p, q).sum(-1))
    if support.tail:
        add_sum(sums, "student_mass_on_ids", q[:, :-1].sum(-1))
        add_sum(sums, "teacher_mass_on_ids", p[:, :-1].sum(-1))


def require_finite(name: str, value: Tensor, start: int, support: Support | None) -> None:
    """Refuse a loss that is not finite, and say where and why. Not on a GPU, which every block would wait for.

    Raises:
        NotFinite: names the position, counted from `start`, and the ids that one side forbids.
    """
    if not may_ask(value) or value.isfinite().all():
        return
    row = int((~value.isfinite()).nonzero()[0])
    reason = "" if support is None else _impossible(support, row)
    fix = "Forbid the same ids on both sides, or take a divergence that is bounded (jsd, tvd)."
    raise NotFinite(
        f"the {name} loss is {float(value[row])} at scored position {start + row}{reason}.",
        position=start + row,
        fix=fix if reason else "Look at the logits of both models there.",
    )


def _impossible(support: Support, row: int) -> str:
    """The outcomes that one side forbids and the other uses, in words; nothing if there are none."""
    student, teacher = support.student_lp[row], support.teacher_lp[row]
    sides = (("student", "teacher", student, teacher), ("teacher", "student", teacher, student))
    reasons = []
    for one, other, forbids, uses in sides:
        places = ((forbids == -torch.inf) & (uses > -torch.inf)).nonzero()
        if len(places):
            column = int(places[0])
            if support.tail and column == student.shape[0] - 1:
                outcome = "the ids that were not stored"
            else:
                outcome = f"id {column if support.ids is None else int(support.ids[row, column])}"
            reasons.append(f"the {one} gives no mass to {outcome}, the {other} does")
    return f": {'; '.join(reasons)}" if reasons else ""
