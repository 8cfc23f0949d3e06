"""How a model's free-running text looks: whether it stops, runs long, loops or leaves its reasoning open."""

from __future__ import annotations

from potstill.data.policies import CLOSE, OPEN
from potstill.evaluate.subject import Subject
from potstill.types import Figure

STOP_RATE = Figure(
    "stop_rate",
    label="Stops by itself",
    unit="share",
    better="up",
    place="behaviour",
    meaning="The share of answers that the model ended itself.",
)
LENGTH_RATIO = Figure(
    "length_ratio",
    label="Length, teacher = 1",
    place="behaviour",
    meaning="Tokens written over the tokens of the teacher's answers.",
)
REPETITION = Figure(
    "repetition",
    label="Repeated 4-grams",
    unit="share",
    better="down",
    place="behaviour",
    meaning="The share of word 4-grams that occurred before in the same answer.",
)
UNFINISHED_REASONING = Figure(
    "unfinished_reasoning",
    label="Reasoning left open",
    unit="share",
    better="down",
    place="behaviour",
    meaning="The share of answers whose last <think> is never closed: a fault of form, not of content.",
)
FIGURES = (STOP_RATE, LENGTH_RATIO, REPETITION, UNFINISHED_REASONING)
NEEDS = frozenset({"answers"})
FREE = True  # measured whenever another metric needs the answers too


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Four figures of the greedy answers."""
    answers = subject.answers
    repeated = [_repeated(answer.text.split()) for answer in answers]
    return (
        subject.ratio(STOP_RATE, [float(a.stopped) for a in answers]),
        subject.ratio(
            LENGTH_RATIO, [a.tokens for a in answers], [q.reference_tokens for q in subject.questions]
        ),
        subject.ratio(REPETITION, [pair[0] for pair in repeated], [pair[1] for pair in repeated]),
        subject.ratio(
            UNFINISHED_REASONING, [float(a.text.rfind(OPEN) > a.text.rfind(CLOSE)) for a in answers]
        ),
    )


def _repeated(words: list[str]) -> tuple[float, float]:
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return float(len(grams) - len(set(grams))), float(len(grams))
