"""What can be said without loading a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from potstill.check import capture_bytes, captured, ledger, privileged
from potstill.check.defaults import input_defaults, stage_defaults
from potstill.check.items import items_of
from potstill.check.rendered import SHOWN, marked, rendered_prompts
from potstill.check.report import CheckReport, Item
from potstill.check.settings import settings
from potstill.check.writing import Amount, amounts
from potstill.data.answers import with_domains
from potstill.data.examples import Encoded, describe_lengths, encode, lost
from potstill.data.lost import WAYS_OUT, Lost
from potstill.data.mix import GENERATED, Plan, mixed
from potstill.data.prompts import both_ids, prompt_ids, prompts
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.recipe.methods import METHODS
from potstill.recipe.recipe import Recipe
from potstill.recipe.stages import room_of
from potstill.runs.setup import Opened
from potstill.stages._context import Setup
from potstill.stages._rows import rows_of
from potstill.stages._training_rows import sizes
from potstill.stages.capture import Capture
from potstill.types import Example

ESTIMATE = "sizes that depend on the number of tokens are reckoned with answers of full length."

OWN_ANSWERS = (
    "the student writes all answers that are trained on. Those of the rows are read in validations, and where a stage "
    "shows them to its teacher; what the rows hold counts neither."
)


def read(opened: Opened, setup: Setup) -> tuple[CheckReport, list[Example], Mapping[str, Amount]]:
    """Report on models, vocabulary, rows, split and defaults, with three rendered rows; the rows as examples;
    and how much the student of a stage will write. Where the teacher writes first, the examples are the prompts
    alone.
    """
    recipe = opened.recipe
    writing = [stage for stage in recipe.stages if "text" in stage.needs]
    new_tokens = max((getattr(stage, "max_new_tokens", 0) for stage in writing), default=0)
    samples = max((getattr(stage, "samples", 1) for stage in writing), default=1)
    room = 0 if new_tokens else room_of(recipe.stages, setup.data.of_stages)
    notes = [*setup.notes, *(note for stage in recipe.stages for note in stage.notes())]
    if room:
        notes.append(OWN_ANSWERS)
    if opened.method is not None:
        notes.append(f"method {opened.method}: {METHODS[opened.method].source}")
    # Validation and held-out rows with their answers, as far as these are known.
    others: list[list[Example]] = []
    if new_tokens:
        notes.append(ESTIMATE)
        examples = list(_prompt_examples(setup, new_tokens))
        of_recipe = _reckoned_sizes(setup, examples, new_tokens, samples)
        kept = [rows_left(setup, "", _asked(setup, new_tokens))]
        rendered = rendered_prompts(setup)
    else:
        encoded = _encoded(setup, setup.data.train, room=room)
        examples = list(encoded.examples)
        if foreign := encoded.funnel.get("foreign_ids"):
            of = len(encoded.lengths)
            notes.append(f"{foreign} of {of} training rows hold ids of the student alone; they are left out.")
        heldout_too = any(stage.measures or isinstance(stage, Capture) for stage in recipe.stages)
        validation, *measured = _others(setup, room, measured=heldout_too)
        of_recipe = sizes(encoded.examples, validation.examples)
        kept = [rows_left(setup, "", lost([encoded, validation, *measured], setup.max_length))]
        others = [
            with_domains(part.examples, setup.data.everything, setup.domain)
            for part in (validation, *measured)
        ]
        rows = {row.id: row for row in setup.data.train}
        rendered = [marked(setup, example, rows[example.row_id]) for example in examples[:SHOWN]]
    trained: Sequence[Example] = with_domains(examples, setup.data.train, setup.domain)
    whole: Sequence[Example] = _reckoned(examples, new_tokens, samples) if new_tokens else examples
    if setup.mix is not None:
        item, whole = _mix(setup, setup.mix, whole)
        trained = whole
        kept.append(item)
        of_recipe |= {
            name: size
            for name, size in sizes(whole, ()).items()
            if name.endswith("_tokens") and "validation" not in name
        }
    asked = capture_bytes.asked_about(setup, trained, others, new_tokens, samples)
    of_stages = dict.fromkeys((stage.name for stage in recipe.stages), of_recipe)
    own_rows = dict[str, Sequence[Example]]()
    for name, parts in setup.data.of_stages.items():
        own = [_encoded(setup, rows, needed=False, own=True) for rows in (parts.train, parts.validation)]
        own_rows[name] = own[0].examples
        of_stages[name] = sizes(own[0].examples, own[1].examples)
        kept.append(rows_left(setup, f" of {name}", lost(own, setup.max_length)))
    resolved, of_stages_defaults = stage_defaults(recipe.stages, setup, of_stages, new_tokens)
    defaults = (*input_defaults(recipe, setup), *of_stages_defaults)
    report = CheckReport(
        recipe=recipe.name,
        items=(
            *items_of(recipe, setup),
            *_measurable(recipe, setup, new_tokens),
            *([] if new_tokens else captured.answered(recipe, setup)),
            stop_tokens(setup, examples),
            *kept,
            *captured.items(recipe, setup, trained, *others),
            *capture_bytes.items(recipe.stages, setup, *asked),
            *([] if new_tokens else privileged.items(recipe.stages, setup, examples)),
        ),
        stages=tuple(stage.name for stage in recipe.stages),
        defaults=defaults,
        settings=settings(recipe, resolved, defaults),
        rows=tuple(rendered),
        notes=tuple(notes),
        ledger=ledger.counts(setup, asked=bool(new_tokens or room)),
    )
    written = amounts(resolved, whole, own_rows, reckoned=new_tokens, seed=recipe.seed)
    return report, with_domains(examples, setup.data.train, setup.domain), written


def _encoded(
    setup: Setup, rows: Sequence[Row], *, needed: bool = True, own: bool = False, room: int = 0
) -> Encoded:
    """Rows as a run encodes them; of a stage's `own` rows the teacher reads none."""
    return encode(
        rows,
        setup.readers.student.templater,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
        needed=needed,
        teacher=setup.readers.other_templater,
        known_ids=None if own else setup.known_ids,
        room=room,
    )


