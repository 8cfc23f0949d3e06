"""What can be said without loading a weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from potstill.check.report import CheckReport, Item, Rendered
from potstill.data import split
from potstill.data.examples import Encoded, describe_lengths, encode
from potstill.data.prompts import prompt_ids, prompts
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.recipe.defaults import Default
from potstill.recipe.methods import METHODS
from potstill.recipe.recipe import Recipe
from potstill.recipe.stages import StageSpec, resolve_auto
from potstill.runs.setup import Opened
from potstill.stages._context import Setup
from potstill.types import Example

SHOWN = 3
ESTIMATE = "sizes that depend on the number of tokens are reckoned with answers of full length."


def read(opened: Opened, setup: Setup) -> tuple[CheckReport, list[Example]]:
    """Report on models, vocabulary, rows, split and defaults, with three rendered rows; and the rows as
    examples. Where the teacher writes first, the examples are the prompts alone.
    """
    recipe = opened.recipe
    writing = [stage for stage in recipe.stages if "text" in stage.needs]
    new_tokens = max((getattr(stage, "max_new_tokens", 0) for stage in writing), default=0)
    notes = [*setup.notes, *(note for stage in recipe.stages for note in stage.notes())]
    if opened.method is not None:
        notes.append(f"method {opened.method}: {METHODS[opened.method].source}")
    if new_tokens:
        notes.append(ESTIMATE)
        examples = list(_prompt_examples(setup, new_tokens))
        lengths: Sequence[int] = [len(example.input_ids) for example in examples]
        rendered = _rendered_prompts(setup)
    else:
        encoded = _encoded(setup, setup.data.train)
        examples, lengths = list(encoded.examples), encoded.lengths
        rendered = [_marked(setup, example) for example in examples[:SHOWN]]
    report = CheckReport(
        recipe=recipe.name,
        items=(
            *_items(recipe, setup),
            *_measurable(recipe, setup, new_tokens),
            stop_tokens(setup, examples),
            row_lengths(setup, lengths, new_tokens),
        ),
        stages=tuple(stage.name for stage in recipe.stages),
        defaults=tuple(_defaults(recipe.stages, setup, examples, new_tokens)),
        rows=tuple(rendered),
        notes=tuple(notes),
    )
    return report, examples


def _items(recipe: Recipe, setup: Setup) -> list[Item]:
    data = setup.data
    seen = split.overlap(data.trained_on, data.heldout)
    dtype = getattr(setup.teacher, "dtype", None)
    precision = "" if dtype is None else f", {str(dtype).removeprefix('torch.')}"
    shared = setup.readers.shared_vocabulary
    size = f"{setup.readers.student.vocabulary.size} ids, shared"
    counts = ", ".join(f"{count} {name}" for name, count in data.funnel.items() if count)
    parts = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.heldout)} held out"
    return [
        Item("teacher", True, _named(recipe.teacher) + precision),
        Item("student", True, "cut from the teacher" if setup.student.cut else _named(recipe.student)),
        Item("device", True, setup.device.type),
        Item("vocabulary", True, size if shared else "not shared"),
        Item("rows", True, f"{data.shape}; {counts}"),
        Item("split", True, f"{parts} ({data.source})"),
        Item(
            "overlap",
            seen.exact == 0,
            f"of {seen.of} held-out prompts {seen.exact} stand in training, {seen.near} nearly, "
            f"{seen.gram} share {split.GRAM} words in a row",
        ),
        Item("longest row", True, f"{setup.max_length} tokens may stand in a row"),
    ]


def _named(spec: object) -> str:
    return str(getattr(spec, "model", None) or getattr(spec, "name", ""))


def _encoded(setup: Setup, rows: Sequence[Row]) -> Encoded:
    return encode(
        rows,
        setup.readers.student.templater,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
        teacher=setup.readers.other_templater,
    )


def _answerable(setup: Setup, rows: Sequence[Row], new_tokens: int) -> int:
    """How many of the rows can be a prompt for the teacher."""
    kept, _ = prompts(
        setup.readers,
        rows,
        train_ids=(),
        new_tokens=new_tokens,
        samples=1,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
    )
    return len(kept)


def _prompt_examples(setup: Setup, new_tokens: int) -> Iterator[Example]:
    """The training prompts as ids, too long ones among them; nothing in them is scored."""
    _answerable(setup, setup.data.everything, new_tokens)
    for row in setup.data.train:
        try:
            yield prompt_example(setup.readers.teacher_reader.templater, row)
        except DataError:
            if setup.on_bad_row == "error":
                raise


def prompt_example(templater: Templater, row: Row) -> Example:
    """A row's prompt as ids, none of them scored.

    Raises:
        DataError: the row cannot be rendered; names its file and line.
    """
    ids = prompt_ids(templater, row)
    return Example(row.id, tuple(ids), (False,) * len(ids))


def _measurable(recipe: Recipe, setup: Setup, new_tokens: int) -> Iterator[Item]:
    """Whether the held-out rows can be measured, where a stage measures."""
    if not any(stage.measures for stage in recipe.stages):
        return
    rows = setup.data.heldout
    try:
        count = _answerable(setup, rows, new_tokens) if new_tokens else len(_encoded(setup, rows).examples)
    except DataError as error:
        yield Item("held-out rows", False, str(error))
    else:
        yield Item("held-out rows", count > 0, f"{count} of {len(rows)} can be measured")


def stop_tokens(setup: Setup, rows: Sequence[Example]) -> Item:
    """Check that every answer's end token is scored, so that the student learns to stop."""
    reader = setup.readers.student
    if not reader.stop_ids:
        return Item("stop token", False, "the template ends no turn and the tokenizer has no end token")
    name = reader.tokenizer.convert_ids_to_tokens
    detail = f"answers end with {', '.join(name(list(reader.stop_ids)))}"
    if reader.pad_id in reader.stop_ids:
        detail += "; it is the padding token too, which is safe: masks come from lengths"
    examples = [row for row in rows if any(row.scored)]
    open_ended = [row.id for row in examples if not _ends(row, reader.stop_ids)]
    if open_ended:
        detail += f"; {len(open_ended)} rows never score it, first {open_ended[0]}"
    elif examples:
        first = examples[0]
        detail += f"; last tokens of {first.id}: {' '.join(name(list(first.input_ids[-5:])))}"
    return Item("stop token", not open_ended, detail)


