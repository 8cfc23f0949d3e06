"""The forms in which people write a row: chat messages, prompt and response, text, ShareGPT, Alpaca."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from potstill.data.files import describe, parse_json
from potstill.data.row import ROLES, SYSTEM, Message, Row, role_problem

# The columns that each shape reads; the first of them is required.
COLUMNS = {
    "messages": ("messages", "system"),
    "sharegpt": ("conversations", "system"),
    "prompt": ("prompt", "response", "completion", "system"),
    "alpaca": ("instruction", "input", "output", "system"),
    "text": ("text",),
}
ALL_COLUMNS = frozenset({"id", "tools"}.union(*COLUMNS.values()))
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip


class BadRow(Exception):
    """Raised for a row that cannot be used. Empty ones are always dropped; others are the user's decision."""

    def __init__(self, message: str, *, empty: bool = False) -> None:
        super().__init__(message)
        self.empty = empty


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
    extra = {name: item for name, item in value.items() if name not in ("id", "tools", *columns)}
    row = Row(str(row_id) if has_id else "", extra=extra, source=source)
    if shape == "text":
        return replace(row, text=_text(value, "text"))
    messages = _MESSAGES[shape](value)
    if str(value.get("system") or "").strip() and not (messages and messages[0]["role"] in SYSTEM):
        messages.insert(0, {"role": "system", "content": _text(value, "system")})
    if problem := role_problem(messages):
        raise BadRow(problem)
    return replace(row, messages=tuple(messages), tools=_tools(value))


def _sharegpt(row: Mapping[str, Any]) -> list[Message]:
    messages = []
    for number, turn in enumerate(_list(row, "conversations")):
        where = f"conversations[{number}]"
        _require(dict, turn, where)
        speaker = turn.get("from", turn.get("role"))
        role = _SHAREGPT_ROLES.get(str(speaker))
        if role is None:
            raise BadRow(f"{where} is from {speaker!r}; potstill reads {', '.join(_SHAREGPT_ROLES)}.")
        rest = {k: v for k, v in turn.items() if k not in ("from", "value", "role", "content")}
        content = turn.get("value", turn.get("content"))
        messages.append(_turn({"role": role, "content": content, **rest}, where))
    return messages


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    answers = [name for name in ("response", "completion") if row.get(name) is not None]
    if len(answers) > 1:
        raise BadRow("the row has both a response and a completion.")
    messages = _turns(row, "prompt", role="user")
    return messages + (_turns(row, answers[0], role="assistant") if answers else [])


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    names = ("instruction", "input") if row.get("input") else ("instruction",)
    messages = [{"role": "user", "content": "\n\n".join(_text(row, name) for name in names)}]
    if row.get("output") is not None:
        messages.append({"role": "assistant", "content": _text(row, "output")})
    return messages


def _turns(row: Mapping[str, Any], name: str, role: str | None = None) -> list[Message]:
    """Read a list of messages; with a `role`, text too."""
    if role is not None and isinstance(row[name], str):
        return [{"role": role, "content": _text(row, name)}]
    return [_turn(turn, f"{name}[{number}]") for number, turn in enumerate(_list(row, name))]


_MESSAGES = {
    "messages": lambda row: _turns(row, "messages"), "sharegpt": _sharegpt, "prompt": _prompt, "alpaca": _alpaca
}  # fmt: skip


def _turn(turn: Any, where: str) -> Message:
    _require(dict, turn, where)
    message = {key: item for key, item in _without_nulls(turn).items() if key != "tool_calls" or item}
    role, calls = message.get("role"), message.get("tool_calls")
    if role not in ROLES:
        raise BadRow(f"{where} has the role {role!r}; potstill reads {', '.join(ROLES)}.")
    if calls:
        _require(list, calls, f"{where}.tool_calls")
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
        # Templates test whether content is empty; few of them expect it to be absent.
        message.setdefault("content", "")
    for key in ("content", "reasoning_content", "reasoning"):
        if key in message:
            _require(str, message[key], f"{where}.{key}")
    if "content" not in message:
        raise BadRow(f"{where} has no content.")
    if not message["content"].strip() and role in ("user", "assistant") and not calls:
        raise BadRow(f"{where}.content is empty.", empty=True)
    return message


def _call(call: Any, where: str) -> Any:
    """Read a tool call's arguments as an object: servers write JSON text, templates print objects."""
    _require(dict, call, where)
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = parse_json(function["arguments"] or "{}")
    except ValueError as error:
        raise BadRow(f"{where} has arguments that are not JSON: {error}.") from error
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    tools = _list(row, "tools") if row.get("tools") else []
    for number, tool in enumerate(tools):
        _require(dict, tool, f"tools[{number}]")
    return tuple(_without_nulls(tools))


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    """Read a list, also from JSON text as tables hold it."""
    value = row[name]
    if isinstance(value, str):
        with suppress(ValueError):
            value = parse_json(value)
    _require(list, value, f"the column {name!r}")
    if not value and name != "tools":
        raise BadRow(f"the column {name!r} is an empty list.")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    _require(str, row[name], f"the column {name!r}")
    if not row[name].strip():
        raise BadRow(f"the column {name!r} is empty.", empty=True)
    return row[name]


def _require(kind: type, value: Any, where: str) -> None:
    if not isinstance(value, kind):
        raise BadRow(f"{where} is {describe(value)}, not {describe(kind())}.")


def _without_nulls(value: Any) -> Any:
    """Remove null fields: tables fill in every field that any other row has."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
