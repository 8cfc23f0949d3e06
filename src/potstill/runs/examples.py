"""What stages are fed: rows as prompts, answers as examples, held-out rows as questions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from potstill.data import chat, split
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.runs.rows import weights_of
from potstill.runs.setup import Parts
from potstill.stages.evaluate import Question
from potstill.stages.generate import Prompt, Written, read
from potstill.store.artifacts import Artifact
from potstill.types import Example

log = logging.getLogger("potstill")


@dataclass(frozen=True)
class Fed:
    """Examples, and how many rows or answers were left out, by reason."""

    examples: list[Example]
    funnel: Mapping[str, int] = field(default_factory=dict)


def prompt_ids(templater: Templater, row: Row) -> list[int]:
    """The row as a question to a model.

    Raises:
        DataError: names the row's file and line.
    """
    if row.text is not None:
        raise DataError(
            "this row is plain text, and a teacher answers prompts.",
            path=row.source or row.id,
            fix="Give rows with a prompt, or leave the generate stage out to train on the text itself.",
        )
    try:
        return templater.prompt_ids(row.prompt, list(row.tools) or None)
    except DataError as error:
        raise DataError(error.message, fix=error.fix, path=error.path or row.source or row.id) from error


def prompts(
    parts: Parts, rows: Sequence[Row], new_tokens: int, samples: int
) -> tuple[list[Prompt], Counter[str]]:
    """The rows as the teacher reads them, with room for `new_tokens` in both models; one sample each of rows
    that are not trained on.

    Raises:
        DataError: a row cannot be asked and `on_bad_row` is error, or no prompt is left.
    """
    # Two answers to one prompt are not two prompts, so what is measured on has one.
    trained = {row.id for row in parts.data.train}
    room = parts.max_length - new_tokens
    found: list[Prompt] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        whose = "" if row.id in trained else "measured "
        try:
            ids = prompt_ids(parts.teacher_templater, row)
            own = ids if parts.reads_alike else prompt_ids(parts.student_templater, row)
        except DataError:
            if parts.recipe.data.on_bad_row == "error" or row.text is not None:
                raise
            left_out[f"{whose}prompt refused by the template"] += 1
            continue
        if max(len(ids), len(own)) > room:
            left_out[f"{whose}prompt too long"] += 1
            continue
        found.append(Prompt(row.id, tuple(ids), samples if row.id in trained else 1))
    if rows and not found:
        reasons: Counter[str] = Counter()
        for reason, count in left_out.items():
            reasons[reason.removeprefix("measured ")] += count
        raise DataError(
            f"none of the {len(rows)} prompts can be asked: "
            + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            + f". max_length {parts.max_length} leaves {room} tokens beside {new_tokens} new ones.",
            path="data.max_length",
            fix="Raise max_length, or shorten the prompts.",
        )
    return found, left_out


def answered(parts: Parts, answers: Artifact, rows: Sequence[Row]) -> Fed:
    """The teacher's answers to these rows, in the student's ids, each ended as the student ends a turn.

    Ids cross over only between equal vocabularies; else the text does. What the teacher did not end gets
    no end token. An answer without a word is left out.

    Raises:
        DataError: no answer is left.
    """
    by_id = {row.id: row for row in rows}
    templater = parts.student_templater
    found = []
    written = [answer for answer in read(answers) if answer.row_id in by_id]
    left_out: Counter[str] = Counter()
    foreign = frozenset(parts.teacher_templater.stop_ids) - frozenset(templater.stop_ids)
    for answer in written:
        if not answer.text.strip():
            left_out["empty answer"] += 1
            continue
        ids = _student_ids(parts, answer, foreign)
        prompt = prompt_ids(templater, by_id[answer.row_id])
        example = templater.generated(answer.row_id, prompt, ids, "teacher", end=answer.finish == "stop")
        if len(example.input_ids) > parts.max_length:
            # The same words can be more tokens to the student than to the teacher.
            left_out["answer too long for the student"] += 1
            continue
        if answer.sample:
            example = replace(example, id=f"{example.id}#{answer.sample}", part_of=example.id)
        found.append(example)
    if written and not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(
            f"none of the teacher's {len(written)} answers can be used: {reasons}.",
            path="generate",
            fix="Look at the rendered prompts (potstill check): the template may end the answer at once.",
        )
    if empty := left_out["empty answer"]:
        log.warning("%d of %d answers are empty and left out", empty, len(written))
    return Fed(found, left_out)


def by_prompt(examples: Sequence[Example], rows: Sequence[Row]) -> list[Example]:
    """The examples as parts of the first one with their prompt: answers to one prompt are not independent."""
    prompt = {row.id: split.normal(row.prompt_text) for row in rows}
    first: dict[str, str] = {}
    return [
        replace(example, part_of=first.setdefault(prompt[example.row_id], example.row_id))
        for example in examples
    ]


def weighed(parts: Parts, examples: Sequence[Example], rows: Sequence[Row], split: str) -> list[Example]:
    """The examples with the weights that their rows name in the column `data.weight`.

    Raises:
        DataError: names a row whose weight is missing or is no number from 0 up.
    """
    column = parts.recipe.data.weight
    if column is None:
        return list(examples)
    weights = weights_of(rows, column)
    found = [replace(example, weight=weights[example.row_id]) for example in examples]
    if examples and not any(example.weight for example in found):
        if split != "train":
            return list(examples)  # nothing to weigh by
        raise DataError(
            f"the weight in the column {column!r} is 0 in every training row.", path="data.weight"
        )
    return found


def _student_ids(parts: Parts, answer: Written, foreign: frozenset[int]) -> list[int]:
    """The answer to the student, without an end token of the teacher's that the student does not end with."""
    if not parts.shared_vocabulary:
        return parts.student_templater.text_ids(answer.text)
    ids = list(answer.ids)
    return ids[:-1] if ids and answer.finish == "stop" and ids[-1] in foreign else ids


