"""The forms in which people write a row: chat messages, prompt and response, text, ShareGPT, Alpaca."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.data import chat
from potstill.data.chat import Message
from potstill.data.files import describe, parse_json

REQUIRED = {
    "messages": "messages",
    "sharegpt": "conversations",
    "prompt": "prompt",
    "alpaca": "instruction",
    "text": "text",
}
_OPTIONAL = {
    "messages": ("system",),
    "sharegpt": ("system",),
    "prompt": ("response", "completion", "system"),
    "alpaca": ("input", "output", "system"),
    "text": (),
}
KNOWN = frozenset({"id", "tools", *REQUIRED.values(), *(c for names in _OPTIONAL.values() for c in names)})
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class BadRow(Exception):
    """Raised for a row that cannot be used. Empty ones are always dropped; others are the user's decision."""

    def __init__(self, message: str, *, empty: bool = False) -> None:
        super().__init__(message)
        self.empty = empty


@dataclass(frozen=True)
class Content:
    """A row in the one form that the rest of potstill reads."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    extra: Mapping[str, Any] | None = None


def detect(values: Sequence[Mapping[str, Any]]) -> str | None:
    """Find the shape that most rows fit, of equals the first in `REQUIRED`; None when no row fits any."""
    fits = {shape: sum(row.get(column) is not None for row in values) for shape, column in REQUIRED.items()}
    best = max(fits, key=fits.__getitem__)
    return best if fits[best] else None


def columns_of(shape: str) -> tuple[str, ...]:
    """The columns that a shape reads, the required one first."""
    return (REQUIRED[shape], *_OPTIONAL[shape])


def convert(shape: str, row: Mapping[str, Any]) -> Content:
    """Read a row's content.

    Raises:
        BadRow: a column is missing, of the wrong type or empty, or the roles are out of order.
    """
    used = {"id", "tools", *columns_of(shape)}
    extra = {name: value for name, value in row.items() if name not in used}
    if row.get(REQUIRED[shape]) is None:
        raise BadRow(f"the column {REQUIRED[shape]!r} is missing or null.")
    if shape == "text":
        return Content(text=_text(row, "text"), extra=extra)
    messages = list(_MESSAGES[shape](row))
    if str(row.get("system") or "").strip() and not (messages and messages[0]["role"] in chat.SYSTEM):
        messages.insert(0, {"role": "system", "content": _text(row, "system")})
    if problem := chat.problem(messages):
        raise BadRow(problem)
    return Content(messages=tuple(messages), tools=_tools(row.get("tools")), extra=extra)


def _messages(row: Mapping[str, Any]) -> Iterator[Message]:
    yield from _turns(row["messages"], "messages")


def _sharegpt(row: Mapping[str, Any]) -> Iterator[Message]:
    turns = []
    for number, turn in enumerate(_list(row["conversations"], "conversations")):
        where = f"conversations[{number}]"
        if not isinstance(turn, dict):
            raise BadRow(f"{where} is {describe(turn)}, not an object.")
        role = _SHAREGPT_ROLES.get(str(turn.get("from", turn.get("role"))))
        if role is None:
            raise BadRow(
                f"{where} is from {turn.get('from')!r}; potstill reads {', '.join(_SHAREGPT_ROLES)}."
            )
        rest = {k: v for k, v in turn.items() if k not in ("from", "value", "role", "content")}
        turns.append({"role": role, "content": turn.get("value", turn.get("content")), **rest})
    yield from _turns(turns, "conversations")


def _prompt(row: Mapping[str, Any]) -> Iterator[Message]:
    yield from _turns(row["prompt"], "prompt", role="user")
    answers = [name for name in ("response", "completion") if row.get(name) is not None]
    if len(answers) > 1:
        raise BadRow("the row has both a response and a completion.")
    for name in answers:
        yield from _turns(row[name], name, role="assistant")


def _alpaca(row: Mapping[str, Any]) -> Iterator[Message]:
    parts = [_text(row, "instruction"), *([_text(row, "input")] if row.get("input") else [])]
    yield {"role": "user", "content": "\n\n".join(parts)}
    if row.get("output") is not None:
        yield {"role": "assistant", "content": _text(row, "output")}


_MESSAGES = {"messages": _messages, "sharegpt": _sharegpt, "prompt": _prompt, "alpaca": _alpaca}


def _turns(value: Any, name: str, role: str | None = None) -> Iterator[Message]:
    """Read a list of messages; with a `role`, text too."""
    if role is not None and isinstance(value, str):
        yield {"role": role, "content": _text({name: value}, name)}
        return
    for number, turn in enumerate(_list(value, name)):
        yield _turn(turn, f"{name}[{number}]")


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"{where} is {describe(turn)}, not an object with role and content.")
    message = {key: item for key, item in strip_nulls(turn).items() if key != "tool_calls" or item}
    role = message.get("role")
    if role not in chat.ROLES:
        raise BadRow(f"{where} has the role {role!r}; potstill reads {', '.join(chat.ROLES)}.")
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise BadRow(f"{where}.tool_calls is {describe(calls)}, not a list.")
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
        # Templates test whether content is empty; few of them expect it to be absent.
        message.setdefault("content", "")
    for key in ("content", "reasoning_content", "reasoning"):
        if key in message and not isinstance(message[key], str):
            raise BadRow(f"{where}.{key} is {describe(message[key])}, not text.")
    if "content" not in message:
        raise BadRow(f"{where} has no content.")
    if not message["content"].strip() and role in ("user", "assistant") and not calls:
        raise BadRow(f"{where}.content is empty.", empty=True)
    return message


def _call(call: Any, where: str) -> Any:
    """Read a tool call's arguments as an object: servers write JSON text, templates print objects."""
    if not isinstance(call, dict):
        raise BadRow(f"{where} is {describe(call)}, not an object.")
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = parse_json(function["arguments"] or "{}")
    except ValueError as error:
        raise BadRow(f"{where} has arguments that are not JSON: {error}.") from error
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    if not value:
        return ()
    tools = _list(value, "tools")
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise BadRow(f"tools[{number}] is {describe(tool)}, not an object.")
    return tuple(strip_nulls(tools))


def _list(value: Any, name: str) -> list[Any]:
    """Read a list, also from JSON text as tables hold it."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise BadRow(f"the column {name!r} is text, not a list.") from None
    if not isinstance(value, list):
        raise BadRow(f"the column {name!r} is {describe(value)}, not a list.")
    if not value and name != "tools":
        raise BadRow(f"the column {name!r} is an empty list.")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise BadRow(f"the column {name!r} is {describe(value)}, not text.")
    if not value.strip():
        raise BadRow(f"the column {name!r} is empty.", empty=True)
    return value


def strip_nulls(value: Any) -> Any:
    """Remove null fields: tables fill in every field that any other row has."""
    if isinstance(value, dict):
        return {key: strip_nulls(item) for key, item in value.items() if item is not None}
    return [strip_nulls(item) for item in value] if isinstance(value, list) else value
