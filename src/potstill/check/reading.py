"""What can be said without loading a weight."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.check import audit
from potstill.check._subject import Subject
from potstill.check.report import CheckReport, Item, Rendered
from potstill.data import split
from potstill.data.examples import Encoded, encode
from potstill.data.prompts import prompt_ids, prompts
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.recipe.defaults import Default
from potstill.recipe.methods import METHODS
from potstill.recipe.stages import StageSpec, resolve_auto
from potstill.types import Example

SHOWN = 3
ESTIMATE = "sizes that depend on the number of tokens are reckoned with answers of full length."


def read(subject: Subject) -> tuple[CheckReport, list[Example]]:
    """Report on models, vocabulary, rows, split and defaults, with three rendered rows; and the rows as
    examples. Where the teacher writes first, the examples are the prompts alone.
    """
    recipe, setup, writes = subject.recipe, subject.setup, subject.answer_tokens > 0
    encoded = None if writes else _encoded(subject, setup.data.train)
    examples = list(encoded.examples) if encoded else _prompt_examples(subject)
    lengths = encoded.lengths if encoded else [len(example.input_ids) for example in examples]
    notes = [*setup.notes, *(note for stage in recipe.stages for note in stage.notes())]
    if subject.method is not None:
        notes.append(f"method {subject.method}: {METHODS[subject.method].source}")
    if writes:
        notes.append(ESTIMATE)
    report = CheckReport(
        recipe=recipe.name,
        items=(
            *_items(subject),
            *_measurable(subject),
            audit.stop_tokens(setup, examples),
            audit.lengths(setup, lengths, subject.answer_tokens),
        ),
        stages=tuple(stage.name for stage in recipe.stages),
        defaults=_defaults(subject, examples),
        rows=tuple(_prompts(subject) if writes else (_marked(subject, e) for e in examples[:SHOWN])),
        notes=tuple(notes),
    )
    return report, examples


def _items(subject: Subject) -> list[Item]:
    setup, data = subject.setup, subject.setup.data
    seen = split.overlap(data.trained_on, data.heldout)
    reads = ", ".join(f"{count} {name}" for name, count in data.funnel.items() if count)
    size, shared = setup.readers.student.vocabulary.size, setup.readers.shared_vocabulary
    return [
        Item("teacher", True, _named(subject.recipe.teacher, getattr(setup.teacher, "dtype", None))),
        Item(
            "student", True, "cut from the teacher" if setup.student.cut else _named(subject.recipe.student)
        ),
        Item("device", True, setup.device.type),
        Item("vocabulary", True, f"{size} ids, shared" if shared else "not shared"),
        Item("rows", True, f"{data.shape}; {reads}"),
        Item(
            "split",
            True,
            f"{len(data.train)} train, {len(data.validation)} validation, {len(data.heldout)} held out "
            f"({data.source})",
        ),
        Item(
            "overlap",
            seen.exact == 0,
            f"of {seen.of} held-out prompts {seen.exact} stand in training, {seen.near} nearly, "
            f"{seen.gram} share {split.GRAM} words in a row",
        ),
        Item("longest row", True, f"{setup.max_length} tokens may stand in a row"),
    ]


def _named(spec: object, dtype: object = None) -> str:
    name = str(getattr(spec, "model", None) or getattr(spec, "name", ""))
    return name if dtype is None else f"{name}, {str(dtype).removeprefix('torch.')}"


def _encoded(subject: Subject, rows: Sequence[Row]) -> Encoded:
    setup = subject.setup
    return encode(
        rows,
        setup.readers.student.templater,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
    )


def _asked(subject: Subject, rows: Sequence[Row]) -> int:
    """How many of the rows the teacher can be asked."""
    setup = subject.setup
    kept, _ = prompts(
        setup.readers,
        rows,
        train_ids=(),
        new_tokens=subject.answer_tokens,
        samples=1,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
    )
    return len(kept)


def _prompt_examples(subject: Subject) -> list[Example]:
    """The training prompts as ids, too long ones among them; nothing in them is scored."""
    setup = subject.setup
    _asked(subject, setup.data.everything)
    examples = []
    for row in setup.data.train:
        try:
            ids = prompt_ids(setup.readers.of_teacher.templater, row)
        except DataError:
            if setup.on_bad_row == "error":
                raise
            continue
        examples.append(Example(row.id, tuple(ids), (False,) * len(ids)))
    return examples


def _measurable(subject: Subject) -> list[Item]:
    """Whether the held-out rows can be measured, where a stage measures."""
    if not any(stage.measures for stage in subject.recipe.stages):
        return []
    rows = subject.setup.data.heldout
    try:
        count = _asked(subject, rows) if subject.answer_tokens else len(_encoded(subject, rows).examples)
    except DataError as error:
        return [Item("held-out rows", False, str(error))]
    return [Item("held-out rows", count > 0, f"{count} of {len(rows)} can be measured")]


def _defaults(subject: Subject, examples: Sequence[Example]) -> tuple[Default, ...]:
    """What `auto` becomes; before the teacher has written, as if every answer had full length."""
    setup, stages, longest = subject.setup, subject.recipe.stages, subject.answer_tokens
    tokens = len(setup.data.train) * longest or sum(example.count for example in examples)
    count = getattr(setup.student.plugin, "parameters", None)
    parameters = None if count is None else count(setup.student.context, **setup.student.options)
    lines: list[Default] = []
    resolved: dict[str, StageSpec] = {}
    for stage in stages:
        stage, shared = stage.completed(stages, resolved)
        trained = any(earlier.trains for earlier in resolved.values())
        facts = setup.facts(
            untrained=stage.from_untrained or not trained,
            parameters=parameters,
            train_tokens=tokens or None,
            answer_tokens=longest or None,
        )
        stage, defaults = resolve_auto(stage, facts)
        resolved[stage.name] = stage
        lines += [*shared, *defaults]
    return tuple(lines)


def _prompts(subject: Subject) -> list[Rendered]:
    """Prompts as the teacher reads them, and as the student does where that differs."""
    readers = subject.setup.readers
    sides = [(readers.of_teacher, "train" if readers.read_alike else "train, as the teacher reads it")]
    if not readers.read_alike:
        sides.append((readers.student, "train, as the student reads it"))
    shown: list[Rendered] = []
    for row in subject.setup.data.train:
        try:
            texts = [side.templater.prompt_text(row.prompt, list(row.tools) or None) for side, _ in sides]
        except DataError:
            continue  # named or skipped where the rows were read
        for text, (_, where) in zip(texts, sides, strict=True):
            shown.append(Rendered(row.id, where, text + "⟦the teacher's answer⟧"))
        if len(shown) >= SHOWN * len(sides):
            break
    return shown


def _marked(subject: Subject, example: Example) -> Rendered:
    """The example's own ids as text, runs of scored tokens in brackets."""
    decode = subject.setup.readers.student.tokenizer.decode
    pieces, run = [], []
    for index, token in enumerate(example.input_ids):
        run.append(token)
        last = index + 1 == len(example.input_ids)
        if last or example.scored[index + 1] != example.scored[index]:
            text = decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append(f"⟦{text}⟧" if example.scored[index] else text)
            run = []
    return Rendered(example.id, "train", "".join(pieces))
