"""Two models that write one text: both read every token, and what is drawn from is made of both distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Combine: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(student's probabilities [B, V], teacher's) -> those that are drawn from."""


def mixture(student: Tensor, teacher: Tensor, *, share: float) -> Tensor:
    """share · p + (1 - share) · q: MiniLLM's teacher-mixed sampling (Gu et al. 2024, arXiv:2306.08543)."""
    return share * teacher + (1 - share) * student


def proposals(student: Tensor, teacher: Tensor, *, top_k: int) -> Tensor:
    """q(y) · 1[y in the teacher's top k] + (1 - Q(top k)) · p(y): speculative distillation as one distribution.

    The student proposes a token; where it is not among the teacher's k likeliest, the teacher draws another one
    (Xu et al. 2025, arXiv:2410.11325). Equally likely tokens are among them or not together.
    """
    inside = teacher >= teacher.topk(min(top_k, teacher.shape[-1])).values[:, -1:]
    refused = student.masked_fill(inside, 0.0).sum(-1, keepdim=True)
    return student.masked_fill(~inside, 0.0) + refused * teacher


@dataclass(frozen=True)
class Caches:
    """The caches of several models, whose rows are selected and joined together."""

    parts: tuple[Any, ...]

    @property
    def layers(self) -> list[Any]:
        return [layer for part in self.parts for layer in part.layers]

    def reorder_cache(self, rows: Tensor) -> None:
        """Keep these rows of all, in this order."""
        for part in self.parts:
            part.reorder_cache(rows)


def positions_of(models: Iterable[nn.Module]) -> Any:
    """A config with as many positions as all models have."""
    limits = [getattr(model.config, "max_position_embeddings", None) for model in models]
    return SimpleNamespace(max_position_embeddings=min(filter(None, limits), default=None))


class Beside(nn.Module):
    """A student and its teacher, called as one model by `decode.Decoder`.

    Its logits are temperature · log r, where r combines both distributions at that temperature: a draw at the
    temperature is a draw from r. `top_p` and `top_k` of the sampling apply to r.

    Args:
        vocabulary: the ids that both models share; both heads are cut to them before the softmax.
        unused: ids below it that are no token, and have no probability.
        temperature: above 0; of both distributions.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        combine: Combine,
        *,
        vocabulary: int | None,
        unused: tuple[int, ...] = (),
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self._combine = combine
        self._vocabulary = vocabulary
        self._unused = unused
        self._temperature = temperature

    @property
    def config(self) -> Any:
        """As many positions as both models have."""
        return positions_of((self.student, self.teacher))

    def forward(self, *, past_key_values: Caches | None, **inputs: Any) -> Any:
        caches = (None, None) if past_key_values is None else past_key_values.parts
        ours = self.student(past_key_values=caches[0], **inputs)
        device = next(self.teacher.parameters()).device
        there = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in inputs.items()}
        # The number format of the student's training is not the teacher's.
        with torch.autocast(device.type, enabled=False):
            theirs = self.teacher(past_key_values=caches[1], **there)
        probabilities = self._combine(
            self._probabilities(ours), self._probabilities(theirs).to(ours.logits.device)
        )
        kept = (ours.past_key_values, theirs.past_key_values)
        return SimpleNamespace(
            logits=(self._temperature * probabilities.log()).unsqueeze(1),
            past_key_values=None if None in kept else Caches(kept),
        )

    def _probabilities(self, output: Any) -> Tensor:
        logits = output.logits[:, -1, : self._vocabulary].float()
        if self._unused:
            logits = logits.index_fill(1, torch.tensor(self._unused, device=logits.device), -torch.inf)
        return (logits / self._temperature).softmax(-1)
