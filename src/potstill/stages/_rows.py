"""The rows that stages read: as prompts, as examples, as questions. Each is computed once for all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from potstill.data import answers
from potstill.data import mix as data_mix
from potstill.data import prompts as data_prompts
from potstill.data.answers import Written
from potstill.data.dataset import Dataset, Parts
from potstill.data.examples import Encoded, encode, lost, waits
from potstill.data.lost import Lost
from potstill.data.mix import Taken
from potstill.data.prompts import Prompt
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.recipe.stages import StageSpec, room_of
from potstill.stages._context import Context, State
from potstill.stages._training_rows import Examples, TrainingRows
from potstill.store.artifacts import Artifact
from potstill.store.lines import read_lines
from potstill.types import Example

ANSWERS, REJECTED = "answers.jsonl", "rejected.jsonl"
Split = Literal["train", "validation", "heldout"]


def require_rows(stages: Sequence[StageSpec], context: Context) -> None:
    """Read the rows of all stages as far as they are known, before any of them works.

    Raises:
        DataError: too many rows are left out, or none is left.
    """
    written = False
    for stage in stages:
        if "text" in stage.needs:
            prompts(context, getattr(stage, "max_new_tokens", 0), getattr(stage, "samples", 1))
            written = True
        elif stage.name in context.setup.data.of_stages:
            _own(context, stage.name, "train")
        elif not written and stage.trains and context.setup.mix is None:
            examples(State(), context, "train")
        elif stage.trains and context.setup.mix is not None and not context.setup.mix.generated:
            mix(State(), context)


def prompts(context: Context, new_tokens: int, samples: int) -> tuple[list[Prompt], Mapping[str, int]]:
    """Every row as a prompt to the teacher with room for its answer, and how many are left out, by reason.

    Raises:
        DataError: too many are left out.
    """
    key = ("prompts", new_tokens, samples)
    if key not in context.memo:
        context.memo[key] = _prompts(context, new_tokens, samples)
    kept, left_out = context.memo[key]
    return kept, left_out


def _prompts(context: Context, new_tokens: int, samples: int) -> tuple[list[Prompt], Mapping[str, int]]:
    setup = context.setup
    kept, left_out = data_prompts.prompts(
        setup.readers,
        setup.data.everything,
        train_ids={row.id for row in setup.data.train},
        heldout_ids={row.id for row in setup.data.heldout},
        new_tokens=new_tokens,
        samples=samples,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
        known_ids=setup.known_ids,
    )
    room = f"max_length {setup.max_length} leaves {setup.max_length - new_tokens} tokens for a prompt"
    left = Lost(data_prompts.reasons(left_out), len(kept) + left_out.total(), room)
    left.refuse_many(setup.on_bad_row)
    return kept, left_out


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
    train = (
        examples(state, context, "train").examples if context.setup.mix is None else mix(state, context)[0]
    )
    return TrainingRows(tuple(train), examples(state, context, "validation").examples)


def mix(state: State, context: Context) -> tuple[Sequence[Example], Sequence[Taken]]:
    """The training examples of several sources in their shares, and what was taken of each.

    Raises:
        DataError: the shares are not possible.
    """
    plan, setup = context.setup.mix, context.setup
    assert plan is not None
    key = ("mix", None if state.answers is None else state.answers.key)
    if key not in context.memo:
        sources: dict[str, Sequence[Example]] = {
            source: _of_source(context, source) for source in setup.data.mixed
        }
        if plan.generated:
            sources[data_mix.GENERATED] = examples(state, context, "train").examples
        taken = data_mix.mixed(plan, sources)
        context.memo[key] = taken
        total = sum(getattr(one, plan.by) for one in taken[1])
        shares = (
            f"{getattr(one, plan.by)} of {getattr(one, f'of_{plan.by}')} {one.source}" for one in taken[1]
        )
        context.console.say(f"mix of {total} {plan.by}: {', '.join(shares)}")
    result: tuple[Sequence[Example], Sequence[Taken]] = context.memo[key]
    return result


def _of_source(context: Context, source: str) -> Sequence[Example]:
    """The rows of a file that is mixed in, read as the recipe's own."""
    setup, rows = context.setup, context.setup.data.mixed[source]
    encoded = encode(
        rows,
        setup.readers.student.templater,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
        needed=False,
        teacher=setup.readers.other_templater,
        known_ids=setup.known_ids,
    )
    lost([encoded], setup.max_length).refuse_many(setup.on_bad_row)
    routed = answers.with_domains(encoded.examples, rows, setup.domain)
    return answers.with_weights(routed, rows, setup.weight)


