"""The rows that stages read: as prompts, as examples, as questions. Each is computed once for all stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.data import answers
from potstill.data import prompts as data_prompts
from potstill.data import questions as data_questions
from potstill.data.answers import Written
from potstill.data.examples import encode
from potstill.data.prompts import Prompt
from potstill.data.questions import Question
from potstill.errors import DataError
from potstill.recipe.stages import StageSpec
from potstill.stages._context import Context, State
from potstill.store.artifacts import Artifact, key_of
from potstill.store.lines import read_lines
from potstill.types import Example

ANSWERS = "answers.jsonl"
Split = Literal["train", "validation", "heldout"]


@dataclass(frozen=True)
class Examples:
    """Examples of one split, and how many rows or answers were left out, by reason."""

    examples: tuple[Example, ...] = ()
    funnel: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRows:
    """What a training stage learns from, and the rows that choose its best weights."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]

    @property
    def tokens(self) -> int:
        """Scored tokens in an epoch."""
        return sum(example.count for example in self.train)

    @property
    def key(self) -> str:
        """What identifies the rows that are trained on."""
        rows = [[e.id, e.input_ids, e.scored, e.weight, e.share] for e in self.train]
        return key_of("examples", {"rows": rows})


def prompts(context: Context, new_tokens: int, samples: int) -> tuple[list[Prompt], Mapping[str, int]]:
    """Every row as a prompt to the teacher with room for its answer, and how many are left out, by reason."""
    setup = context.setup
    return data_prompts.prompts(
        setup.readers,
        setup.data.everything,
        train_ids={row.id for row in setup.data.train},
        new_tokens=new_tokens,
        samples=samples,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
    )


def read_answers(artifact: Artifact) -> list[Written]:
    """The answers that a generate stage left, in the prompts' order."""
    return [
        Written(line["row_id"], line["sample"], tuple(line["ids"]), line["text"], line["finish"])
        for line in read_lines(artifact.path / ANSWERS)
    ]


def training(state: State, context: Context, spec: StageSpec | None = None) -> TrainingRows:
    """The rows that a stage trains on: its own if it brings any, else the recipe's."""
    if spec is not None and spec.name in context.setup.data.of_stages:
        return TrainingRows(
            _own(context, spec.name, "train").examples, _own(context, spec.name, "validation").examples
        )
    return TrainingRows(
        examples(state, context, "train").examples, examples(state, context, "validation").examples
    )


def examples(state: State, context: Context, split: Split) -> Examples:
    """The rows of a split as token ids: with the teacher's answers once they are written."""
    key = (split, None if state.answers is None else state.answers.key)
    if key not in context.memo:
        context.memo[key] = _answered(state, context, split)
    return context.memo[key]


def heldout(state: State, context: Context) -> tuple[Example, ...]:
    """The held-out rows as examples.

    Raises:
        DataError: none can be measured.
    """
    measured = examples(state, context, "heldout").examples
    if not measured:
        raise DataError(
            f"none of the {len(context.setup.data.heldout)} held-out rows can be measured.",
            path="data.heldout",
            fix="Give them answers, or shorter prompts; data.max_length is the limit.",
        )
    return measured


def questions(state: State, context: Context, most: int) -> list[Question]:
    """The first `most` held-out rows as prompts with their reference answers."""
    return data_questions.questions(
        context.setup.readers,
        heldout(state, context),
        context.setup.data.heldout,
        most,
        generated=state.answers is not None,
    )


def _answered(state: State, context: Context, split: Split) -> Examples:
    setup = context.setup
    rows = getattr(setup.data, split)
    if state.answers is not None:
        encoded, funnel = answers.encode_answers(
            setup.readers, read_answers(state.answers), rows, max_length=setup.max_length
        )
    elif rows:
        result = _encode(context, rows, needed=split != "validation")
        encoded, funnel = list(result.examples), result.funnel
    else:
        return Examples()
    if split == "heldout":
        return Examples(tuple(answers.by_prompt(encoded, rows)), funnel)
    return Examples(tuple(answers.with_weights(encoded, rows, setup.weight, needed=split == "train")), funnel)


def _own(context: Context, name: str, split: Split) -> Examples:
    rows = getattr(context.setup.data.of_stages[name], split)
    encoded = _encode(context, rows, needed=split == "train")
    weighed = answers.with_weights(encoded.examples, rows, context.setup.weight, needed=split == "train")
    return Examples(tuple(weighed), encoded.funnel)


def _encode(context: Context, rows: Any, needed: bool) -> Any:
    setup = context.setup
    return encode(
        rows,
        setup.readers.student.templater,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
        needed=needed,
        teacher=setup.readers.other_templater,
    )
