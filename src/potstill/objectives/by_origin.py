"""A term on the tokens of one origin alone: those that the student wrote, or those of data and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.devices import ranks
from potstill.objectives.drawn import when_drawn
from potstill.objectives.returns import Importance, log_weights, products
from potstill.objectives.terms import DRAWN, StudentView, Term, prepare_one
from potstill.signals.signal import Signal
from potstill.types import Batch, Loss


@dataclass(frozen=True)
class ByOrigin:
    """A term that reads some of a step's tokens; its metrics are means over these.

    Args:
        term: what is summed over them.
        of_student: the tokens that the student wrote; else all the others.
        prefix: stands before the names of its metrics.
        own_mean: divide by the weight of these tokens, not by that of the whole step.
        importance: weights of text that a mixture with the teacher wrote, for a term that compares whole
            distributions at each token: none, of the token (MiniLLM), or the product over the tokens before
            it, which is unbiased.
        teacher_share: α of that mixture.
    """

    term: Term
    of_student: bool
    prefix: str = ""
    own_mean: bool = False
    importance: Importance = "none"
    teacher_share: float = 0.0
    factor: float = 1.0  # of the loss, from `prepared`
    spread: float = (
        1.0  # of the metrics: all scored tokens of the step by those that are read, from `prepared`
    )

    @property
    def name(self) -> str:
        return f"{self.prefix}{self.term.name}"

    @property
    def needs(self) -> frozenset[str]:
        return self.term.needs | ({DRAWN} if self._weighs else frozenset())

    @property
    def _weighs(self) -> bool:
        """Whether tokens have weights of a mixture, which are read from what both models said of them."""
        return self.importance != "none" and self.teacher_share > 0

    @property
    def totals(self) -> tuple[str, ...]:
        """The term's, and none in a step without such tokens."""
        if not self.spread:
            return ()
        return tuple(f"{self.prefix}{name}" for name in self.term.totals)

    def prepared(self, batches: Sequence[Batch]) -> ByOrigin:
        """The term for this step: weights and tokens are counted over all processes."""
        mine = [self.cut(batch) for batch in batches]
        counts = torch.tensor(
            [[_weight(b), float(b.count)] for b in (*batches, *mine)], dtype=torch.float64
        ).view(2, len(batches), 2)
        (weight, tokens), (own, read) = ranks.total(counts.sum(1)).tolist()
        return replace(
            self,
            term=prepare_one(self.term, mine),
            factor=(weight / own if own else 0.0) if self.own_mean else 1.0,
            spread=tokens / read if read else 0.0,
        )

    def cut(self, batch: Batch) -> Batch:
        """The batch with only these tokens scored."""
        return batch.only(self._kept(batch))

    def __call__(self, student: StudentView, signal: Signal) -> Loss:
        """The term on these tokens of a batch."""
        kept = self._kept(student.batch)
        batch = student.batch.only(kept)
        if self._weighs:
            batch = replace(batch, weights=self._importance(batch))
        view = replace(student, hidden=student.hidden[kept], batch=batch)
        loss = self.term(view, signal.at(kept))
        metrics = {}
        if self.spread:
            metrics = {f"{self.prefix}{name}": value * self.spread for name, value in loss.metrics.items()}
        return Loss(loss.sum * self.factor, loss.count, metrics)

    def check(self, sums: Mapping[str, float], tokens: int) -> None:
        """Refuse what the term refuses."""
        own = {name.removeprefix(self.prefix): v for name, v in sums.items() if name.startswith(self.prefix)}
        self.term.check(own, tokens)

    def _kept(self, batch: Batch) -> Tensor:
        return ~batch.hard if self.of_student else batch.hard

    def _importance(self, batch: Batch) -> Tensor:
        """The batch's weights [N] times those of the mixture."""
        student_lp, teacher_lp, owners = when_drawn(batch)
        logs = log_weights(student_lp, teacher_lp, self.teacher_share)
        own = logs.exp() if self.importance == "per_token" else products(logs, owners, before=True)
        # A batch keeps float32, and not every device has more.
        weights = own.to(torch.float32 if batch.student_lp is None else batch.student_lp.dtype)
        weights = weights.to(batch.targets.device)
        return weights if batch.weights is None else weights * batch.weights


def _weight(batch: Batch) -> float:
    return float(batch.count) if batch.weights is None else float(batch.weights.sum())