def with_room(rows: TrainingRows, new_tokens: int, context: Context) -> TrainingRows:
    """Leave out the training rows whose prompts leave no room for so many tokens that the student writes.

    Raises:
        DataError: they are too many.
    """
    most = context.setup.max_length - new_tokens
    kept = tuple(example for example in rows.train if not new_tokens or len(example.prompt) <= most)
    reason = f"whose prompt leaves no room for {new_tokens} tokens in max_length {context.setup.max_length}"
    Lost({reason: len(rows.train) - len(kept)}, len(rows.train)).refuse_many(context.setup.on_bad_row)
    if rows.train and not kept:
        raise DataError(
            f"none of the {len(rows.train)} prompts leaves room for {new_tokens} tokens.",
            path="data.max_length",
            fix="Lower max_new_tokens, or raise data.max_length.",
        )
    return replace(rows, train=kept)


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


def _answered(state: State, context: Context, split: Split) -> Examples:
    setup = context.setup
    rows = getattr(setup.data, split)
    funnel: Mapping[str, int]
    if state.answers is not None:
        encoded, funnel = answers.encode_answers(
            setup.readers,
            read_answers(state.answers),
            rows,
            max_length=setup.max_length,
            known_ids=setup.known_ids,
            task=setup.task,
            measured=split == "heldout",
        )
    else:
        result = _with_own_answers(context, split)
        encoded, funnel = list(result.examples), result.funnel
    encoded = answers.with_domains(encoded, rows, setup.domain)
    if split == "heldout":
        return Examples(tuple(answers.by_prompt(encoded, rows)), funnel)
    return Examples(tuple(answers.with_weights(encoded, rows, setup.weight, needed=split == "train")), funnel)


def _with_own_answers(context: Context, split: Split) -> Encoded:
    """The rows of a split that bring answers along. All splits of a run are counted before one of them is used.

    Raises:
        DataError: too many rows are left out of them.
    """
    if "encoded" not in context.memo:
        splits: list[Split] = ["train", "validation"]
        if split == "heldout" or any(stage.measures for stage in context.stages):
            splits.append("heldout")
        context.memo["encoded"] = _encoded(context, context.setup.data, splits)
    encoded: dict[Split, Encoded] = context.memo["encoded"]
    return encoded[split] if split in encoded else _encoded(context, context.setup.data, [split])[split]


def _own(context: Context, name: str, split: Split) -> Examples:
    parts = context.setup.data.of_stages[name]
    if ("encoded", name) not in context.memo:
        context.memo["encoded", name] = _encoded(context, parts, ("train", "validation"))
    rows, encoded = getattr(parts, split), context.memo["encoded", name][split]
    weighed = answers.with_weights(encoded.examples, rows, context.setup.weight, needed=split == "train")
    return Examples(tuple(weighed), encoded.funnel)


def rows_of(data: Dataset | Parts, split: Split, room: int) -> Sequence[Row]:
    """The rows of a split; where the student writes the answers, only those with one are validated on."""
    rows: Sequence[Row] = getattr(data, split)
    return [row for row in rows if not waits(row)] if room and split == "validation" else rows


def _encoded(context: Context, data: Dataset | Parts, splits: Sequence[Split]) -> dict[Split, Encoded]:
    """These splits as token ids.

    Raises:
        DataError: too many rows are left out of them.
    """
    setup = context.setup
    room = room_of(context.stages, setup.data.of_stages) if data is setup.data else 0
    encoded = {
        split: encode(
            rows_of(data, split, room),
            setup.readers.student.templater,
            max_length=setup.max_length,
            on_bad_row=setup.on_bad_row,
            needed=split != "validation" and bool(getattr(data, split)),
            room=room if split == "train" else 0,
            teacher=setup.readers.other_templater,
            # Of a stage's own rows the teacher reads none.
            known_ids=setup.known_ids if data is setup.data else None,
        )
        for split in splits
    }
    lost(list(encoded.values()), setup.max_length).refuse_many(setup.on_bad_row)
    return encoded
