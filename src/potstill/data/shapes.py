"""The forms in which people write a row: messages, prompt and response, question and answer, text, ShareGPT, Alpaca."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from potstill.data.files import describe, parse_json
from potstill.data.row import SYSTEM, Message, Row, role_problem
from potstill.data.turns import SPEAKERS, BadRow, read_turn, require

_ANSWERS = ("response", "completion", "output", "answer")
_CONTEXTS = ("input", "context")
_SYSTEMS = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
_ASKED = (*_CONTEXTS, "history", *_ANSWERS, *_SYSTEMS)
# The columns that each shape reads; the first of them is required.
COLUMNS = {
    "messages": ("messages", *_SYSTEMS),
    "sharegpt": ("conversations", *_SYSTEMS),
    "prompt": ("prompt", *_ASKED),
    "alpaca": ("instruction", *_ASKED),
    "question": ("question", *_ASKED, "answers"),
    "text": ("text",),
}
WITH_ANSWERS = frozenset(
    {*_ANSWERS, "answers", "messages", "conversations"}
)  # columns that a row's answer is read from
UNUSED = "unused"  # what a recipe calls a column that is left out on purpose
ALL_COLUMNS = frozenset({"id", *_TOOLS, UNUSED}.union(*COLUMNS.values()))

# What a column may hold that changes what a row teaches, by the last word of its name or the first.
_MEANINGS = {
    "an answer": re.compile(
        r"(^|_)(answers?|responses?|completions?|outputs?|targets?|solutions?|references?|repl(y|ies)|"
        r"generat(ed|ed_text|ions?)|predictions?|ground_truth|gold|"
        r"reasoning|thinking|rationale)$|^chosen$"
    ),
    "a context": re.compile(
        r"(^|_)(contexts?|passages?|documents?|inputs?|history|histories|evidences?|backgrounds?|system|tools)$"
    ),
    "a picture or sound": re.compile(r"(^|_)(images?|pictures?|photos?|audios?|videos?|pixel_values)$"),
    "a judgement": re.compile(
        r"(^|_)(scores?|ratings?|rewards?|labels?|preferences?|judge?ments?|votes?|quality|weights?|masks?)$|"
        r"^(chosen|rejected|score|rating|is_correct|correct)(_|$)"
    ),
    "a turn's place in a conversation": re.compile(r"^(role|speaker|replies)$|(^|_)parent(_id)?$"),
}


def meaning(name: str) -> str:
    """What a column of this name holds that a row's reader must know of; "" for nothing."""
    word = re.sub(r"[\W_]*\d*$", "", re.sub(r"(?<=[a-z])(?=[A-Z])|[\W]+", "_", name)).lower()
    return next((what for what, names in _MEANINGS.items() if names.search(word)), "")


def naming(columns: Sequence[str]) -> str:
    """How to go on where columns are of no known format."""
    if len(columns) == 1 and (marks := [mark for mark in ";\t|" if mark in columns[0]]):
        return f"The fields seem to be separated by {marks[0]!r}: save them with commas between, or tabs as .tsv."
    near = {name: difflib.get_close_matches(name, ALL_COLUMNS, n=1) for name in columns}
    alike = [f"{name}: {found[0]}" for name, found in near.items() if found and found[0] != name]
    example = ", ".join(alike) or "question: prompt, answer: response"
    return f"Name them in data.columns, for example {{{example}}}."


def detect(values: Sequence[Mapping[str, Any]]) -> str | None:
    """Find the shape that most rows fit, of equals the first in `COLUMNS`; None when no row fits any."""
    fits = {
        shape: sum(row.get(columns[0]) is not None for row in values) for shape, columns in COLUMNS.items()
    }
    best = max(fits, key=fits.__getitem__)
    return best if fits[best] else None


def convert(shape: str, value: Mapping[str, Any], source: str) -> Row:
    """Read a row of this shape. Its id is "" where it has none.

    Raises:
        BadRow: a column is missing, of the wrong type or empty, or the roles are out of order.
    """
    columns = COLUMNS[shape]
    if value.get(columns[0]) is None:
        raise BadRow(f"the column {columns[0]!r} is missing or null.")
    row_id = value.get("id")
    has_id = isinstance(row_id, str | int) and not isinstance(row_id, bool)
    read = ("id", *columns) if shape == "text" else ("id", *_TOOLS, *columns)
    extra = {name: item for name, item in value.items() if name not in read}
    row = Row(str(row_id) if has_id else "", extra=extra, source=source)
    if shape == "text":
        return replace(row, text=_text(value, "text"))
    messages = _MESSAGES[shape](value)
    system = _one(value, _SYSTEMS, empty=True)
    if system and str(value[system]).strip() and not (messages and messages[0]["role"] in SYSTEM):
        messages.insert(0, {"role": "system", "content": _text(value, system)})
    if problem := role_problem(messages):
        raise BadRow(problem)
    return replace(row, messages=tuple(messages), tools=_tools(value))


