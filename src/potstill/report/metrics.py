"""What each measured quantity is called, means, and in which direction it is good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["teacher", "before", "after", "control"]

ROLES: Mapping[Role, str] = {
    "teacher": "Teacher",
    "before": "Untrained student",
    "after": "Distilled student",
    "control": "Control student",
}


@dataclass(frozen=True)
class Metric:
    """A row of the result table. `own` is the teacher's value against itself, by definition."""

    key: str
    label: str
    unit: str = ""
    lower_is_better: bool | None = None
    percent: bool = False
    own: str = ""
    meaning: str = ""

    @property
    def direction(self) -> str:
        """Which way is good, in words."""
        return {True: "lower is better", False: "higher is better", None: ""}[self.lower_is_better]


KNOWN = (
    Metric(
        "forward_kl",
        "KL(teacher‖student)",
        "nats per token",
        lower_is_better=True,
        own="0 by definition",
        meaning="How much of the teacher's distribution the student misses: "
        "the mean over tokens of Σ p · log(p / q), with p the teacher and q the student.",
    ),
    Metric(
        "reverse_kl",
        "KL(student‖teacher)",
        "nats per token",
        lower_is_better=True,
        own="0 by definition",
        meaning="How much the student believes that the teacher does not: the mean of Σ q · log(q / p).",
    ),
    Metric(
        "agreement",
        "Top-1 agreement",
        lower_is_better=False,
        percent=True,
        own="100 % by definition",
        meaning="How often both models rank the same token first.",
    ),
    Metric(
        "agreement_top5",
        "Top-5 agreement",
        lower_is_better=False,
        percent=True,
        own="100 % by definition",
        meaning="How often the teacher's first token is among the student's first five.",
    ),
    Metric(
        "ppl",
        "Perplexity",
        lower_is_better=True,
        meaning="exp of the mean negative log-likelihood of the held-out answers, per token.",
    ),
    Metric(
        "rouge_l",
        "ROUGE-L",
        lower_is_better=False,
        meaning="Longest common subsequence of a model's answer and the reference, F-measure from 0 to 1.",
    ),
)


def by_key(key: str) -> Metric:
    """The metric's description; one that is unknown here keeps its own name and claims no direction."""
    return next((metric for metric in KNOWN if metric.key == key), Metric(key, key))


def present(blocks: Iterable[Mapping[str, Any] | None]) -> tuple[Metric, ...]:
    """The metrics that any block measured or gives a reason for, known ones first."""
    keys = {
        key.removesuffix("_reason"): None
        for block in blocks
        for key, value in (block or {}).items()
        if key != "n" and (value is None or key.endswith("_reason") or _is_measured(value))
    }
    known = tuple(metric for metric in KNOWN if metric.key in keys)
    return known + tuple(by_key(key) for key in keys if by_key(key) not in known)


def _is_measured(value: object) -> bool:
    if isinstance(value, Mapping):
        return "value" in value
    return isinstance(value, int | float) and not isinstance(value, bool)
