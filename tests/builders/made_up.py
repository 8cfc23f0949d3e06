"""A made-up run for the report's tests: every number here was invented, none was measured."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from potstill.data.split import Overlap
from potstill.recipe.defaults import Default
from potstill.report.content import Content
from potstill.report.curves import Curve
from potstill.report.figures import about
from potstill.stages._metrics import figures_of_ours
from potstill.types import Figure

FIGURES = {
    figure.key: about(figure)
    for name in ("likelihood", "agreement", "rouge_l", "behaviour", "speed")
    for figure in figures_of_ours()[name]
} | {"ifeval": about(Figure("ifeval", better="up"))}


def measured(value: float, half: float, n: int = 200) -> dict[str, float]:
    """A summary's measured value with a symmetric interval."""
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def behaviour(stop: float, length: float, repeats: float) -> dict[str, Any]:
    """A summary's behaviour of one model."""
    values = {"stop_rate": stop, "length_ratio": length, "repetition": repeats, "unfinished_reasoning": 0.0}
    return {key: measured(value, 0.04 * value, 60) for key, value in values.items()}


def summary() -> dict[str, Any]:
    """A complete summary.json."""
    return {
        "name": "quickstart",
        "teacher": {"name": "made-up/Teacher-135M-Instruct", "params": 134_515_008, "bytes": 269_060_552,
                    "licence": "apache-2.0"},
        "student": {
            "name": "made-up/student-20-layers",
            "params": 98_000_000,
            "bytes": 196_000_000,
            "source": "20 of 30 layers kept, by block influence",
        },
        "figures": FIGURES,
        "before": {
            "forward_kl": measured(3.0, 0.12),
            "reverse_kl": measured(3.41, 0.2),
            "agreement": measured(0.312, 0.02),
            "agreement_top5": measured(0.544, 0.02),
            "ppl": measured(88.1, 6.0),
            "rouge_l": measured(0.112, 0.015),
            "n": 200,
        },
        "after": {
            "forward_kl": measured(0.45, 0.03),
            "reverse_kl": measured(0.52, 0.04),
            "agreement": measured(0.731, 0.012),
            "agreement_top5": measured(0.921, 0.008),
            "ppl": measured(6.9, 0.4),
            "rouge_l": measured(0.341, 0.02),
            "n": 200,
        },
        "control": {
            "forward_kl": measured(0.81, 0.05),
            "reverse_kl": measured(0.9, 0.06),
            "agreement": measured(0.643, 0.014),
            "agreement_top5": measured(0.87, 0.01),
            "ppl": measured(7.4, 0.4),
            "rouge_l": None,
            "rouge_l_reason": "the control student wrote no answers in this run",
            "n": 200,
        },
        "reference": {
            "forward_kl": {"value": 0.0, "reason": "by definition"},
            "reverse_kl": {"value": 0.0, "reason": "by definition"},
            "ppl": measured(4.4, 0.2),
            "agreement": {"value": 1.0, "reason": "by definition"},
            "agreement_top5": {"value": 1.0, "reason": "by definition"},
            "rouge_l": measured(0.411, 0.02),
        },
        "differences": {
            "control": {
                "forward_kl": measured(-0.36, 0.05),
                "reverse_kl": measured(-0.38, 0.06),
                "agreement": measured(0.088, 0.012),
                "agreement_top5": measured(0.051, 0.01),
                "ppl": measured(-0.5, 0.6),
                "rouge_l": None,
                "rouge_l_reason": "the control student wrote no answers in this run",
            }
        },
        "behaviour": {
            "teacher": behaviour(0.97, 1.0, 0.02),
            "before": behaviour(0.08, 2.9, 0.71),
            "after": behaviour(0.94, 1.05, 0.02),
        },
        "cost": {
            role: {"generation_tokens_per_second": {"value": speed, "reason": "timed once"}}
            for role, speed in {"teacher": 95.2, "before": 130.4, "after": 128.9}.items()
        },
        "retention": {
            "rouge_l": {"teacher": 0.411, "student": 0.341, "control": None, "ratio": 0.83,
                        "ci95": [0.79, 0.87], "control_reason": "the control student wrote no answers"},
            "ifeval": {"teacher": 0.02, "student": 0.01, "control": 0.01, "ratio": None, "ci95": None,
                       "ratio_reason": "the teacher's interval includes 0"},
        },
        "train": {"steps": 840, "tokens": 6_881_280, "tokens_per_second": 2143.0, "seconds": 3211.0,
                  "peak_rss_bytes": 3_120_000_000},
        "recipe_hash": "9f2c4e" + "0" * 58,
        "data": {"train": {"rows": 4400, "sha256": "5e" * 32}, "heldout": {"rows": 200, "sha256": "a1" * 32}},
        "made": {"at": "2026-01-31 09:30 UTC", "machine": "Linux, x86_64, 2 processors, 16.8 GB of memory",
                 "precision": {"teacher and measurements": "bfloat16", "distill": "float32"}},
        "seed": 0,
        "versions": {"potstill": "0.1.0", "torch": "2.13.0", "transformers": "5.18.0", "python": "3.11.9"},
    }  # fmt: skip