def _ends(row: Example, stops: Sequence[int]) -> bool:
    return any(scored and token in stops for token, scored in zip(row.input_ids, row.scored, strict=True))


def row_lengths(setup: Setup, lengths: Sequence[int], new_tokens: int) -> Item:
    """Count the rows that max_length drops, and say which lengths would keep them."""
    if not lengths:
        return Item("lengths", False, "no row is left")
    full = [length + new_tokens for length in lengths]
    lost = sum(length > setup.max_length for length in full)
    detail = f"{lost} of {len(full)} rows are longer than {setup.max_length}; {describe_lengths(full)}"
    return Item("lengths", lost < len(full), detail)


def _defaults(
    stages: Sequence[StageSpec], setup: Setup, examples: Sequence[Example], new_tokens: int
) -> Iterator[Default]:
    """What `auto` becomes; before the teacher has written, as if every answer had full length."""
    tokens = len(setup.data.train) * new_tokens or sum(example.count for example in examples)
    count = getattr(setup.student.plugin, "parameters", None)
    parameters = None if count is None else count(setup.student.context, **setup.student.options)
    resolved: dict[str, StageSpec] = {}
    for stage in stages:
        stage, shared = stage.completed(stages, resolved)
        trained = any(earlier.trains for earlier in resolved.values())
        facts = setup.facts(
            untrained=stage.from_untrained or not trained,
            parameters=parameters,
            train_tokens=tokens or None,
            answer_tokens=new_tokens or None,
        )
        stage, defaults = resolve_auto(stage, facts)
        resolved[stage.name] = stage
        yield from (*shared, *defaults)


def _rendered_prompts(setup: Setup) -> list[Rendered]:
    """Prompts as the teacher reads them, and as the student does where that differs."""
    teacher, student = setup.readers.teacher_reader.templater, setup.readers.student.templater
    sides = {"train, as the teacher reads it": teacher, "train, as the student reads it": student}
    if setup.readers.read_alike:
        sides = {"train": teacher}
    shown: list[Rendered] = []
    for row in setup.data.train:
        try:
            texts = [side.prompt_text(row.prompt, row.tools) for side in sides.values()]
        except DataError:
            continue  # named or skipped where the rows were read
        shown += [
            Rendered(row.id, side, f"{text}⟦the teacher's answer⟧")
            for side, text in zip(sides, texts, strict=True)
        ]
        if len(shown) >= SHOWN * len(sides):
            break
    return shown


def _marked(setup: Setup, example: Example) -> Rendered:
    """The example's own ids as text, runs of scored tokens in brackets."""
    decode = setup.readers.student.tokenizer.decode
    text = ""
    for scored, run in groupby(zip(example.input_ids, example.scored, strict=True), key=itemgetter(1)):
        ids = [token for token, _ in run]
        words = decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text += f"⟦{words}⟧" if scored else words
    return Rendered(example.id, "train", text)
