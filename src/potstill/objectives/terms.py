"""The terms of an objective: what a training step adds up, each with its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from potstill.signals.signal import Signal
from potstill.types import Batch, Head, Loss

HIDDEN = "hidden"  # final hidden states at the scored positions
DRAWN = "drawn"  # what both models said of the student's tokens when they were drawn
SERVED = frozenset({HIDDEN, DRAWN})


@dataclass(frozen=True)
class StudentView:
    """What terms may read of the student on one batch."""

    hidden: Tensor  # [N, H] final hidden states at the scored positions
    head: Head
    batch: Batch
    chunk_bytes: int | None  # memory for a chunk's logits; None is what suits the device
    metrics: bool = False  # also sum diagnostics
    rounded: bool = False  # the student computes in bf16, its head's products too
    compile: bool = False  # the loss as one compiled function


class Term(Protocol):
    """A sum over the scored tokens, each times the batch's weight of it.

    A term that must see a step as a whole (its moments, its own count) has `prepared(batches) -> Term`: called
    once a step with this process's batches, by all processes together; it may sum over them.

    A term that owns trained parameters is an `nn.Module` and is given to `StudentModule`, so that they join
    the optimizer and the checkpoint; the exported student never has them.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]:
        """What it reads: `HIDDEN` of the student, `DRAWN` of the batch."""

    @property
    def totals(self) -> tuple[str, ...]:
        """Metrics that it sums in every step, also where no token is scored.

        "weight" means that the step is divided by that sum instead of the batches' own weights.
        """

    def __call__(self, student: StudentView, signal: Signal) -> Loss: ...

    def check(self, sums: Mapping[str, float], tokens: int) -> None:
        """Refuse the metric sums of a step that cannot be; not called where the signal is an estimate.

        Raises:
            TrainingStopped: names what cannot be.
        """


Terms: TypeAlias = Term | Sequence[tuple[float, Term]]


def weighted(terms: Terms) -> Sequence[tuple[float, Term]]:
    """The terms with their weights; a term alone has weight 1."""
    return terms if isinstance(terms, Sequence) else [(1.0, terms)]


def prepared(terms: Terms, batches: Sequence[Batch]) -> Sequence[tuple[float, Term]]:
    """The terms with what they fix once a step; a term without the hook as it is."""
    return [(weight, prepare_one(term, batches)) for weight, term in weighted(terms)]


def prepare_one(term: Term, batches: Sequence[Batch]) -> Term:
    """One term with what it fixes once a step."""
    hook = getattr(term, "prepared", None)
    return term if hook is None else hook(batches)


def reads_drawn(terms: Terms) -> bool:
    """Whether a term reads the log-probabilities of drawn tokens, which are scored for nobody else."""
    return any(DRAWN in term.needs for _, term in weighted(terms))


def total(
    terms: Sequence[tuple[float, Term]], student: StudentView, signal: Signal
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all terms, and their metrics.

    Raises:
        ValueError: two terms report the same metric.
    """
    summed = student.hidden.new_zeros(())
    metrics: dict[str, Tensor] = {}
    for weight, term in terms:
        loss = term(student, signal)
        summed = summed + weight * loss.sum
        if twice := sorted(metrics.keys() & loss.metrics.keys()):
            raise ValueError(f"two terms report {twice[0]}: give the metric of one of them another name")
        metrics |= loss.metrics
    return summed, metrics