def curves() -> tuple[Curve, ...]:
    """A noisy loss, validation points and one resume; a second stage with one curve."""
    noise = random.Random(0)
    loss = [(s, 0.42 + 2.6 * math.exp(-s / 120) + noise.gauss(0, 0.05)) for s in range(1, 841)]
    held = [(s, 0.45 + 2.5 * math.exp(-s / 115)) for s in range(0, 841, 84)]
    polish = [(s, 0.5 - 0.0008 * s + noise.gauss(0, 0.02)) for s in range(1, 201)]
    return (
        Curve("distill", "training", tuple(loss), resumes=(410,)),
        Curve("distill", "validation", tuple(held), dots=True, resumes=(410,)),
        Curve("polish", "training", tuple(polish)),
    )


TEACHER = (
    "Boiling water turns to steam because its molecules gain enough energy to leave the liquid. At sea level "
    "this happens at 100 °C; on a mountain the air presses less, so less heat is needed."
)
BEFORE = "Water water the boiling is is of the the steam, and and the the the the"
AFTER = (
    "When water boils, its molecules have enough energy to escape as steam. At sea level that is at 100 °C, "
    "and lower on a mountain."
)


def answers(teacher: str = TEACHER, before: str = BEFORE, after: str = AFTER) -> dict[str, dict[str, Any]]:
    """Three answers; the untrained student never stops."""
    texts = {"teacher": teacher, "before": before, "after": after}
    return {role: {"text": text, "stopped": role != "before"} for role, text in texts.items()}


def sample(prompt: str, answers: dict[str, Any], family: str = "", unseen: bool = False) -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {"prompt": prompt, "answers": answers, "family": family, "unseen": unseen}


def samples() -> tuple[dict[str, Any], ...]:
    """Prompts of seen and unseen families, one in Arabic, one long."""
    ducks = "Janet's ducks lay 16 eggs a day. She eats 3 and bakes with 4. How many are left to sell?"
    eggs = answers("16 − 3 − 4 = 9.\n\nShe sells 9 eggs.", "16 16 16 16", "16 − 7 = 9 eggs.")
    sea = answers("البحر أزرق وواسع.", "البحر البحر البحر", "البحر واسع وجميل.")
    planets = answers(" ".join(["Mercury, Venus, Earth."] * 120), after="Mercury, Venus.")
    return (
        sample("Why does water boil at a lower temperature on a mountain?", answers(), "science"),
        sample(ducks, eggs, "arithmetic", unseen=True),
        sample("اكتب جملة عن البحر.", sea, "arabic", unseen=True),
        sample("Write a limerick about a copper still.", answers(before=""), "verse"),
        sample("List the planets.", planets, "lists"),
    )


def lengths() -> dict[str, list[int]]:
    """Lengths of training and held-out rows, one of them enormous."""
    dice = random.Random(1)
    train = [int(abs(dice.gauss(120, 65))) for _ in range(4400)]
    return {"Training": [*train, 90_000], "Held-out": [int(abs(dice.gauss(130, 70))) for _ in range(200)]}


def parts() -> dict[str, Any]:
    """Every optional part of the page but curves, samples and recipe."""
    return {
        "overlap": Overlap(exact=0, near=2, gram=11, of=200),
        "trained_prompts": 4200,
        "funnel": (
            ("Rows read", 5120, {}),
            ("Usable", 4890, {"no prompt": 12, "longer than 2,048 tokens": 218}),
            ("Distinct", 4611, {"exact duplicates": 190, "near duplicates": 89}),
            ("Answered and kept", 4400, {"loops": 120, "cut at the limit": 91}),
        ),
        "lengths": lengths(),
        "costs": {
            "generate": {
                "seconds": 1840.0,
                "tokens": 910_000,
                "peak_rss_bytes": 1_900_000_000,
                "note": "reused from an earlier run",
            },
            "distill": {"seconds": 3211.0, "tokens": 6_881_280, "peak_rss_bytes": 3_120_000_000},
            "evaluate": {"seconds": 410.0, "tokens": 160_000, "peak_rss_bytes": 2_300_000_000},
        },
        "defaults": (
            Default("distill.learning_rate", "5.0e-4", "auto: freshly cut student"),
            Default("distill.tokens_per_step", 8192, "auto: one minute on this CPU"),
            Default("data.heldout", "200 prompts", "auto: 10 % of the prompts, between 60 and 500"),
        ),
        "command": "potstill run recipe.yaml",
        "notes": (
            "The best of 11 validated checkpoints is shown, chosen on the held-out prompts themselves.",
        ),
    }


RECIPE = """\
version: 1
name: quickstart
seed: 0
teacher: {model: made-up/Teacher-135M-Instruct}
student: {from_teacher: {keep_layers: 20, by: block_influence}}
data:    {train: prompts.jsonl, heldout: heldout.jsonl}
"""


def content(change: Callable[[dict[str, Any]], None] = lambda summary: None) -> Content:
    """The complete page, after `change` edited the summary."""
    edited = summary()
    change(edited)
    return Content(edited, curves(), samples(), RECIPE, **parts())
