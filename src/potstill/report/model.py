"""What a report is made from: plain frozen values; nothing here reads a file or a model."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.report import verdict as judge
from potstill.report.metrics import ROLES, Metric, Role, by_key, present
from potstill.report.numbers import UNKNOWN, Measured, read, ticks


@dataclass(frozen=True)
class Absent:
    """A part that this run has not; the page says `reason`, or leaves the part out when it is empty."""

    reason: str = ""


@dataclass(frozen=True)
class Curve:
    """One line of a stage's chart: (step, value) in `unit`. `dots` for values measured now and then."""

    stage: str
    name: str  # "training", "validation"
    unit: str  # "nats per token"
    points: tuple[tuple[float, float], ...]
    dots: bool = False
    resumes: tuple[float, ...] = ()  # steps at which training went on after an interruption


@dataclass(frozen=True)
class Answer:
    """What one model wrote. `stopped` False: the length limit ended it."""

    role: Role
    text: str
    stopped: bool | None = None


@dataclass(frozen=True)
class Sample:
    """One held-out prompt and the answers to it, side by side."""

    prompt: str
    answers: tuple[Answer, ...]
    family: str = ""
    unseen_family: bool = False  # no prompt of this family was trained on


@dataclass(frozen=True)
class Overlap:
    """How many held-out prompts are also in the training data; None where not looked for."""

    train: int
    heldout: int
    exact: int | None
    near: int | None
    ngram: int | None  # prompts that share any run of `ngram_size` words
    ngram_size: int = 8
    near_rule: str = ""  # how near is near, "Jaccard of word shingles at least 0.8"


@dataclass(frozen=True)
class FunnelStep:
    """How many rows were left after a step, and why others were dropped in it."""

    name: str
    left: int
    dropped: tuple[tuple[str, int], ...] = ()  # (reason, rows)


@dataclass(frozen=True)
class Histogram:
    """Counts of several series over common bins; `open_ended`: the last bin holds all above it too."""

    title: str
    unit: str
    edges: tuple[float, ...]
    series: tuple[tuple[str, tuple[int, ...]], ...]
    open_ended: bool = False


def binned(title: str, unit: str, series: Mapping[str, Sequence[float]], bins: int = 24) -> Histogram:
    """A histogram of values >= 0 up to their common 99th percentile: one giant row squeezes nothing."""
    everything = sorted(value for values in series.values() for value in values) or [0.0]
    top = max(1.0, everything[math.ceil(0.99 * len(everything)) - 1])
    edges = ticks(0.0, top, bins)
    counts = {name: [0] * (len(edges) - 1) for name in series}
    for name, values in series.items():
        for value in values:
            counts[name][min(bisect_right(edges, value), len(edges) - 1) - 1] += 1
    found = tuple((name, tuple(filled)) for name, filled in counts.items())
    return Histogram(title, unit, edges, found, open_ended=everything[-1] > edges[-1])


@dataclass(frozen=True)
class Behaviour:
    """How one model's free-running text looks."""

    role: Role
    stop_rate: Measured  # share of answers that ended by themselves
    length_ratio: Measured  # tokens over the teacher's tokens
    repetition: Measured  # share of 4-grams that are repeats
    unfinished_reasoning: Measured = UNKNOWN  # share of answers whose reasoning is left open


@dataclass(frozen=True)
class StageCost:
    """What a stage took."""

    stage: str
    seconds: float
    tokens: int | None = None
    peak_rss_bytes: int | None = None
    peak_device_bytes: int | None = None
    note: str = ""  # "reused from an earlier run"


@dataclass(frozen=True)
class Default:
    """A setting the recipe left open, what it became and why."""

    path: str
    value: str
    source: str


@dataclass(frozen=True)
class Sections:
    """The optional parts of a report."""

    seeds: tuple[int, ...] = ()
    overlap: Overlap | Absent = Absent("Overlap between training and held-out prompts was not measured.")
    funnel: tuple[FunnelStep, ...] | Absent = Absent()
    lengths: tuple[Histogram, ...] | Absent = Absent()
    behaviour: tuple[Behaviour, ...] | Absent = Absent("Behaviour of free-running text was not measured.")
    costs: tuple[StageCost, ...] | Absent = Absent()
    defaults: tuple[Default, ...] = ()
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # further facts on how the figures came about, one sentence each


