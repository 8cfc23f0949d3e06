"""The gradient of an on-policy stage on a world small enough to enumerate, made of the recipe's own models.

Five ids, answers of two tokens, and both models' distributions over these ids behind a row's prompt: 25 answers.
The stage's own terms give the expected gradient, weighing each answer by its probability, and that is compared with
the gradient of what they claim to minimise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.check.world import IDS, LENGTH, World
from potstill.objectives.token import TokenLoss
from potstill.recipe.on_policy import PolicyGradientSpec
from potstill.recipe.specs import DivergenceChoice, ends
from potstill.stages._objective import objective_of
from potstill.stages.distill import Distill

SAME = 1e-9  # nats
EXACT, ROUNDED = 1e-9, 1e-5  # relative, of formulas, and of divergences, some of which round
WHOLE = "reverse KL of whole answers"
OWN_TEXT = {
    "sampling_temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "proposals": 0,
    "replay": 0,
    "collect": 1,
    "inner_epochs": 1,
}  # options of a strategy with which the text is drawn from the student's distribution as it is now


@dataclass(frozen=True)
class _Claim:
    """What the expected gradient of a stage is, once what biases it is left out."""

    words: str
    biases: Sequence[str]
    plain: Distill  # the stage without these
    wanted: Tensor
    limit: float
    of_tokens: bool


def proof(spec: Distill, world: World) -> tuple[bool, str]:
    """Whether the expected gradient of a stage's terms on the student's text is what they claim, and a line on it."""
    spec = spec.model_copy(update={"supervised": None, "reference": None, "preference": None})
    gradient = spec.policy_gradient
    if gradient is not None:
        spec = spec.model_copy(update={"policy_gradient": gradient.model_copy(update={"reward": None})})
    elif not max(ends(spec.divergence_weight)):
        return True, "nothing but data and pairs is minimised"
    if torch.allclose(world.student.log_softmax(-1), world.teacher.log_softmax(-1), rtol=0, atol=SAME):
        return True, "not measured; student and teacher say the same here, so that nothing is left to learn"
    tokens = gradient is None or (gradient.discount == 0 and not ends(spec.divergence_weight)[0])
    claim = _of_tokens(spec, world) if tokens else _of_whole_answers(spec, world)
    share, whole = spec.strategy.teacher_share, world.whole_answers()
    got, plain = (world.expected(objective_of(one).terms(0, 2), share) for one in (spec, claim.plain))
    distance = _apart(plain, claim.wanted)
    proven = f"{claim.words}: {distance:.0e} apart on all {IDS**LENGTH} answers of a small world"
    from_whole = f"{_apart(got, whole):.2f} from that of the {WHOLE}, cosine {_cosine(got, whole):.2f}"
    passed, others = distance <= claim.limit and bool(got.isfinite().all()), list(biases_of_text(spec))
    if not (claim.biases or others):
        return passed, f"{proven}; {from_whole}" if claim.of_tokens else proven
    left_out = f" (not counting {', '.join(others)})" if others else ""
    reasons = ", ".join([*claim.biases, *others])
    return passed, f"biased by {reasons}: {from_whole}{left_out}; without these {proven}"


def _of_tokens(spec: Distill, world: World) -> _Claim:
    """The gradient of a divergence at each token."""
    plain, loss, share = _plain_tokens(spec), _token_loss(spec), spec.strategy.teacher_share
    if plain.policy_gradient is not None and plain.policy_gradient.importance == "cumulative":
        share = 0.0  # its weights make the text before a token the student's alone
    wanted = world.token_level(loss, share) * _weight(spec)
    words = f"the gradient of {loss.name} at each token, with the text held still"
    return _Claim(words, list(token_biases(spec)), plain, wanted, ROUNDED, True)


def _of_whole_answers(spec: Distill, world: World) -> _Claim:
    words = f"the gradient of the {WHOLE}, unbiased"
    return _Claim(words, list(biases(spec)), _plain(spec), world.whole_answers(), EXACT, False)


def biases_of_text(spec: Distill) -> Iterator[str]:
    """What makes the text, or its weights, another than the student's own distribution, in words."""
    for name, usual in OWN_TEXT.items():
        value = spec.strategy.option(name)
        if value is not None and value != usual:
            yield f"{name} {value:g}"
    if spec.normalize == "sequence_mean":
        yield "normalize sequence_mean"


