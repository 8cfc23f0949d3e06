"""One optimizer step: the only backward().

Losses are sums. A step divides once, by the weight of all tokens it scores over all micro-batches
and all ranks, so the same rows give the same gradient however they are split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.devices import exact, ranks
from potstill.errors import NotFinite, TrainingStopped
from potstill.models import anatomy
from potstill.objectives import closeness
from potstill.objectives.terms import SERVED, StudentView, Term, Terms, prepared, total, weighted
from potstill.signals.ensemble import Ensemble
from potstill.signals.signal import Signal
from potstill.signals.teacher import Teacher
from potstill.signals.text import Text
from potstill.train import parallel
from potstill.types import Batch, Example


class StudentModule(nn.Module):
    """Backbone, head and objective as one module, so that a sharded wrapper sees one call.

    forward(batch, signal, terms) -> (sum, weight, metrics): the summed objective, the sum of token weights
    (without weights the count), and sums of metrics.

    Args:
        student: the model that is trained and exported.
        vocabulary: ids of its softmax; rows beyond (padding, or ids that the teacher lacks) are cut before it.
        form: how the student shapes its logits; found by a forward pass when not given.
        terms: those that own trained parameters.
        autocast: dtype of the student's forward pass.
        chunk_bytes: memory for a chunk's logits; by default what suits the device.
        compile: run the loss on whole distributions as one compiled function.
    """

    def __init__(
        self,
        student: nn.Module,
        vocabulary: int,
        *,
        form: anatomy.HeadForm | None = None,
        terms: Sequence[nn.Module] = (),
        autocast: torch.dtype | None = None,
        chunk_bytes: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.terms = nn.ModuleList(terms)
        self._vocabulary = vocabulary
        self._form = form or anatomy.head_form(student)
        self._autocast = autocast
        self._chunk_bytes = chunk_bytes
        self._compile = compile

    def forward(
        self, batch: Batch, signal: Signal, terms: Terms, metrics: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        terms = weighted(terms)
        self._require_served(terms)
        device = batch.input_ids.device
        with torch.autocast(device.type, dtype=self._autocast, enabled=self._autocast is not None):
            states = anatomy.states_of(self.student, batch)
        head = anatomy.head_of(self.student, self._vocabulary, self._form)
        rounded = self._autocast == torch.bfloat16
        view = StudentView(
            states[batch.predicts], head, batch, self._chunk_bytes, metrics, rounded, self._compile
        )
        summed, sums = total(terms, view, signal)
        return summed, denominator(batch), sums

    def decode(self, **inputs: Any) -> Any:
        """Run the student alone, with a cache: what `generate` calls to write text."""
        return self.student(**inputs)

    def _require_served(self, terms: Sequence[tuple[float, Term]]) -> None:
        for _, term in terms:
            if unserved := sorted(term.needs - SERVED):
                raise ValueError(f"the term {term.name} needs {unserved[0]!r}, which is not read here")
            if isinstance(term, nn.Module) and all(term is not owner for owner in self.terms):
                raise ValueError(
                    f"the term {term.name} owns parameters that would not train: give it to StudentModule(terms=)"
                )


def denominator(batch: Batch) -> Tensor:
    """Count a batch's scored tokens, or sum their weights: its part of the step's divisor."""
    if batch.weights is None:
        return torch.tensor(float(batch.count), device=batch.input_ids.device)
    return batch.weights.sum()


def each_row_once(batch: Batch) -> Batch:
    """Divide each token's weight by its row's count, so that rows count by weight alone."""
    shares = 1.0 / batch.example_counts()
    return replace(batch, weights=shares if batch.weights is None else shares * batch.weights)


def one_row_each(examples: Sequence[Example]) -> list[Example]:
    """Multiply weights by the share in the conversation, so that its examples weigh as one row together."""
    return [replace(example, weight=example.weight * example.share) for example in examples]


@dataclass(frozen=True)
class StepResult:
    """Sums over all ranks: loss and metrics, their divisor, and scored tokens.

    `teacher_weights` holds each row's mean weight of each of several teachers, by the row's id.
    """

    loss: float
    weight: float
    tokens: int
    metrics: Mapping[str, float]
    teacher_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Per scored token (nats), and what is known of the student's own tokens."""
        per_token = {k: v / self.tokens for k, v in self.metrics.items() if k not in closeness.SUMS}
        return {"loss": self.loss / self.weight} | per_token | closeness.figures(self.metrics)


