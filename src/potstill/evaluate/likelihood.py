"""Distance from the teacher's distribution, and perplexity of the held-out answers."""

from __future__ import annotations

import numpy as np

from potstill.evaluate.subject import Subject
from potstill.types import Figure

FORWARD_KL = Figure(
    "forward_kl", label="KL(teacher‖student)", unit="nats per token", better="down", place="headline",
    meaning="How much of the teacher's distribution the student misses: "
    "the mean over tokens of Σ p · log(p / q), with p the teacher and q the student.",
)  # fmt: skip
REVERSE_KL = Figure(
    "reverse_kl", label="KL(student‖teacher)", unit="nats per token", better="down",
    meaning="How much the student believes that the teacher does not: the mean of Σ q · log(q / p).",
)  # fmt: skip
PPL = Figure(
    "ppl", label="Perplexity", better="down",
    meaning="exp of the mean negative log-likelihood of the held-out answers, per token.",
)  # fmt: skip
FIGURES = (FORWARD_KL, REVERSE_KL, PPL)
# Given only where one model has ids that the other lacks.
LEFT_OUT = Figure(
    "left_out", label="Mass on ids of its own", unit="share",
    meaning="The probability that the model gives to ids which the other model does not have; "
    "what is measured on the shared ids leaves it out.",
)  # fmt: skip
# Given only of a teacher that states its likeliest ids alone.
COARSE = (
    Figure(
        "forward_kl_bucket", label="KL(teacher‖student), at least", unit="nats per token", better="down",
        meaning="A lower bound of KL(teacher‖student): that of coarser distributions, the ids that the teacher states and "
        "one bucket for all others. Merging outcomes never raises a KL.",
    ),
    Figure(
        "reverse_kl_bucket", label="KL(student‖teacher), at least", unit="nats per token", better="down",
        meaning="A lower bound of KL(student‖teacher): on the ids that the teacher states and one bucket for all others.",
    ),
    Figure(
        "stated_mass", label="Mass on stated ids", unit="share",
        meaning="The teacher's probability on the ids that it states; the nearer to 1, the nearer are the bounds.",
    ),
)  # fmt: skip
# Given only of such a teacher, where one model has ids that the other lacks.
UNSTATED = Figure(
    "unstated", label="Tokens without a stated id", unit="share",
    meaning="The share of tokens of which the teacher states only ids that the student lacks: both lower bounds and the "
    "mass on stated ids count as 0 there.",
)  # fmt: skip
NEEDS = frozenset({"scores"})


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Both KLs at T = 1 on the shared vocabulary, perplexity there, and the mass outside where there is any; lower
    bounds of both where the teacher states its likeliest ids alone."""
    figures = (
        subject.token_mean(FORWARD_KL, teacher=0.0),
        subject.token_mean(REVERSE_KL, teacher=0.0),
        subject.token_mean(PPL, "cross_entropy", transform=np.exp),
    )
    measured = () if subject.scores is None else subject.scores.sums
    return figures + tuple(
        subject.token_mean(one) for one in (LEFT_OUT, *COARSE, UNSTATED) if one.key in measured
    )
