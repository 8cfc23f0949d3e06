"""Measure one model: its scores and its greedy answers, each an artifact of its own.

They are known by model, rows and settings, so another run takes them from the store, and an evaluation that was
interrupted goes on behind the last one that is whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from potstill.data.questions import Question
from potstill.data.reader import Reader
from potstill.devices import ranks
from potstill.evaluate import scores
from potstill.evaluate.scores import Scores
from potstill.evaluate.subject import Answer
from potstill.generate import local
from potstill.generate.sampling import Sampling
from potstill.models import anatomy
from potstill.models.loading import Loaded
from potstill.objectives.token import Divergence
from potstill.recipe import plugins
from potstill.signals.teacher import Teacher
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._training_rows import scored_rows
from potstill.store.artifacts import Artifact
from potstill.store.disk import write_json
from potstill.store.lines import read_lines, write_lines
from potstill.types import Example

VERSION = 2  # raised when a measurement changes its meaning
SCORES = "scores.json"
ANSWERS = "answers.jsonl"
BATCH_ROWS = 32
PORTION = 2 * BATCH_ROWS


@dataclass(frozen=True)
class Model:
    """A model under measurement in the stage `stage`. Its weights are loaded once something must be measured."""

    stage: str
    role: str
    key: str  # identifies its weights
    load: Callable[[], Loaded]
    reader: Reader
    context: Context

    @cached_property
    def loaded(self) -> Loaded:
        return self.load()

    @property
    def inputs(self) -> dict[str, Any]:
        """What every measurement of it depends on."""
        return {
            "version": VERSION,
            "model": self.key,
            "dtype": str(getattr(self.context.setup.teacher, "dtype", torch.float32)),
            "vocabulary": self.reader.vocabulary.size,
            "pad_id": self.reader.pad_id,
            "unused": self.reader.unused_ids,
        }


def scores_of(model: Model, teacher: Teacher | None, examples: Sequence[Example]) -> tuple[Scores, Artifact]:
    """The model's scores against the teacher's distribution; against none, where it cannot be compared."""
    context, name = model.context, f"{model.stage}: likelihood, {model.role}"
    readers, size = context.setup.readers, model.reader.vocabulary.size
    ids: dict[str, Any] = {"vocabulary": size, "own_ids": None, "pad_id": model.reader.pad_id}
    if teacher is not None:
        ids = {
            "vocabulary": readers.shared_ids,
            "own_ids": size if readers.partial else None,
            "pad_id": readers.padding,
        }

    def build(folder: Path) -> Mapping[str, Any]:
        forward_kl, reverse_kl = (
            Divergence.from_module(plugins.load("divergences", name)) for name in ("forward_kl", "reverse_kl")
        )
        with context.console.bar(name, len(examples)) as bar:

            def progress(done: int, total: int) -> None:
                bar.update(done)
                context.stop_together()

            result = scores.score(
                model.loaded.model,
                teacher,
                examples,
                **ids,
                forward_kl=forward_kl,
                reverse_kl=reverse_kl,
                on_progress=progress,
            )
        if ranks.first():
            write_json(folder / SCORES, asdict(result))
        return teacher_sizes(teacher)

    inputs = model.inputs | {
        "ids": ids,
        "teacher": None if teacher is None else teacher.fingerprint,
        "examples": scored_rows(examples),
    }
    made = produce(context, "scores", name, inputs, build, together=True)
    stored = json.loads((made.path / SCORES).read_text(encoding="utf-8"))
    sums = {column: tuple(values) for column, values in stored["sums"].items()}
    if unstated := sum(sums.get(scores.UNSTATED, ())):
        context.console.warn(
            f"{name}: of {unstated:.0f} of {sum(stored['tokens']):.0f} tokens the teacher states only ids that the "
            "student lacks; they count as 0 in both lower bounds."
        )
    return Scores(tuple(stored["row_ids"]), tuple(stored["tokens"]), sums), made


def answers_of(
    model: Model, questions: Sequence[Question], max_new_tokens: int
) -> tuple[list[Answer], Artifact]:
    """The model's greedy answers in the questions' order, and the artifact that says how long they took."""
    context, name = model.context, f"{model.stage}: answers, {model.role}"
    as_teacher = model.role == "teacher"
    prompts = [q.teacher_prompt_ids if as_teacher else q.prompt_ids for q in questions]

    def build(folder: Path) -> Mapping[str, Any]:
        written: dict[int, Answer] = {}
        loaded = model.loaded.model  # before the clock starts
        started, portions = time.monotonic(), _portions(prompts)
        with context.console.bar(name, sum(map(len, portions))) as bar:
            for portion in portions:
                for completion in local.generate(
                    loaded,
                    [prompts[index] for index in portion],
                    Sampling(max_new_tokens=max_new_tokens, temperature=0.0),
                    stop_ids=model.reader.stop_ids,
                    pad_id=model.reader.pad_id,
                    seed=context.setup.data_seed,
                    batch_rows=BATCH_ROWS,
                    vocabulary=model.reader.vocabulary.size,
                    unused=model.reader.unused_ids,
                    should_stop=lambda: bool(context.stop_signal()),
                ):
                    text = model.reader.decode(completion.ids)
                    answer = Answer(text, len(completion.ids), completion.finish == "stop")
                    written[portion[completion.index]] = answer
                    bar.update(len(written))
                context.stop_together()
        # Of several processes each has taken its time; a token's rate is that of one.
        seconds = sum(ranks.gather(time.monotonic() - started))
        answers = {index: answer for part in ranks.gather(written) for index, answer in part.items()}
        if ranks.first():
            write_lines(folder / ANSWERS, (asdict(answers[index]) for index in range(len(questions))))
        return {"writing_seconds": seconds, **(teacher_sizes(context.setup.teacher) if as_teacher else {})}

    inputs = model.inputs | {
        "prompts": prompts,
        "stop_ids": sorted(model.reader.stop_ids),
        "max_new_tokens": max_new_tokens,
        "batch_rows": BATCH_ROWS,
    }
    made = produce(context, "greedy", name, inputs, build, together=True)
    return [Answer(**line) for line in read_lines(made.path / ANSWERS)], made


def _portions(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """This process's questions in fixed portions: in half precision the rows of a batch round each other, and an
    answer must not depend on how many processes share the work. Each process has as many, some perhaps empty."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    portions = [order[start : start + PORTION] for start in range(0, len(order), PORTION)]
    return [*ranks.mine([*portions, *[[]] * (-len(portions) % ranks.world())])]


def teacher_sizes(teacher: Teacher | None) -> dict[str, int]:
    """The parameters and bytes of a teacher whose weights are here, or were."""
    if teacher is not None and hasattr(teacher, "sizes"):
        return dict(teacher.sizes)
    if teacher is None or not hasattr(teacher, "loaded"):
        return {}
    sizes = anatomy.sizes(teacher.loaded().model)
    return {f"teacher_{name}": value for name, value in sizes.items()}
