"""Policy gradient on the student's own tokens: the return of log p / q times the gradient of log q of the drawn token.

    r_t = scale (log p(y_t) - log q_old(y_t)),  R_t = Σ_{t' ≥ t} γ^(t'-t) r_t',  loss = -Σ_t ρ_t A_t,
    ρ_t = w_t q(y_t) / q_old(y_t)

A_t is R_t (less a constant baseline), or R_t - r_t = γ R_{t+1} beside an exact single-step term, which already
holds r_t: MiniLLM (Gu, Dong, Wei & Huang 2023, arXiv:2306.08543), whose official code adds R_t and counts r_t
twice. γ = 0 is on-policy distillation on the sampled token (Thinking Machines 2025). r and A are constants of
the time when the tokens were drawn; only log q moves, so steps on the same text may follow each other. With
γ = 1, one such step and no other correction the gradient is that of the reverse KL of whole answers, unbiased.
What every other setting estimates is in docs/on-policy-estimators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from potstill.devices import ranks
from potstill.objectives.diagnostics import add_sum
from potstill.objectives.drawn import drawn_loss, when_drawn
from potstill.objectives.returns import (
    Importance,
    log_weights,
    mean_and_deviation,
    moments,
    products,
    remaining,
    returns,
)
from potstill.objectives.terms import DRAWN, HIDDEN, StudentView
from potstill.signals.signal import Signal
from potstill.types import Batch, Loss

Reward: TypeAlias = Callable[[str, tuple[int, ...], tuple[int, ...]], float]
"""(row id, ids before the answer, ids of the answer) -> reward of the whole answer."""


@dataclass(frozen=True)
class PolicyGradient:
    """The settings of the term; it reads every scored token that it is given as the student's.

    Args:
        discount: γ in [0, 1].
        following: take R_t - r_t, what comes after the token, beside an exact single-step term.
        length_normalized: divide each sum by the number of its rewards.
        whiten: shift and scale A to mean 0 and deviation 1 over all tokens of the step and all processes.
        clip: ε of PPO: loss max(-A ρ, -A clip(ρ, 1-ε, 1+ε)).
        reward_scale: multiplies log p - log q.
        reward_clip: most of |r| in nats.
        baseline: a constant that A is lowered by.
        importance: weights of text that a mixture with the teacher wrote: none, of each token alone
            (MiniLLM), or of each reward the product up to it, which is unbiased.
        teacher_share: α of that mixture α p + (1-α) q.
        reward: what an answer is worth besides; it is added to its last token's r.
    """

    discount: float = 1.0
    following: bool = False
    length_normalized: bool = False
    whiten: bool = False
    clip: float | None = None
    reward_scale: float = 1.0
    reward_clip: float | None = None
    baseline: float = 0.0
    importance: Importance = "per_token"
    teacher_share: float = 0.0
    reward: Reward | None = None
    whitened_by: tuple[float, float] = (0.0, 1.0)  # mean and deviation of the step, from `prepared`
    rewards: Mapping[tuple[int, ...], float] = field(default_factory=dict)  # by a row's ids, from `prepared`

    name: ClassVar[str] = "policy_gradient"
    needs: ClassVar[frozenset[str]] = frozenset({HIDDEN, DRAWN})
    totals: ClassVar[tuple[str, ...]] = ("policy_gradient", "sampled_reverse_kl", "clipped")

    def prepared(self, batches: Sequence[Batch]) -> PolicyGradient:
        """The term with the rewards of this step's answers, and what whitens their advantages."""
        term = self
        if self.reward is not None:
            answers = {answer.key: answer for batch in batches for answer in answers_of(batch)}
            term = replace(
                self, rewards={key: float(self.reward(*one.parts)) for key, one in answers.items()}
            )
        if self.whiten:
            summed = sum((moments(term.advantages(batch)) for batch in batches), torch.zeros(3).double())
            term = replace(term, whitened_by=mean_and_deviation(ranks.total(summed)))
        return term

    def advantages(self, batch: Batch) -> Tensor:
        """A [N] of the batch's tokens, on the CPU in float64: nothing here depends on the student as it is now.

        Raises:
            ValueError: tokens were not scored when they were drawn.
        """
        student_lp, teacher_lp, owners = when_drawn(batch)
        if not owners.numel():
            return student_lp
        rewards = self.reward_scale * (teacher_lp - student_lp)
        if self.reward_clip is not None:
            rewards = rewards.clamp(-self.reward_clip, self.reward_clip)
        own = rewards.clone()  # what an exact single step holds: nothing of the answer's reward
        if self.reward is not None:
            of_answers = [self.rewards[answer.key] for answer in answers_of(batch)]
            rewards[remaining(owners) == 1] += torch.tensor(of_answers, dtype=torch.float64)
        left, baseline = remaining(owners).double(), torch.full_like(rewards, self.baseline)
        if self.importance == "cumulative":
            weights = products(log_weights(student_lp, teacher_lp, self.teacher_share), owners)
            rewards, own, baseline = rewards * weights, own * weights, baseline * weights
        sums = returns(rewards, owners, self.discount)
        if self.following:
            sums, left = sums - own, left - 1
        if self.length_normalized:
            sums = sums / left.clamp(min=1)
        return sums - baseline

    def weights(self, batch: Batch) -> Tensor:
        """w [N] of ρ: of each token alone, or 1."""
        student_lp, teacher_lp, _ = when_drawn(batch)
        share = self.teacher_share if self.importance == "per_token" else 0.0
        return log_weights(student_lp, teacher_lp, share).exp()

    def __call__(self, student: StudentView, signal: Signal) -> Loss:
        """The term on a batch; the signal is not read."""
        batch, like = student.batch, student.hidden
        student_lp, teacher_lp, _ = when_drawn(batch)
        mean, deviation = self.whitened_by
        advantages = (self.advantages(batch) - mean) / deviation
        dtype = torch.promote_types(like.dtype, torch.float32)
        a, w, old, gap = (
            values.to(dtype).to(like.device)  # in this order: not every device has float64
            for values in (advantages, self.weights(batch), student_lp, student_lp - teacher_lp)
        )
        sums: dict[str, Tensor] = {}

        def surrogate(lp: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            ratio = (lp - old[rows]).exp() * w[rows]
            value, clipped = -a[rows] * ratio, torch.zeros_like(ratio, dtype=torch.bool)
            if self.clip is not None:
                other = -a[rows] * ratio.clamp(1 - self.clip, 1 + self.clip)
                clipped = other > value
                value = torch.where(clipped, other, value)
            add_sum(sums, "clipped", clipped.to(value.dtype))
            add_sum(sums, "policy_gradient", value)
            return value, torch.where(clipped, 0.0, -a[rows] * ratio)

        loss = drawn_loss(self.name, student, surrogate)
        add_sum(
            sums, "sampled_reverse_kl", gap if self.reward_clip is None else gap.clamp(max=self.reward_clip)
        )
        return Loss(loss.sum, loss.count, sums)

    def check(self, sums: Mapping[str, float], tokens: int) -> None:
        """Every value can be."""


@dataclass(frozen=True)
class Answer:
    """One answer of a batch as ids."""

    row_id: str
    key: tuple[int, ...]  # the whole row's
    length: int  # of the answer, at its end

    @property
    def parts(self) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """Row id, the ids before the answer, and those of the answer."""
        cut = len(self.key) - self.length
        return self.row_id, self.key[:cut], self.key[cut:]


def answers_of(batch: Batch) -> list[Answer]:
    """The answers of a batch in order; each row's scored tokens are its end."""
    owners, counts = batch.owners().unique_consecutive(return_counts=True)
    result = []
    for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
        if batch.packed:
            example = (batch.position_ids[0] == 0).cumsum(0) - 1
            row, scored = batch.input_ids[0][example == owner], batch.predicts[0][example == owner]
        else:
            row, scored = batch.input_ids[owner], batch.predicts[owner]
        end = int(scored.nonzero()[-1]) + 2  # behind the last target
        result.append(Answer(batch.row_ids[owner], tuple(row[:end].tolist()), count))
    return result