def accumulate(
    module: nn.Module,
    teacher: Teacher | None,
    batches: Sequence[Batch],
    terms: Terms,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> StepResult | None:
    """Add the gradient of one optimizer step; None when no rank scores a token of any weight.

    With named token weights gradients must be empty before: the whole of them is divided at the end.

    Raises:
        ValueError: named token weights, and gradients of an earlier call.
        TrainingStopped: a loss is not finite, or a divergence that cannot be negative is.
    """
    device = next(module.parameters()).device
    weight, tokens = _counted(batches, device)
    if tokens == 0 or weight == 0:
        return None
    terms = prepared(terms, batches)
    # A rank without scored tokens sums as many numbers as the others.
    totals = [name for _, term in terms for name in term.totals]
    if "weight" in totals and any(p.grad is not None for p in module.parameters()):
        raise ValueError("named token weights need empty gradients: call zero_grad(set_to_none=True) first")
    summed = exact.zero(device)
    metrics = {name: torch.zeros_like(summed) for name in totals}
    estimated, several, by_row = False, False, dict[str, Mapping[str, float]]()
    with parallel.cast_once(module, device):
        for index, batch in enumerate(batches):
            batch = batch.to(device)
            signal = teacher.signal(batch.for_teacher) if teacher is not None else Text()
            estimated |= signal.estimated
            if isinstance(signal, Ensemble):
                several, by_row = True, by_row | signal.weights_by_row(batch)
            with parallel.micro_batch(module, last=index == len(batches) - 1):
                loss, sums = _forward(module, batch, signal, terms)
                # The wrappers average over ranks; the divisor already counts all of them.
                scaled = loss * (ranks.world() / weight)
                (scaler.scale(scaled) if scaler is not None else scaled).backward()
            summed += exact.wide(loss.detach())
            for name, value in sums.items():
                metrics[name] = metrics.get(name, torch.zeros_like(summed)) + exact.wide(value)
    names = sorted(metrics)
    values = ranks.total(torch.stack([summed, *(metrics[n] for n in names)])).tolist()
    by_name = dict(zip(names, values[1:], strict=True))
    if "weight" in by_name:
        # The weights came from the distributions, so the gradient has been divided by another sum.
        if by_name["weight"] == 0:
            return None
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(weight / by_name["weight"])
        weight = by_name.pop("weight")
    if not estimated:
        for _, term in terms:
            term.check(by_name, tokens)
    if several:  # in every process, each of which has a batch
        by_row = {row: of_row for part in ranks.gather(by_row) for row, of_row in part.items()}
    return StepResult(values[0], weight, tokens, by_name, by_row)


def _counted(batches: Sequence[Batch], device: torch.device) -> tuple[float, int]:
    """Sum the divisor of a step and its scored tokens over all ranks."""
    weight = float(sum(float(denominator(batch)) for batch in batches))
    tokens = float(sum(batch.count for batch in batches))
    parts = torch.tensor([weight, tokens], dtype=torch.float64, device=exact.home(device))
    both = ranks.total(parts).tolist()
    return both[0], int(both[1])


def _forward(
    module: nn.Module, batch: Batch, signal: Signal, terms: Sequence[tuple[float, Term]]
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Compute the summed loss of a batch and its metric sums; a loss that is not finite stops the training."""
    try:
        loss, _, sums = module(batch, signal, terms)
    except NotFinite as error:
        raise TrainingStopped(
            f"{error.message.rstrip('.')}, in row {batch.row_of(error.position)}.",
            fix="Check the teacher on this row (potstill check), or lower the learning rate.",
        ) from error
    if not torch.isfinite(loss):
        names = " + ".join(term.name for _, term in terms)
        rows = ", ".join(batch.row_ids[:8]) + (" …" if len(batch.row_ids) > 8 else "")
        raise TrainingStopped(
            f"the {names} loss is {loss.item()} on rows {rows}.",
            fix="Check the teacher on these rows (potstill check), or lower the learning rate.",
        )
    return loss, sums
