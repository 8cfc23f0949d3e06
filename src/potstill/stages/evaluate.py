"""Teacher, untrained and trained student on the same held-out rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.evaluate import likelihood, stats, text
from potstill.generate import local
from potstill.generate.sampling import Sampling
from potstill.models import loading
from potstill.stages.common import ModelRef, World, produce, write_lines
from potstill.stages.student import facts_of
from potstill.store.artifacts import Artifact, write_json
from potstill.types import Example, Metric

RESULT = "evaluation.json"
SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Question:
    """A held-out prompt that is answered in text, and the teacher's answer in the data."""

    row_id: str
    prompt_ids: tuple[int, ...]
    teacher_prompt_ids: tuple[int, ...]
    prompt: str
    reference: str
    reference_tokens: int
    family: str = ""
    unseen: bool = False


@dataclass(frozen=True)
class Reader:
    """How a model's text begins and ends."""

    vocabulary: int
    pad_id: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """What is measured. `students` maps a role (before, after, control) to its artifact; `own` is how the
    teacher reads and writes."""

    name: str
    teacher: ModelRef
    students: Mapping[str, Artifact]
    examples: Sequence[Example]
    questions: Sequence[Question]
    metrics: tuple[str, ...]
    max_new_tokens: int
    resamples: int
    vocabulary: int
    pad_id: int
    stop_ids: tuple[int, ...]
    own: Reader
    foreign: str  # why the teacher's distribution cannot be compared; empty if it can
    forward_kl: likelihood.Divergence
    reverse_kl: likelihood.Divergence
    batch_rows: int = 32


def run(world: World, job: Job) -> Artifact:
    """The evaluation's figures, each with n and a 95 % interval by resampling prompts."""
    inputs = {
        "teacher": [job.teacher.fingerprint, str(job.teacher.dtype)],
        "students": {role: artifact.key for role, artifact in job.students.items()},
        "examples": [[e.row_id, e.input_ids, e.scored] for e in job.examples],
        "questions": [astuple(q) for q in job.questions],
        "metrics": job.metrics,
        "max_new_tokens": job.max_new_tokens,
        "resamples": job.resamples,
        "seed": world.seed,
    }
    return produce(world, "evaluate", job.name, inputs, lambda folder: _build(world, job, folder))


def _build(world: World, job: Job, folder: Path) -> Mapping[str, Any]:
    teacher = job.teacher.load(world.device)
    tables: dict[str, dict[str, Metric]] = {}
    answers: dict[str, list[text.Answer]] = {}
    speeds: dict[str, float] = {}
    how: dict[str, Any] = {"resamples": job.resamples, "seed": world.seed}
    if job.questions and _wants_text(job):
        answers["teacher"], speeds["teacher"] = _answers(
            world, job, teacher.model, teacher.tokenizer, "teacher"
        )
    reference: dict[str, Metric] = {}
    for role, artifact in job.students.items():
        source = loading.find_source(str(artifact.path / "student"))
        student = loading.load(source, dtype=job.teacher.dtype, device=world.device)
        tables[role] = {}
        if {"likelihood", "agreement"} & set(job.metrics):
            scores = _likelihood(world, job, student.model, teacher.model, role)
            tables[role] |= _figures(scores, job, world.seed)
            if not job.foreign:
                reference = {"ppl": scores.perplexity("teacher_cross_entropy", **how)}
        if job.questions and _wants_text(job):
            answers[role], speeds[role] = _answers(world, job, student.model, student.tokenizer, role)
        del student
    tables["teacher"] = reference
    behaviour: dict[str, dict[str, Metric]] = {}
    for role, written in answers.items():
        if "rouge_l" in job.metrics:
            tables[role]["rouge_l"] = text.rouge_l(written, [q.reference for q in job.questions], **how)
        behaviour[role] = {
            "stop_rate": text.stop_rate(written, **how),
            "length_ratio": text.length_ratio(written, [q.reference_tokens for q in job.questions], **how),
            "repetition": text.repetition(written, **how),
            "unfinished_reasoning": text.unfinished_reasoning(written, **how),
        }
    write_json(
        folder / RESULT,
        {
            "models": {
                role: {k: as_json(m) for k, m in table.items()} | (_absent(job) if role != "teacher" else {})
                for role, table in tables.items()
            },
            "behaviour": {r: {k: as_json(m) for k, m in table.items()} for r, table in behaviour.items()},
            "retention": _retention(tables, job, world.seed),
            "speed": speeds if "speed" in job.metrics else {},
            "scored_tokens": sum(e.count for e in job.examples),
        },
    )
    write_lines(folder / SAMPLES, _samples(job, answers))
    sizes = {f"teacher_{name}": value for name, value in facts_of(teacher.model).items()}
    return {"prompts": len({e.row_id for e in job.examples}), "questions": len(job.questions), **sizes}


