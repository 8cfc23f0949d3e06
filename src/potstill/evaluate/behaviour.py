"""How a model's free-running text looks: whether it stops, runs long, loops or leaves its reasoning open."""

from __future__ import annotations

from dataclasses import replace

from potstill.data.policies import CLOSE, OPEN
from potstill.evaluate.subject import Subject
from potstill.generate.health import repeated
from potstill.types import Figure

STOP_RATE = Figure(
    "stop_rate", label="Stops by itself", unit="share", better="up", place="behaviour",
    meaning="The share of answers that the model ended itself.",
)  # fmt: skip
LENGTH_RATIO = Figure(
    "length_ratio", label="Length, scored answers = 1", place="behaviour",
    meaning="Tokens written over the tokens of the answers that the models are scored on.",
)  # fmt: skip
REPETITION = Figure(
    "repetition", label="Repeated 4-grams", unit="share", better="down", place="behaviour",
    meaning="The share of word 4-grams that occurred before in the same answer.",
)  # fmt: skip
UNFINISHED_REASONING = Figure(
    "unfinished_reasoning", label="Reasoning left open", unit="share", better="down", place="behaviour",
    meaning="The share of answers whose last <think> is never closed: a fault of form, not of content.",
)  # fmt: skip
FIGURES = (STOP_RATE, LENGTH_RATIO, REPETITION, UNFINISHED_REASONING)
NEEDS = frozenset({"answers"})
FREE = True  # measured whenever another metric needs the answers too


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Four figures of the greedy answers."""
    answers, lengths = subject.answers, [question.tokens for question in subject.questions]
    whose = "teacher" if any(question.written for question in subject.questions) else "data"
    length = replace(LENGTH_RATIO, label=f"Length, {whose} = 1")
    loops = [repeated(answer.text.split()) for answer in answers]
    return (
        subject.ratio(STOP_RATE, [answer.stopped for answer in answers]),
        subject.ratio(length, [answer.tokens for answer in answers], lengths),
        subject.ratio(REPETITION, [again for again, _ in loops], [grams for _, grams in loops]),
        subject.ratio(UNFINISHED_REASONING, [a.text.rfind(OPEN) > a.text.rfind(CLOSE) for a in answers]),
    )
