"""Write the table of `docs/on-policy-estimators.md` from an enumerable toy. python docs/make_estimators.py [--check]

The toy is that of the tests (`tests/builders/toy.py`), which pin every class; this prints how large the errors are
on several pairs of models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

PAGE = Path(__file__).with_name("on-policy-estimators.md")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from builders.losses import token_loss  # noqa: E402
from builders.toy import Naive, Toy, error  # noqa: E402
from potstill.objectives.by_origin import ByOrigin  # noqa: E402
from potstill.objectives.policy_gradient import PolicyGradient  # noqa: E402
from potstill.objectives.terms import Terms  # noqa: E402
from potstill.train.step import each_row_once  # noqa: E402
from potstill.types import Batch  # noqa: E402

BEGIN, END = "<!-- estimators:begin -->", "<!-- estimators:end -->"
SEEDS = (14, *range(7))  # the first is that of the tests
SHARE = 0.2
EXACT = token_loss("reverse_kl")
UNBIASED, SEMI, BIASED, OTHER = "unbiased", "semi-gradient", "biased", "another target"


def gradient(**settings: Any) -> ByOrigin:
    """The policy gradient on the student's tokens."""
    return ByOrigin(PolicyGradient(**settings), of_student=True)


def with_step(**settings: Any) -> Terms:
    """The exact single step and a policy gradient, weighted alike."""
    weighing = {key: settings[key] for key in ("importance", "teacher_share") if key in settings}
    return [(1.0, ByOrigin(EXACT, of_student=True, **weighing)), (1.0, gradient(**settings))]


@dataclass(frozen=True)
class Estimator:
    """One line of the table; `share` is the teacher's in the mixture that writes the text."""

    name: str
    written: str  # as a recipe writes it
    kind: str
    terms: Terms
    share: float = 0.0
    change: Callable[[Batch], Batch] = lambda batch: batch
    target: Callable[[Toy], Tensor] = Toy.reverse_kl


def _mixed(importance: str) -> dict[str, Any]:
    return {"importance": importance, "teacher_share": SHARE}


ESTIMATORS = (
    Estimator("return R_t", "policy_gradient: {}", UNBIASED, gradient()),
    Estimator(
        "R_t - 1 (the paper's gradient)", "policy_gradient: {baseline: 1}", UNBIASED, gradient(baseline=1.0)
    ),
    Estimator(
        "single step, exact, and R_{t+1} (MiniLLM)",
        "divergence: reverse_kl, policy_gradient: {}",
        UNBIASED,
        with_step(following=True),
    ),
    Estimator(
        "k2 of whole answers, ½ (Σ log r)²",
        "no option",
        UNBIASED,
        Naive(lambda q, p: 0.5 * (q - p).square(), whole=True),
    ),
    Estimator(
        "mixture with the teacher, products of weights",
        "policy_gradient: {importance: cumulative}",
        UNBIASED,
        gradient(**_mixed("cumulative")),
        SHARE,
    ),
    Estimator(
        "the same beside the single step",
        "divergence: reverse_kl, policy_gradient: {importance: cumulative}",
        UNBIASED,
        with_step(following=True, **_mixed("cumulative")),
        SHARE,
    ),
    Estimator("reverse KL of the whole vocabulary (GKD, OPD)", "divergence: reverse_kl", SEMI, EXACT),
    Estimator(
        "sampled token (OPD)",
        "divergence_weight: 0, policy_gradient: {discount: 0}",
        SEMI,
        gradient(discount=0.0),
    ),
    Estimator("k2 of tokens, Σ ½ (log r)²", "no option", SEMI, Naive(lambda q, p: 0.5 * (q - p).square())),
    Estimator(
        "discount 0.95 (MiniLLM's code)", "policy_gradient: {discount: 0.95}", BIASED, gradient(discount=0.95)
    ),
    Estimator(
        "mixture, weights of each token (MiniLLM's paper)",
        "policy_gradient: {importance: per_token}",
        BIASED,
        gradient(**_mixed("per_token")),
        SHARE,
    ),
    Estimator(
        "mixture without weights",
        "policy_gradient: {importance: none}",
        BIASED,
        gradient(**_mixed("none")),
        SHARE,
    ),
    Estimator(
        "divided by the remaining length",
        "policy_gradient: {length_normalized: true}",
        BIASED,
        gradient(length_normalized=True),
    ),
    Estimator(
        "the same beside the single step (MiniLLM's paper)",
        "divergence: reverse_kl, policy_gradient: {length_normalized: true}",
        BIASED,
        with_step(following=True, length_normalized=True),
    ),
    Estimator(
        "rewards clipped at 1 nat", "policy_gradient: {reward_clip: 1}", BIASED, gradient(reward_clip=1.0)
    ),
    Estimator(
        "ratio clipped at 0.2 on a mixture",
        "policy_gradient: {clip: 0.2}",
        BIASED,
        gradient(clip=0.2, **_mixed("per_token")),
        SHARE,
    ),
    Estimator("whitened returns", "policy_gradient: {whiten: true}", BIASED, gradient(whiten=True)),
    Estimator("each answer's mean", "normalize: sequence_mean", BIASED, gradient(), change=each_row_once),
    Estimator("single step and R_t: r_t twice (MiniLLM's code)", "not offered", BIASED, with_step()),
    Estimator("k1 as a loss, Σ log r", "not offered", OTHER, Naive(lambda q, p: q - p, whole=True)),
    Estimator(
        "k3 of whole answers against forward KL",
        "not offered",
        OTHER,
        Naive(lambda q, p: (p - q).exp() - 1 - (p - q), whole=True),
        target=Toy.forward_kl,
    ),
)


@cache
def _batch(seed: int, ends: bool, share: float) -> tuple[Toy, Batch]:
    toy = Toy.of(seed, ends=ends)
    return toy, toy.batch(toy.mixture(share))


def measured(estimator: Estimator, seed: int, ends: bool) -> float:
    """The relative error of an estimator's expected gradient on one toy."""
    toy, batch = _batch(seed, ends, estimator.share)
    return error(toy.gradient(estimator.terms, [estimator.change(batch)]), estimator.target(toy))


def shown(values: list[float]) -> str:
    """The smallest and the largest error; what is rounding alone is 0."""
    low, high = min(values), max(values)
    if high < 1e-12:
        return "0"
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def table() -> Iterator[str]:
    yield "| estimator | in a recipe | class | error, 4 tokens | error, with an end token |"
    yield "| --- | --- | --- | --- | --- |"
    for one in ESTIMATORS:
        errors = (shown([measured(one, seed, ends) for seed in SEEDS]) for ends in (False, True))
        written = f"`{one.written}`" if ":" in one.written else one.written
        yield f"| {one.name} | {written} | {one.kind} | {' | '.join(errors)} |"


def page() -> str:
    """The page with today's table."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return "\n".join([before + BEGIN, *table(), END]) + rest.partition(END)[2]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