@dataclass(frozen=True)
class Model:
    """One column of the result table."""

    role: Role
    name: str
    params: int | None
    bytes: int | None
    source: str = ""


@dataclass(frozen=True)
class Result:
    """One metric for each model; a model without the metric has a Measured that says why."""

    metric: Metric
    cells: tuple[Measured, ...]


@dataclass(frozen=True)
class Retention:
    """How much of the teacher's score arrived."""

    metric: Metric
    teacher: Measured
    student: Measured
    control: Measured
    ratio: Measured


@dataclass(frozen=True)
class Report:
    """Everything the page shows."""

    title: str
    verdict: str
    cautions: tuple[str, ...]
    models: tuple[Model, ...]
    results: tuple[Result, ...]
    retention: tuple[Retention, ...]
    train: Mapping[str, Measured]
    curves: tuple[Curve, ...]
    samples: tuple[Sample, ...]
    sections: Sections
    recipe_text: str
    recipe_hash: str = ""
    finished: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    by_stage: tuple[Mapping[str, Any], ...] = ()  # {stage, before, after}, as in summary.json


TRAIN_KEYS = ("steps", "tokens", "tokens_per_second", "seconds", "peak_rss_bytes")
_BLOCKS: Mapping[Role, str] = {
    "teacher": "reference",
    "before": "before",
    "after": "after",
    "control": "control",
}


def from_run(
    summary: Mapping[str, Any],
    curves: Sequence[Curve] = (),
    samples: Sequence[Sample] = (),
    recipe_text: str = "",
    sections: Sections | None = None,
) -> Report:
    """A report from `summary.json`'s content and what the run folder holds beside it."""
    parts = sections or Sections()
    roles = [role for role in ROLES if role != "control" or summary.get("control")]
    blocks = [summary.get(_BLOCKS[role]) for role in roles]
    teacher, student = (str((summary.get(side) or {}).get("name") or side) for side in ("teacher", "student"))
    return Report(
        title=str(summary.get("name") or f"{student} from {teacher}"),
        verdict=judge.verdict(summary),
        cautions=judge.cautions(summary) + _cautions(parts),
        models=tuple(_model(summary, role) for role in roles),
        results=tuple(
            Result(metric, tuple(read(block, metric.key) for block in blocks)) for metric in present(blocks)
        ),
        retention=tuple(_retention(key, row) for key, row in (summary.get("retention") or {}).items() if row),
        train={key: read(summary.get("train"), key) for key in TRAIN_KEYS},
        curves=tuple(curves),
        samples=tuple(samples),
        sections=parts,
        recipe_text=recipe_text,
        recipe_hash=str(summary.get("recipe_hash") or ""),
        finished=str(summary.get("finished") or ""),
        versions={str(name): str(value) for name, value in (summary.get("versions") or {}).items()},
        by_stage=tuple(summary.get("by_stage") or ()),
    )


def _model(summary: Mapping[str, Any], role: Role) -> Model:
    facts = summary.get("teacher" if role == "teacher" else "student") or {}
    source = str(facts.get("source") or "") if role != "teacher" else ""
    name = str(facts.get("name") or "unnamed")
    return Model(role, name, facts.get("params"), facts.get("bytes"), source)


def _retention(key: str, row: Mapping[str, Any]) -> Retention:
    low, high = row.get("ci95") or (None, None)
    ratio = read(row, "ratio")
    if ratio.value is not None:
        ratio = Measured(ratio.value, low, high, ratio.n)
    teacher, student, control = (read(row, side) for side in ("teacher", "student", "control"))
    return Retention(by_key(key), teacher, student, control, ratio)


def _cautions(sections: Sections) -> tuple[str, ...]:
    found = []
    overlap = sections.overlap
    if isinstance(overlap, Overlap) and (overlap.exact or overlap.near):
        found.append(
            f"Of {overlap.heldout} held-out prompts, {overlap.exact or 0} are also training prompts and "
            f"{overlap.near or 0} nearly so: they flatter the student."
        )
    if len(sections.seeds) == 1:
        found.append(
            f"One seed ({sections.seeds[0]}): the intervals tell nothing of the spread between seeds."
        )
    return tuple(found)