def questions(parts: Parts, examples: Sequence[Example], most: int, *, generated: bool) -> list[Question]:
    """The first held-out rows, each once, as prompt and first answer.

    Where the teacher answered, the whole conversation was asked; in a row of data, its first question is.

    Raises:
        DataError: the teacher's template refuses a question that the student's takes; names the row.
    """
    rows = {row.id: row for row in parts.data.heldout}
    found: dict[str, Question] = {}
    for example in examples:
        row = rows.get(example.row_id)
        if row is None or row.id in found or row.text is not None:
            continue
        if len(found) >= most:
            break
        first = example.scored.index(True)
        rest = example.scored[first:]
        length = rest.index(False) if False in rest else len(rest)
        answer = example.input_ids[first : first + length]
        text = parts.tokenizer.decode(
            list(answer), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        asked = example.input_ids[:first]
        turns = row.prompt if generated else chat.opening(row.messages)
        teacher = asked
        if not parts.reads_alike:
            teacher = tuple(prompt_ids(parts.teacher_templater, replace(row, messages=turns)))
        found[row.id] = Question(
            row_id=row.id,
            prompt_ids=asked,
            teacher_prompt_ids=teacher,
            prompt="\n".join(message["content"] for message in turns),
            reference=text,
            reference_tokens=length,
            family=str(row.extra.get("family") or ""),
            unseen=str(row.extra.get("unseen") or "").strip().casefold()
            not in ("", "0", "0.0", "false", "no"),
        )
    return list(found.values())


def longest_answer(parts: Parts, asked: Sequence[Question], new_tokens: int) -> int:
    """As many new tokens as every question leaves room for, at most `new_tokens`."""
    return max(1, min(new_tokens, parts.context - max(map(_asked_length, asked), default=0)))


def with_room(parts: Parts, asked: Sequence[Question], new_tokens: int) -> list[Question]:
    """The questions that leave room for an answer in both models' context."""
    fit = [question for question in asked if _asked_length(question) <= parts.context - new_tokens]
    if len(fit) < len(asked):
        log.warning(
            "%d of %d held-out prompts leave no room for %d new tokens in a context of %d; "
            "they are not answered in text",
            len(asked) - len(fit), len(asked), new_tokens, parts.context,
        )  # fmt: skip
    return fit


def _asked_length(question: Question) -> int:
    return max(len(question.prompt_ids), len(question.teacher_prompt_ids))