def token_biases(spec: Distill) -> Iterator[str]:
    """What keeps a stage from the gradient of its divergence at each token, in words."""
    if spec.support is not None and max(ends(spec.divergence_weight)):
        yield f"support of {spec.support.top_k} ids"
    gradient = spec.policy_gradient
    if gradient is None:
        return
    yield from _corrections(gradient)
    if spec.strategy.teacher_share and gradient.importance == "none":
        yield "importance none"
    if spec.strategy.teacher_share and gradient.clip is not None:
        yield "clip"


def _corrections(gradient: PolicyGradientSpec) -> Iterator[str]:
    if gradient.length_normalized:
        yield "length_normalized"
    if gradient.whiten:
        yield "whiten"
    if gradient.reward_clip is not None:
        yield "reward_clip"


def biases(spec: Distill) -> Iterator[str]:
    """What keeps a policy gradient from being unbiased for the reverse KL of whole answers, in words."""
    gradient = spec.policy_gradient
    assert gradient is not None
    weight, exact = ends(spec.divergence_weight)[0], spec.divergence.name == "reverse_kl"
    if gradient.discount != 1:
        yield f"discount {gradient.discount:g}"
    if weight and not exact:
        yield f"{spec.divergence.name} beside it"
    if weight and exact and spec.counts_from == "this":
        yield "a token's own reward, which the exact term holds too"
    if not (weight and exact) and spec.counts_from == "next":
        yield "returns without a token's own reward"
    if weight and (weight != ends(gradient.weight)[0] or spec.support or ends(spec.temperature)[0] != 1):
        yield "an exact term of another weight, temperature or support"
    yield from _corrections(gradient)
    if gradient.reward_scale != 1 and weight:
        yield "reward_scale"
    if spec.strategy.teacher_share:
        if gradient.importance != "cumulative":
            yield f"importance {gradient.importance}"
        if gradient.clip is not None:
            yield "clip"


def _plain(spec: Distill) -> Distill:
    """The stage without what biases it."""
    exact = spec.divergence.name == "reverse_kl" and ends(spec.divergence_weight)[0] > 0
    plain = PolicyGradientSpec(counts_from="next" if exact else "this", importance="cumulative")
    return spec.model_copy(
        update={
            "policy_gradient": plain,
            "divergence": DivergenceChoice(name="reverse_kl"),
            "divergence_weight": 1.0 if exact else 0.0,
            "temperature": 1.0,
            "support": None,
        }
    )


def _plain_tokens(spec: Distill) -> Distill:
    """The stage without what keeps it from the gradient of its divergence at each token."""
    gradient = spec.policy_gradient
    if gradient is not None:
        weights = "per_token" if gradient.importance == "none" else gradient.importance
        clip = None if spec.strategy.teacher_share else gradient.clip
        off = {"length_normalized": False, "whiten": False, "reward_clip": None}
        gradient = gradient.model_copy(update={**off, "importance": weights, "clip": clip})
    return spec.model_copy(update={"policy_gradient": gradient, "support": None})


def _token_loss(spec: Distill) -> TokenLoss:
    """The divergence that is minimised at each token: the stage's own, or what a return of one reward estimates."""
    if spec.policy_gradient is not None:
        spec = spec.model_copy(
            update={"divergence": DivergenceChoice(name="reverse_kl"), "temperature": 1.0, "ce_weight": 0.0}
        )
    return objective_of(spec.model_copy(update={"policy_gradient": None, "support": None})).at(0, 2)


def _weight(spec: Distill) -> float:
    gradient = spec.policy_gradient
    if gradient is None:
        return float(ends(spec.divergence_weight)[0])
    return float(ends(gradient.weight)[0]) * gradient.reward_scale


def _apart(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))


def _cosine(got: Tensor, wanted: Tensor) -> float:
    return float((got * wanted).sum() / (got.norm() * wanted.norm()).clamp(min=1e-30))
