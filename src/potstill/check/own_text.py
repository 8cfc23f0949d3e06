"""What a check says of stages that train on the student's own text: their estimator, and what a cold start costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from potstill.check import estimator
from potstill.check.reading import prompt_example
from potstill.check.report import Item
from potstill.console import Console
from potstill.data.rows import Row
from potstill.errors import DataError, PotstillError
from potstill.recipe.training import Training
from potstill.stages import _own_text
from potstill.stages._context import Setup
from potstill.stages.distill import Distill
from potstill.train.step import StudentModule
from potstill.train.writer import Writer
from potstill.types import Example

PROMPTS, NEW_TOKENS = 4, 48  # of the rollouts that a check writes


def items(
    setup: Setup,
    training: Sequence[Training],
    teacher: nn.Module,
    student: nn.Module,
    rows: Sequence[Example],
    console: Console,
) -> Iterator[Item]:
    """Two items for each stage on the student's own text, and none for other recipes."""
    stages = [spec for stage in training if (spec := _own_text.on_policy(stage)) is not None]
    if not stages:
        return
    console.say("the student writes a few answers")
    prompts = list(_prompts(setup, rows))
    for spec in stages:
        yield _item(f"estimator of {spec.name}", partial(_estimator, setup, spec, student, teacher, prompts))
    for spec in stages:
        before = [stage.name for stage in training[: training.index(spec)]]
        yield _item(
            f"first rollouts of {spec.name}",
            partial(_cold_start, setup, spec, student, teacher, prompts, before),
        )


def _item(name: str, work: Callable[[], tuple[bool, str]]) -> Item:
    try:
        return Item(name, *work())
    except PotstillError as error:
        return Item(name, False, str(error))


def _prompts(setup: Setup, rows: Sequence[Example]) -> Iterator[Example]:
    """Prompts of held-out rows, as both models read them; those of training rows where none can be rendered."""
    found = [prompt for row in setup.data.heldout[:PROMPTS] if (prompt := _prompt(setup, row)) is not None]
    if not found:
        found = [Example(row.id, row.prompt, (False,) * len(row.prompt)) for row in rows[:PROMPTS]]
    for prompt in found:
        if prompt.input_ids and not setup.readers.foreign(prompt.input_ids):
            yield Example(prompt.id, prompt.input_ids, prompt.scored, room=NEW_TOKENS)


def _prompt(setup: Setup, row: Row) -> Example | None:
    if row.text is not None:
        return None
    try:
        return prompt_example(setup.readers.student.templater, row)
    except DataError:
        return None


def _estimator(
    setup: Setup, spec: Distill, student: nn.Module, teacher: nn.Module, prompts: Sequence[Example]
) -> tuple[bool, str]:
    if not prompts:
        return True, "not measured; no prompt holds ids of both models alone"
    ids = torch.tensor([prompts[0].input_ids], device=setup.device)
    for model in (student, teacher):
        model.eval()
    return estimator.proof(spec, estimator.world_of(student, teacher, ids, setup.readers.shared_ids))


def _cold_start(
    setup: Setup,
    spec: Distill,
    student: nn.Module,
    teacher: nn.Module,
    prompts: Sequence[Example],
    before: Sequence[str],
) -> tuple[bool, str]:
    """Say how the student would begin; a cold start is no failure, since earlier stages or patience may warm it."""
    reader, size = setup.readers.student, setup.readers.shared_ids
    module = StudentModule(student, size)
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
        teacher=lambda: teacher,
    )
    figures = _own_text.first_rollouts(spec, module, setup.teacher, writer, prompts, most=NEW_TOKENS)
    if not figures:
        return True, "not measured; no prompt holds ids of both models alone"
    cost = 1000 * figures["seconds"] / max(1.0, figures["rollout_tokens"])
    said = (
        f"{_own_text.in_words(figures)} ({figures['rollouts']:.0f} answers of at most {NEW_TOKENS} tokens by the "
        f"student as it is now); a thousand tokens of its text take {cost:.0f} s here"
    )
    if not _own_text.is_cold(figures):
        return True, said
    if before:
        return True, f"{said}. It is cold, and {', '.join(before)} comes first to warm it"
    return True, f"{said}. {_own_text.COLD} {_own_text.WAY_OUT}"
