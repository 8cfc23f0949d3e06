"""What a distill stage may minimise besides its divergence, where the student writes text itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from potstill.recipe.specs import (
    Conflict,
    Count,
    DivergenceChoice,
    Positive,
    Schedule,
    Share,
    Spec,
    ends,
)

Weight: TypeAlias = Annotated[float, Field(ge=0)]
Function: TypeAlias = Annotated[str, Field(pattern=r"^[\w.]+:\w+$", examples=["package.module:function"])]
Counted: TypeAlias = Literal["auto", "this", "next"]


def moving_weight(name: str, value: float | Schedule) -> Iterator[Conflict]:
    """Refuse a weight that falls below 0."""
    if min(ends(value)) < 0:
        yield Conflict(name, "must stay at 0 or above at both ends.", "A weight of 0 leaves the term out.")


class PolicyGradientSpec(Spec):
    """The return of log p / q of the student's own tokens, times the gradient of log q of each (MiniLLM)."""

    weight: Weight | Schedule = 1.0
    """Of this term."""
    discount: Share = 1.0
    """γ of later tokens in a return; 1 gives the gradient of whole answers' reverse KL, 0 is on-policy
    distillation on the sampled token, and MiniLLM's official code takes 0.95."""
    counts_from: Counted = "auto"
    """A return begins at its own token or at the next one, where an exact term holds the token itself; auto is next
    beside the stage's reverse_kl, else this."""
    length_normalized: bool = False
    """Divide each return by the number of its tokens; biased towards early tokens."""
    whiten: bool = False
    """Shift and scale returns to mean 0 and deviation 1 over all tokens of a step."""
    clip: Annotated[float, Field(gt=0, lt=1)] | None = None
    """PPO's ε: how far new and old probability may be apart before a token is left out; null does not clip."""
    reward_scale: Positive = 1.0
    """Multiplies log p - log q; MiniLLM's official code divides by 0.5, which is 2 here."""
    reward_clip: Positive | None = None
    """Most nats of one token's reward; null does not clip."""
    baseline: float = 0.0
    """Lowers every return; changes the noise, not what is estimated."""
    importance: Literal["none", "per_token", "cumulative"] = "per_token"
    """Weights of text that the strategy mixes with the teacher's: of each token alone (MiniLLM), or the products
    over tokens, which are unbiased and noisier."""
    reward: Function | None = None
    """What a whole answer is worth besides, in nats: `package.module:function` of the texts of prompt and answer."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from moving_weight("weight", self.weight)
        if self.counts_from == "next" and self.discount == 0:
            yield Conflict(
                "discount",
                "of 0 leaves nothing of a return that begins at the next token.",
                "Set counts_from: this, or a discount above 0.",
            )


class SupervisedSpec(Spec):
    """A loss on tokens that data or teacher wrote, in place of the stage's divergence there."""

    weight: Weight | Schedule = 1.0
    """Of this term."""
    divergence: DivergenceChoice = DivergenceChoice(name="forward_kl")
    """How far the student is from the teacher on these tokens."""
    ce_weight: Share = 0.0
    """Share of the hard-label term; the divergence has the rest."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from moving_weight("weight", self.weight)


class ReferenceSpec(Spec):
    """The distance to the student as it was before this stage, on the text that the student writes."""

    weight: Weight | Schedule = 0.1
    """Of this term."""
    divergence: DivergenceChoice = DivergenceChoice(name="reverse_kl")
    """How far the student is from what it was: reverse_kl is KL(student‖before)."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from moving_weight("weight", self.weight)


class PreferenceSpec(Spec):
    """Pairs: the teacher's answer is preferred to the student's answer to the same prompt (DPKD)."""

    weight: Weight | Schedule = 1.0
    """Of this term, a mean over pairs."""
    beta: Positive = 0.1
    """How strongly a pair's difference of log q / p counts."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from moving_weight("weight", self.weight)


class TopSpec(Spec):
    """The ids that the divergence compares: the teacher's likeliest, renormalised."""

    top_k: Count = 32
    """How many ids at each position."""
    mask_special: bool = True
    """Leave special tokens out, apart from those that end an answer."""
