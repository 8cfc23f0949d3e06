"""What can be told without loading a weight."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.check import audit
from potstill.check.report import CheckReport, Item, Rendered
from potstill.data import split
from potstill.data.examples import Encoded, encode
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.models import anatomy, loading
from potstill.recipe.defaults import METHODS, Default, resolve_auto, twin_of
from potstill.recipe.recipe import notes
from potstill.recipe.stages import Control, Generate, Training
from potstill.runs import setup
from potstill.runs.examples import prompt_ids, prompts
from potstill.runs.setup import Parts
from potstill.types import Example

SHOWN = 3
_ESTIMATE = ("sizes that depend on the number of tokens are reckoned with answers of full length.",)


def read(parts: Parts) -> tuple[CheckReport, list[Example]]:
    """Models, vocabulary, rows, split, defaults and three rendered rows; and the rows as examples.

    Where a generate stage comes first, the examples are the prompts alone.
    """
    longest = max((s.max_new_tokens for s in parts.recipe.stages if isinstance(s, Generate)), default=0)
    writes = longest > 0
    encoded = None if writes else _encoded(parts, parts.data.train)
    examples = list(encoded.examples) if encoded else _asked(parts, longest)
    measured = _measured(parts, longest)
    sizes = encoded.lengths if encoded else [len(example.input_ids) for example in examples]
    items = [
        *_items(parts),
        *measured,
        audit.stop_tokens(parts, examples),
        audit.lengths(parts, sizes, longest),
    ]
    found = CheckReport(
        recipe=parts.recipe.name,
        items=tuple(items),
        stages=tuple(stage.name for stage in parts.recipe.stages),
        defaults=_defaults(parts, examples, longest),
        rows=tuple(_prompts(parts) if writes else (_marked(parts, e) for e in examples[:SHOWN])),
        notes=parts.notes + notes(parts.recipe) + _sources(parts) + (_ESTIMATE if writes else ()),
    )
    return found, examples


def _items(parts: Parts) -> list[Item]:
    data = parts.data
    seen = split.overlap(data.trained_on, data.heldout)
    reads = ", ".join(f"{count} {name}" for name, count in data.funnel.items() if count)
    student = "cut from the teacher" if parts.student is None else parts.student.source.location
    return [
        Item(
            "teacher",
            True,
            f"{parts.teacher.source.location}, {str(parts.teacher.dtype).removeprefix('torch.')}",
        ),
        Item("student", True, student),
        Item("device", True, parts.device.type),
        Item(
            "vocabulary",
            True,
            f"{parts.vocabulary.size} ids, shared" if parts.shared_vocabulary else "not shared",
        ),
        Item("rows", True, f"{data.shape}; {reads}"),
        Item(
            "split",
            True,
            f"{len(data.train)} train, {len(data.validation)} validation, {len(data.heldout)} held out ({data.source})",
        ),
        Item(
            "overlap",
            seen.exact == 0,
            f"of {seen.of} held-out prompts {seen.exact} stand in training, {seen.near} nearly, "
            f"{seen.gram} share {split.GRAM} words in a row",
        ),
        Item("longest row", True, f"{parts.max_length} tokens may stand in a row"),
    ]


def _encoded(parts: Parts, rows: Sequence[Row]) -> Encoded:
    policy = parts.recipe.data.on_bad_row
    return encode(rows, parts.student_templater, max_length=parts.max_length, on_bad_row=policy)


def _asked(parts: Parts, new_tokens: int) -> list[Example]:
    """The training prompts as ids, too long ones among them; nothing in them is scored."""
    prompts(parts, parts.data.everything, new_tokens, 1)
    found = []
    for row in parts.data.train:
        try:
            ids = prompt_ids(parts.teacher_templater, row)
        except DataError:
            if parts.recipe.data.on_bad_row == "error":
                raise
            continue
        found.append(Example(row.id, tuple(ids), (False,) * len(ids)))
    return found


def _measured(parts: Parts, new_tokens: int) -> list[Item]:
    """Whether the held-out rows can be measured, where the recipe evaluates."""
    if not any(stage.verb == "evaluate" for stage in parts.recipe.stages):
        return []
    rows = parts.data.heldout
    try:
        if new_tokens:
            count = len(prompts(parts, rows, new_tokens, 1)[0])
        else:
            count = len(_encoded(parts, rows).examples)
    except DataError as error:
        return [Item("held-out rows", False, str(error))]
    return [Item("held-out rows", count > 0, f"{count} of {len(rows)} can be measured")]


def _defaults(parts: Parts, examples: list[Example], longest: int) -> tuple[Default, ...]:
    """What `auto` becomes; before the teacher has written, as if every answer had full length."""
    tokens = len(parts.data.train) * longest or sum(example.count for example in examples)
    found: list[Default] = []
    settled: dict[str, Training] = {}
    parameters = None if parts.student is None else _parameters(parts.student.source)
    for stage in parts.recipe.stages:
        if isinstance(stage, Control):
            stage, shared = twin_of(stage, parts.recipe.stages, settled)
            found += shared
        facts = setup.facts(
            parts,
            tokens or None,
            parameters,
            longest or None,
            untrained=not settled or isinstance(stage, Control),
        )
        stage, defaults = resolve_auto(stage, facts)
        if isinstance(stage, Training):
            settled[stage.name] = stage
        found += defaults
    return tuple(found)


def _parameters(source: loading.Source) -> int:
    """How many parameters a model has, without reading its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = loading.load_config(source)
    with loading.quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    return anatomy.parameter_count(model)


def _prompts(parts: Parts) -> list[Rendered]:
    """Prompts as the teacher reads them, and as the student does where that differs."""
    sides = [(parts.teacher_templater, "train" if parts.reads_alike else "train, as the teacher reads it")]
    if not parts.reads_alike:
        sides.append((parts.student_templater, "train, as the student reads it"))
    found = []
    for row in parts.data.train:
        try:
            texts = [templater.prompt_text(row.prompt, list(row.tools) or None) for templater, _ in sides]
        except DataError:
            continue  # named or skipped where the rows were read
        shown = zip(texts, sides, strict=True)
        found += [Rendered(row.id, where, text + "⟦the teacher's answer⟧") for text, (_, where) in shown]
        if len(found) >= SHOWN * len(sides):
            break
    return found


def _marked(parts: Parts, example: Example) -> Rendered:
    """The example's own ids as text, runs of scored tokens in brackets."""
    pieces, run = [], []
    decode = parts.tokenizer.decode
    for index, token in enumerate(example.input_ids):
        run.append(token)
        last = index + 1 == len(example.input_ids)
        if last or example.scored[index + 1] != example.scored[index]:
            text = decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append(f"⟦{text}⟧" if example.scored[index] else text)
            run = []
    return Rendered(example.id, "train", "".join(pieces))


def _sources(parts: Parts) -> tuple[str, ...]:
    method = parts.opened.method
    return () if method is None else (f"method {method}: {METHODS[method].source}",)
