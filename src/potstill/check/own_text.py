"""What a check says of stages that train on the student's own text: their estimator, and what a cold start costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from potstill.check import estimator
from potstill.check.reading import prompt_example
from potstill.check.report import Item
from potstill.check.world import world_of
from potstill.check.writing import Amount
from potstill.console import Console
from potstill.data.answers import with_domains
from potstill.data.rows import Row
from potstill.errors import DataError, PotstillError
from potstill.recipe.training import Training
from potstill.stages import _own_text
from potstill.stages._context import Setup
from potstill.stages._privileged import with_privileged
from potstill.stages._training_rows import TrainingRows
from potstill.stages.distill import Distill
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule
from potstill.train.writer import Writer
from potstill.types import Example

PROMPTS, NEW_TOKENS = 4, 48  # of the rollouts that a check writes


def items(
    setup: Setup,
    training: Sequence[Training],
    teacher: nn.Module | None,
    student: nn.Module,
    rows: Sequence[Example],
    amounts: Mapping[str, Amount],
    console: Console,
) -> Iterator[Item]:
    """Two items for each stage on the student's own text, and none for other recipes.

    `amounts` is what each of them will write.
    """
    stages = [spec for stage in training if (spec := _own_text.on_policy(stage)) is not None]
    if not stages:
        return
    console.say("the student writes a few answers")
    prompts = list(_prompts(setup, rows))
    pairs = {spec.name: partial(_pair, setup, spec, student, teacher, prompts, rows) for spec in stages}
    for spec in stages:
        yield _item(f"estimator of {spec.name}", partial(_estimator, setup, spec, pairs[spec.name]))
    for spec in stages:
        before = [stage.name for stage in training[: training.index(spec)]]
        work = partial(_cold_start, setup, spec, pairs[spec.name], before, amounts.get(spec.name))
        yield _item(f"first rollouts of {spec.name}", work)


@dataclass(frozen=True)
class _Pair:
    """The two models that a stage compares, and a few prompts as each of them reads these.

    Without a model of the teacher, as one that is served or several together have none, there are no prompts.
    """

    student: nn.Module
    teacher: nn.Module | None
    signals: Any  # of the teacher
    prompts: Sequence[Example]


def _pair(
    setup: Setup,
    spec: Distill,
    student: nn.Module,
    teacher: nn.Module | None,
    prompts: Sequence[Example],
    rows: Sequence[Example],
) -> _Pair:
    """The student and its teacher: the recipe's, or the student itself.

    Raises:
        DataError: a row has nothing to show to the teacher.
    """
    if spec.self_teacher is None and teacher is None:
        return _Pair(student, None, setup.teacher, ())
    if spec.privileged is not None:
        unwritten = spec.privileged.column is None and not any(row.count for row in rows)
        shown = () if unwritten else with_privileged(TrainingRows(tuple(rows), ()), spec, setup).train
        known = [row for row in shown if not setup.readers.foreign(row.input_ids)]
        prompts = [replace(row, room=0 if row.count else NEW_TOKENS) for row in known[:PROMPTS]]
    if spec.self_teacher is None:
        return _Pair(student, teacher, setup.teacher, prompts)
    own = LocalTeacher(student, vocabulary=setup.readers.shared_ids, fingerprint="self")
    return _Pair(student, student, own, prompts)


def _item(name: str, work: Callable[[], tuple[bool, str]]) -> Item:
    try:
        return Item(name, *work())
    except PotstillError as error:
        return Item(name, False, str(error))


def _prompts(setup: Setup, rows: Sequence[Example]) -> Iterator[Example]:
    """Prompts of held-out rows, as both models read them; those of training rows where none can be rendered."""
    found = [prompt for row in setup.data.heldout[:PROMPTS] if (prompt := _prompt(setup, row)) is not None]
    if not found:
        found = [
            Example(row.id, row.prompt, (False,) * len(row.prompt), domain=row.domain)
            for row in rows[:PROMPTS]
        ]
    for prompt in found:
        if prompt.input_ids and not setup.readers.foreign(prompt.input_ids):
            yield replace(prompt, room=NEW_TOKENS)


def _prompt(setup: Setup, row: Row) -> Example | None:
    if row.text is not None:
        return None
    try:
        prompt = prompt_example(setup.readers.student.templater, row)
        return with_domains([prompt], [row], setup.domain)[0]
    except DataError:
        return None


def _nothing(spec: Distill, pair: _Pair) -> tuple[bool, str]:
    if pair.teacher is None:
        return True, "not measured; the teacher is no one model in this process"
    if spec.privileged is not None:
        return True, "not measured; what is shown to the teacher is not written yet"
    return True, "not measured; no prompt holds ids of both models alone"


def _estimator(setup: Setup, spec: Distill, pair_of: Callable[[], _Pair]) -> tuple[bool, str]:
    pair = pair_of()
    if pair.teacher is None or not pair.prompts:
        return _nothing(spec, pair)
    first = pair.prompts[0]
    read = first.prompt if first.reading is None else first.reading.prompt
    ids, theirs = (torch.tensor([prompt], device=setup.device) for prompt in (first.prompt, read))
    for model in (pair.student, pair.teacher):
        model.eval()
    world = world_of(pair.student, pair.teacher, ids, setup.readers.shared_ids, theirs)
    return estimator.proof(spec, world)


def _cold_start(
    setup: Setup,
    spec: Distill,
    pair_of: Callable[[], _Pair],
    before: Sequence[str],
    amount: Amount | None,
) -> tuple[bool, str]:
    """Say how the student would begin; a cold start is no failure, since earlier stages or patience may warm it."""
    reader, size, pair = setup.readers.student, setup.readers.shared_ids, pair_of()
    module = StudentModule(pair.student, size)
    writer = Writer(
        module,
        pad_id=setup.readers.padding,
        packed=False,
        micro_batch_tokens=4096,
        seed=0,
        steps=1,
        stop_ids=reader.stop_ids,
        vocabulary=size,
        unused=[index for index in reader.unused_ids if index < size],
        teacher=lambda: pair.teacher,
    )
    figures = _own_text.first_rollouts(spec, module, pair.signals, writer, pair.prompts, most=NEW_TOKENS)
    if not figures:
        passed, why = _nothing(spec, pair)
        return passed, why if amount is None else f"{why}; {amount.in_words(None)}"
    pace = figures["seconds"] / max(1.0, figures["rollout_tokens"])
    most = min(spec.new_tokens or NEW_TOKENS, NEW_TOKENS)
    said = (
        f"{_own_text.in_words(figures)} ({figures['rollouts']:.0f} answers of at most {most} tokens by the "
        f"student as it is now); a thousand tokens of its text take {1000 * pace:.0f} s here"
    )
    if amount is not None:
        said += (
            f", and {amount.in_words(pace if spec.strategy.option('engine') in (None, 'local') else None)}"
        )
    if not _own_text.is_cold(figures):
        return True, said
    if before and spec.self_teacher is None:
        return True, f"{said}. It is cold, and {', '.join(before)} comes first to warm it"
    return True, f"{said}. {_own_text.advice(spec, warmed=False)}"
