"""A few rows as a check shows them: what the models read, and which of it is scored."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

from potstill.check import ledger
from potstill.check.report import Rendered
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.stages._context import Setup
from potstill.types import Example

SHOWN = 3


def rendered_prompts(setup: Setup) -> list[Rendered]:
    """Prompts as the teacher reads them, and as the student does where that differs; a served teacher is sent the
    turns themselves."""
    student, teacher = setup.readers.student.templater, setup.readers.teacher
    sides = ["train"]
    if not setup.readers.same_prompts or (teacher is not None and not setup.readers.read_alike):
        sides = ["train, as the teacher reads it", "train, as the student reads it"]

    def as_teacher_reads(row: Row) -> str:
        if teacher is not None:
            return teacher.templater.prompt_text(row.prompt, row.tools)
        return "".join(f"{turn['role']}: {turn['content']}\n" for turn in row.prompt)

    shown: list[Rendered] = []
    for row in setup.data.train:
        try:
            texts = [student.prompt_text(row.prompt, row.tools)]
            if len(sides) > 1:
                texts.insert(0, as_teacher_reads(row.for_teacher))
        except DataError:
            continue  # named or skipped where the rows were read
        shown += [
            Rendered(
                row.id,
                side,
                f"{text}⟦the teacher's answer⟧",
                tuple(ledger.accounts(setup, row, asked=True)),
                ledger.unread(setup, row),
            )
            for side, text in zip(sides, texts, strict=True)
        ]
        if len(shown) >= SHOWN * len(sides):
            break
    return shown


def marked(setup: Setup, example: Example, row: Row) -> Rendered:
    """The example's own ids as text, runs of scored tokens in brackets."""
    decode = setup.readers.student.tokenizer.decode
    text, spans, place = "", [], 0
    for scored, run in groupby(zip(example.input_ids, example.scored, strict=True), key=itemgetter(1)):
        ids = [token for token, _ in run]
        words = decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text += f"⟦{words}⟧" if scored else words
        if scored:
            spans.append((place, place + len(ids)))
        place += len(ids)
    parts = ledger.accounts(setup, row, asked=bool(example.room))
    return Rendered(example.id, "train", text, tuple(parts), ledger.unread(setup, row), place, tuple(spans))
