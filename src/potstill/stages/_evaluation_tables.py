"""The tables of an evaluation: of each model, of what it kept, of differences, and the answers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.errors import RecipeError
from potstill.evaluate import by_prompt, stats
from potstill.evaluate.subject import Answer, Metric
from potstill.stages._evaluated import Job, Table
from potstill.stages._training_rows import scored_rows
from potstill.store.artifacts import key_of
from potstill.types import Figure


def stored(table: Table) -> dict[str, dict[str, Any]]:
    """A table as `evaluation.json` keeps it."""
    return {key: figure.stored() for key, figure in table.items()}


def by_stage(job: Job, tables: Mapping[str, Table]) -> list[Table]:
    """Each training stage against what was before it, on the same prompts, where there is more than one."""
    roles = [role for role in job.students if role != "control"]
    if len(roles) < 3:
        return []
    return [
        {
            key: stats.difference(
                figure, tables[one][key], resamples=job.resamples, seed=job.context.setup.data_seed
            )
            for key, figure in tables[other].items()
            if key in tables[one] and figure.better and figure.place != "cost"
        }
        for one, other in itertools.pairwise(roles)
    ]


def table_of(job: Job, measured: Sequence[tuple[Metric, Sequence[Figure]]]) -> Table:
    """The figures of one model by their keys.

    Raises:
        RecipeError: two metrics give a figure of the same key.
    """
    table: Table = {}
    for metric, figures in measured:
        for figure in figures:
            if figure.key in table:
                raise RecipeError(
                    f"the metric {metric.name} gives {figure.key}, which another metric gives too.",
                    fix="Leave one of them out, or give its figure another key.",
                    path=f"{job.name}.metrics",
                )
            table[figure.key] = figure
    return table


def prompts_of(job: Job, measured: Sequence[tuple[Metric, Sequence[Figure]]]) -> dict[str, Any]:
    """The trained student's figures prompt by prompt, with what they were measured on."""
    scored = key_of("scored", {"rows": scored_rows(job.examples)})
    asked = key_of("asked", {"rows": [[q.row_id, q.prompt, q.gold, q.written] for q in job.questions]})
    entries = {
        figure.key: by_prompt.stored(figure, asked if "answers" in metric.needs else scored)
        for metric, figures in measured
        for figure in figures
    }
    return {key: entry for key, entry in entries.items() if entry is not None}


def retention(job: Job, teacher: Table, student: Table) -> Table:
    """What share the student kept of each of the teacher's scores that is better when higher."""
    return {
        key: stats.retained(figure, student[key], resamples=job.resamples, seed=job.context.setup.data_seed)
        for key, figure in teacher.items()
        if figure.better == "up" and figure.place in ("headline", "result") and figure.pairs
        if key in student
    }


def differences(job: Job, tables: Mapping[str, Table]) -> dict[str, Table]:
    """The trained student against each other model, on the same prompts; of figures that have a direction."""
    after = tables.get("after", {})
    return {
        role: {
            key: stats.difference(
                figure, table[key], resamples=job.resamples, seed=job.context.setup.data_seed
            )
            for key, figure in after.items()
            if key in table and figure.better and figure.place != "cost"
        }
        for role, table in tables.items()
        if after and role in ("before", "control", "teacher")
    }


def samples_of(job: Job, answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """Each question with every model's answer."""
    return [
        {
            "row_id": question.row_id,
            "prompt": question.prompt,
            "messages": [{"role": role, "content": text} for role, text in question.turns],
            "reference": question.reference,
            "gold": question.gold,
            "written": question.written,
            "family": question.family,
            "unseen": question.unseen,
            "answers": {
                role: {"text": written[index].text, "stopped": written[index].stopped}
                for role, written in answers.items()
                if written
            },
        }
        for index, question in enumerate(job.questions)
    ]