def unread(row: Row, used: Collection[str]) -> dict[str, str]:
    """The filled columns of a row that nobody reads, each with what its name means."""
    return {
        name: meaning(name)
        for name, item in row.extra.items()
        if name not in used and name != UNUSED and item not in (None, "", [], {})
    }


def _sharegpt(row: Mapping[str, Any]) -> list[Message]:
    messages = []
    for number, turn in enumerate(_list(row, "conversations")):
        where = f"conversations[{number}]"
        require(dict, turn, where)
        rest = {k: v for k, v in turn.items() if k not in ("from", "value", "role", "content")}
        said = {"role": turn.get("from", turn.get("role")), "content": turn.get("value", turn.get("content"))}
        messages.append(read_turn({**rest, **said}, where, SPEAKERS))
    return messages


def _asked(row: Mapping[str, Any], name: str) -> list[Message]:
    """Read a question with what belongs to it: earlier turns, a passage, and its answer."""
    messages = [*_history(row), *_turns(row, name, "user")]
    if context := _one(row, _CONTEXTS, empty=True):
        if not isinstance(row[name], str):
            raise BadRow(f"the column {context!r} stands beside a list of messages.")
        messages[-1]["content"] += f"\n\n{_text(row, context)}"
    answer = _one(row, _ANSWERS)
    return messages + (_answer(row, answer) if answer else [])


def _answer(row: Mapping[str, Any], name: str) -> list[Message]:
    turns = _turns(row, name, "assistant")
    if turns[0]["role"] in (*SYSTEM, "user"):
        raise BadRow(
            f"the column {name!r} begins with a turn of the {turns[0]['role']}: a whole conversation is read from "
            "the column 'messages', without a prompt beside it."
        )
    return turns


def _question(row: Mapping[str, Any]) -> list[Message]:
    if row.get("answers") is None:
        return _asked(row, "question")
    texts = row["answers"].get("text") if isinstance(row["answers"], dict) else row["answers"]
    texts = (
        list(dict.fromkeys(texts))
        if isinstance(texts, list) and all(isinstance(t, str) for t in texts)
        else []
    )
    if len(texts) != 1 or row.get("answer") is not None:
        raise BadRow("the column 'answers' holds not exactly one answer; give one in the column 'answer'.")
    return _asked({**row, "answer": texts[0]}, "question")


def _history(row: Mapping[str, Any]) -> list[Message]:
    """Read earlier turns: messages, or pairs of question and answer."""
    if row.get("history") in (None, "", []):
        return []
    messages: list[Message] = []
    for number, item in enumerate(_list(row, "history")):
        where = f"history[{number}]"
        if isinstance(item, dict):
            messages.append(read_turn(item, where))
        elif isinstance(item, list) and len(item) == 2:
            for role, text in zip(("user", "assistant"), item, strict=True):
                messages.append(read_turn({"role": role, "content": text}, where))
        else:
            raise BadRow(f"{where} is neither a message nor a pair of question and answer.")
    return messages


def _turns(row: Mapping[str, Any], name: str, role: str | None = None) -> list[Message]:
    """Read a list of messages; with a `role`, text too."""
    if role is not None and not isinstance(row[name], list):
        if not isinstance(row[name], str):
            raise BadRow(f"the column {name!r} is {describe(row[name])}, not text or a list of messages.")
        return [{"role": role, "content": _text(row, name)}]
    return [read_turn(turn, f"{name}[{number}]") for number, turn in enumerate(_list(row, name))]


_MESSAGES = {
    "messages": lambda row: _turns(row, "messages"), "sharegpt": _sharegpt, "question": _question,
    "prompt": lambda row: _asked(row, "prompt"), "alpaca": lambda row: _asked(row, "instruction"),
}  # fmt: skip


def _tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    name = _one(row, _TOOLS, empty=True)
    tools = _list(row, name) if name else []
    for number, tool in enumerate(tools):
        require(dict, tool, f"{name}[{number}]")
    return tuple(tools)


def _one(row: Mapping[str, Any], names: Sequence[str], *, empty: bool = False) -> str:
    """The one column of `names` that is filled, "" for none; `empty` ones count as absent.

    Raises:
        BadRow: several are filled.
    """
    filled = [name for name in names if row.get(name) is not None and not (empty and not row[name])]
    if len(filled) > 1:
        raise BadRow(f"the row has both a {filled[0]} and a {filled[1]}.")
    return filled[0] if filled else ""


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    """Read a list, also from JSON text as tables hold it."""
    value = row[name]
    if isinstance(value, str):
        with suppress(ValueError):
            value = parse_json(value)
    require(list, value, f"the column {name!r}")
    if not value and name not in _TOOLS:
        raise BadRow(f"the column {name!r} is an empty list.")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    require(str, row[name], f"the column {name!r}")
    if not row[name].strip():
        raise BadRow(f"the column {name!r} is empty.", empty=True)
    return row[name]
