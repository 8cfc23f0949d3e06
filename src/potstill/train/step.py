"""One optimizer step: the only backward().

Losses are sums. A step divides once, by the weight of all tokens it scores over all micro-batches
and all ranks, so the same rows give the same gradient however they are split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from potstill.errors import NotFinite, TrainingStopped
from potstill.models import anatomy
from potstill.objectives.fused import DEFAULT_CHUNK_BYTES, linear_loss
from potstill.objectives.token import TokenLoss, require_finite, require_possible
from potstill.train import parallel
from potstill.types import Batch, Example, Sampled, Signal, Teacher, Text


class StudentModule(nn.Module):
    """Backbone, head and loss as one module, so that a sharded wrapper sees one call.

    forward(batch, signal, loss) -> (sum, weight, metrics): the summed loss, the sum of token weights
    (the count, without weights), and sums of metrics.
    """

    def __init__(
        self,
        student: nn.Module,
        vocabulary: int,
        *,
        autocast: torch.dtype | None = None,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> None:
        super().__init__()
        self.student = student
        self._vocabulary = vocabulary
        self._form = anatomy.head_form(student)
        self._autocast = autocast
        self._chunk_bytes = chunk_bytes

    def forward(
        self, batch: Batch, signal: Signal, loss: TokenLoss, metrics: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        device = batch.input_ids.device
        with torch.autocast(device.type, dtype=self._autocast, enabled=self._autocast is not None):
            states = anatomy.states_of(self.student, batch)
        head = anatomy.head_of(self.student, self._vocabulary, self._form)
        place = batch.places()[0] if loss.weigh is not None else None
        rowwise = loss.rowwise(signal, batch.targets, batch.hard, batch.weights, place, metrics=metrics)
        out = linear_loss(states[batch.predicts], head, rowwise, chunk_bytes=self._chunk_bytes)
        return out.sum, denominator(batch), dict(out.metrics)


def denominator(batch: Batch) -> Tensor:
    """What a batch adds to the step's divisor: its scored tokens, or the sum of their weights."""
    if batch.weights is None:
        return torch.tensor(float(batch.count), device=batch.input_ids.device)
    return batch.weights.sum()


def each_row_once(batch: Batch) -> Batch:
    """The batch with each token's weight divided by its row's count, so that rows count by weight alone."""
    shares = 1.0 / batch.places()[1]
    return replace(batch, weights=shares if batch.weights is None else shares * batch.weights)


def one_row_each(examples: Sequence[Example]) -> list[Example]:
    """Examples that together weigh what their conversations do, for `each_row_once`."""
    return [replace(example, weight=example.weight * example.share) for example in examples]


@dataclass(frozen=True)
class StepResult:
    """Sums over all ranks: loss and metrics, their divisor, and scored tokens."""

    loss: float
    weight: float
    tokens: int
    metrics: Mapping[str, float]

    def means(self) -> dict[str, float]:
        """Per scored token (nats)."""
        return {"loss": self.loss / self.weight} | {k: v / self.tokens for k, v in self.metrics.items()}


def accumulate(
    module: nn.Module,
    teacher: Teacher | None,
    batches: Sequence[Batch],
    loss: TokenLoss,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> StepResult | None:
    """Add the gradient of one optimizer step; None when no rank scores a token of any weight.

    With named token weights gradients must be empty before: the whole of them is divided at the end.

    Raises:
        ValueError: named token weights, and gradients of an earlier call.
        TrainingStopped: a loss is not finite, or a divergence that cannot be negative is.
    """
    if loss.weigh is not None and any(p.grad is not None for p in module.parameters()):
        raise ValueError("named token weights need empty gradients: call zero_grad(set_to_none=True) first")
    device = next(module.parameters()).device
    local = sum((denominator(b) for b in batches), torch.zeros(()))
    counts = (
        torch.stack([local.cpu(), torch.tensor(float(sum(b.count for b in batches)))]).double().to(device)
    )
    weight, tokens = parallel.total(counts).tolist()
    if tokens == 0 or weight == 0:
        return None
    total = torch.zeros((), dtype=torch.float64, device=device)
    # A rank without scored tokens sums as many numbers as the others.
    metrics = {name: torch.zeros_like(total) for name in loss.totals}
    exempt = False
    for batch in batches:
        batch = batch.to(device)
        signal = teacher.signal(batch) if teacher is not None else Text()
        exempt |= isinstance(signal, Sampled)
        try:
            summed, _, sums = module(batch, signal, loss)
        except NotFinite as error:
            row = batch.row_of(error.position)
            raise TrainingStopped(
                f"{error.message.rstrip('.')}, in row {row}.",
                fix="Check the teacher on this row (potstill check), or lower the learning rate.",
            ) from error
        require_finite(summed.detach(), batch.row_ids, loss.divergence.name)
        # The wrappers average over ranks; the divisor already counts all of them.
        scaled = summed * (parallel.world() / weight)
        (scaler.scale(scaled) if scaler is not None else scaled).backward()
        total += summed.detach().double()
        for name, value in sums.items():
            metrics[name] = metrics.get(name, torch.zeros_like(total)) + value
    names = sorted(metrics)
    values = parallel.total(torch.stack([total, *(metrics[n].double() for n in names)])).tolist()
    found = dict(zip(names, values[1:], strict=True))
    if "weight" in found:
        # Weights that come from the distributions are known only now; no token's gradient is kept apart.
        if found["weight"] == 0:
            return None
        _rescale(module, weight / found["weight"])
        weight = found.pop("weight")
    result = StepResult(values[0], weight, int(tokens), found)
    if not exempt:
        require_possible(result.metrics.get("divergence", 0.0), result.tokens, loss)
    return result


def _rescale(module: nn.Module, factor: float) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