def _answerable(setup: Setup, rows: Sequence[Row], new_tokens: int) -> int:
    """How many of the rows can be a prompt for the teacher."""
    kept, _ = prompts(
        setup.readers,
        rows,
        train_ids=(),
        heldout_ids=(),
        new_tokens=new_tokens,
        samples=1,
        max_length=setup.max_length,
        on_bad_row=setup.on_bad_row,
        known_ids=setup.known_ids,
    )
    return len(kept)


def _prompt_examples(setup: Setup, new_tokens: int) -> Iterator[Example]:
    """The training prompts as ids, too long ones among them; nothing in them is scored."""
    _answerable(setup, setup.data.everything, new_tokens)
    for row in setup.data.train:
        try:
            yield prompt_example(setup.readers.of_prompts.templater, row)
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

    def name(ids: Sequence[int]) -> list[str]:  # a padded vocabulary has ids without a word
        words = reader.tokenizer.convert_ids_to_tokens(list(ids))
        return [word or f"the id {token}" for token, word in zip(ids, words, strict=True)]

    detail = f"answers end with {', '.join(name(reader.stop_ids))}"
    if reader.pad_id in reader.stop_ids:
        detail += "; it is the padding token too, which is safe: masks come from lengths"
    examples = [row for row in rows if any(row.scored)]
    open_ended = [row.id for row in examples if not _ends(row, reader.stop_ids)]
    if open_ended:
        detail += f"; {len(open_ended)} rows never score it, first {open_ended[0]}"
    elif examples:
        first = examples[0]
        detail += f"; last tokens of {first.id}: {' '.join(name(first.input_ids[-5:]))}"
    return Item("stop token", not open_ended, detail)


def _ends(row: Example, stops: Sequence[int]) -> bool:
    return any(scored and token in stops for token, scored in zip(row.input_ids, row.scored, strict=True))


def _others(setup: Setup, room: int, *, measured: bool) -> Iterator[Encoded]:
    """The rows that are not trained on, as far as a run reads them."""
    yield _encoded(setup, rows_of(setup.data, "validation", room), needed=False)
    if measured:
        with suppress(DataError):  # `_measurable` names it
            yield _encoded(setup, setup.data.heldout, needed=False)


def _asked(setup: Setup, new_tokens: int) -> Lost:
    """What is left out of the prompts to a teacher that writes `new_tokens`."""
    lengths, refused = [], 0
    for row in setup.data.everything:
        try:
            lengths.append(new_tokens + max(map(len, both_ids(setup.readers, row))))
        except DataError:  # with `on_bad_row: error` it was raised before
            refused += 1
    too_long = sum(length > setup.max_length for length in lengths)
    reasons = {f"longer than max_length {setup.max_length}": too_long, "refused by the template": refused}
    return Lost(reasons, len(lengths) + refused, describe_lengths(lengths) if lengths else "")


def rows_left(setup: Setup, of: str, left_out: Lost) -> Item:
    """Whether a run takes the rows that max_length and the template leave, and which lengths would keep all."""
    if left_out.count >= left_out.of:
        return Item(f"lengths{of}", False, f"no row is left; {left_out.about}".rstrip("; "))
    if left_out.many and setup.on_bad_row == "error":
        return Item(f"lengths{of}", False, f"{left_out}. {WAYS_OUT}")
    fits = f"all {left_out.of} rows fit {setup.max_length} tokens; {left_out.about}"
    return Item(f"lengths{of}", True, str(left_out) if left_out.count else fits)


def _reckoned_sizes(
    setup: Setup, prompted: Sequence[Example], new_tokens: int, samples: int
) -> dict[str, int]:
    """The sizes of the rows before the teacher has written, as if every answer had full length."""
    length = new_tokens + sum(len(example.input_ids) for example in prompted) // max(1, len(prompted))
    validation, answers = len(setup.data.validation), len(prompted) * samples
    return {
        "train_tokens": answers * new_tokens,
        "row_tokens": answers * length,
        "validation_rows": validation,
        "validation_tokens": validation * length,
    }


def _reckoned(prompted: Sequence[Example], new_tokens: int, samples: int) -> list[Example]:
    """Prompts with answers of full length that the teacher has yet to write."""
    return [
        replace(example, id=f"{example.id}#{sample}", part_of=example.id, room=new_tokens)
        for example in prompted
        for sample in range(samples)
    ]


def _mix(setup: Setup, plan: Plan, generated: Sequence[Example]) -> tuple[Item, Sequence[Example]]:
    """What the shares of several sources come to, as far as it is known before the teacher writes."""
    sources: dict[str, Sequence[Example]] = {
        source: with_domains(_encoded(setup, rows, needed=False).examples, rows, setup.domain)
        for source, rows in setup.data.mixed.items()
    }
    if plan.generated:
        sources[GENERATED] = generated
    try:
        examples, taken = mixed(plan, sources)
    except DataError as error:
        return Item("mix", False, str(error)), ()
    most = " at most, with answers that are all used and of full length" if plan.generated else ""
    parts = [f"{one.rows} of {one.of_rows} rows of {one.source} ({one.tokens} tokens)" for one in taken]
    return Item("mix", True, f"by {plan.by}: {', '.join(parts)}{most}"), examples