def as_json(metric: Metric) -> dict[str, Any]:
    """{value, low, high, n}; null with a reason where no prompt could be measured."""
    if metric.n == 0:
        return {"value": None, "low": None, "high": None, "n": 0, "reason": "no prompt could be measured"}
    return {"value": metric.value, "low": metric.low, "high": metric.high, "n": metric.n}


def _absent(job: Job) -> dict[str, Any]:
    """Null with a reason for what needs one vocabulary."""
    wanted = {"likelihood": ("forward_kl", "reverse_kl"), "agreement": ("agreement", "agreement_top5")}
    names = [name for metric in job.metrics for name in wanted.get(metric, ())]
    return {k: v for n in names for k, v in ((n, None), (f"{n}_reason", job.foreign))} if job.foreign else {}


def _wants_text(job: Job) -> bool:
    return bool({"rouge_l", "speed"} & set(job.metrics))


def _likelihood(
    world: World, job: Job, student: torch.nn.Module, teacher: torch.nn.Module, role: str
) -> likelihood.Scores:
    with world.console.bar(f"{job.name}: likelihood, {role}", len(job.examples)) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done)
            world.stop_if_asked()

        return likelihood.measure(
            student,
            None if job.foreign else teacher,
            job.examples,
            vocabulary=job.vocabulary,
            pad_id=job.pad_id,
            forward_kl=job.forward_kl,
            reverse_kl=job.reverse_kl,
            on_progress=progress,
        )


def _figures(scores: likelihood.Scores, job: Job, seed: int) -> dict[str, Metric]:
    how: dict[str, Any] = {"resamples": job.resamples, "seed": seed}
    figures = {}
    if "likelihood" in job.metrics:
        named = () if job.foreign else ("forward_kl", "reverse_kl")
        figures = {name: scores.metric(name, **how) for name in named} | {"ppl": scores.perplexity(**how)}
    if "agreement" in job.metrics and not job.foreign:
        figures["agreement"] = scores.metric("agreement", **how)
        figures["agreement_top5"] = scores.metric("agreement_top5", **how)
    return figures


def _answers(
    world: World, job: Job, model: torch.nn.Module, tokenizer: Any, role: str
) -> tuple[list[text.Answer], float]:
    """Greedy answers in the questions' order, and tokens per second."""
    as_teacher = role == "teacher"
    reader = job.own if as_teacher else Reader(job.vocabulary, job.pad_id, job.stop_ids)
    written: dict[int, text.Answer] = {}
    started, tokens = time.monotonic(), 0
    with world.console.bar(f"{job.name}: answers, {role}", len(job.questions)) as bar:
        for completion in local.generate(
            model,
            [q.teacher_prompt_ids if as_teacher else q.prompt_ids for q in job.questions],
            Sampling(max_new_tokens=job.max_new_tokens, temperature=0.0),
            stop_ids=reader.stop_ids,
            pad_id=reader.pad_id,
            seed=world.seed,
            batch_rows=job.batch_rows,
            vocabulary=reader.vocabulary,
            on_progress=lambda progress: bar.update(progress.done),
            should_stop=lambda: bool(world.stop_signal()),
        ):
            body = tokenizer.decode(
                list(completion.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            row = job.questions[completion.index].row_id
            written[completion.index] = text.Answer(
                row, body, len(completion.ids), completion.finish == "stop"
            )
            tokens += len(completion.ids)
    world.stop_if_asked()
    return [written[index] for index in range(len(job.questions))], tokens / max(
        time.monotonic() - started, 1e-9
    )


def _retention(tables: Mapping[str, Mapping[str, Metric]], job: Job, seed: int) -> dict[str, Any]:
    """For each higher-is-better score that the teacher has too: what share of it the student kept."""
    kept: dict[str, Any] = {}
    for name in ("rouge_l",):
        teacher, student = tables["teacher"].get(name), tables.get("after", {}).get(name)
        if teacher is None or student is None:
            continue
        control = tables.get("control", {}).get(name)
        share = stats.retained(teacher, student, resamples=job.resamples, seed=seed)
        row: dict[str, Any] = {
            "teacher": as_json(teacher),
            "student": as_json(student),
            "control": None if control is None else as_json(control),
        }
        if control is None:
            row["control_reason"] = "the recipe has no control stage"
        if isinstance(share, str):
            row |= {"ratio": None, "ci95": None, "ratio_reason": share}
        else:
            row |= {"ratio": {"value": share.value, "n": share.n}, "ci95": [share.low, share.high]}
        kept[name] = row
    return kept


def _samples(job: Job, answers: Mapping[str, Sequence[text.Answer]]) -> list[dict[str, Any]]:
    return [
        {
            "row_id": question.row_id,
            "prompt": question.prompt,
            "reference": question.reference,
            "family": question.family,
            "unseen": question.unseen,
            "answers": {
                role: {"text": written[index].text, "stopped": written[index].stopped}
                for role, written in answers.items()
            },
        }
        for index, question in enumerate(job.questions)
    ]
