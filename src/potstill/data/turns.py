"""One turn of a conversation, in the dialects in which people write it: roles, tool calls, text parts, marks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from potstill.data.files import describe, parse_json
from potstill.data.row import ROLES, Message

SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
_ROLES = {
    **{role: role for role in ROLES},
    "tool_call": "assistant",
    "tool_response": "tool",
    "function": "tool",
}
_CALLERS = ("function_call", "tool_call")  # roles whose content is a tool call

# Keys that say whether a turn is trained on -> what they hold for a turn that is.
_TRAINED = {
    "weight": True, "train": True, "train_on_turn": True, "trainable": True, "trained": True, "learn": True,
    "mask": False, "masked": False, "ignore": False, "do_not_train": False,
}  # fmt: skip
_OF_TRAINING = re.compile(
    r"(^|_)(train\w*|mask\w*|loss|weights?|learn\w*|ignored?|skip\w*|supervise\w*)($|_)"
)
_MEDIA = re.compile(r"(^|_)(images?|pictures?|audios?|videos?|pixel_values|files?)\d*$")


class BadRow(Exception):
    """Raised for a row that cannot be used. Empty ones are always dropped; others are the user's decision."""

    def __init__(self, message: str, *, empty: bool = False) -> None:
        super().__init__(message)
        self.empty = empty


def read_turn(turn: Any, where: str, roles: Mapping[str, str] = _ROLES) -> Message:
    """Read a turn; `roles` maps what a file calls a speaker to a role. A turn not to train on has `trained: False`.

    Raises:
        BadRow: it cannot be used; says where.
    """
    require(dict, turn, where)
    # A null says that a turn has no such field; nulls further inside mean something.
    message = {key: item for key, item in turn.items() if item is not None and (item or key != "tool_calls")}
    speaker = str(message.get("role"))
    if speaker not in roles:
        if roles is SPEAKERS:
            raise BadRow(f"{where} is from {message.get('role')!r}; potstill reads {', '.join(roles)}.")
        raise BadRow(f"{where} has the role {message.get('role')!r}; potstill reads {', '.join(roles)}.")
    message["role"] = roles[speaker]
    _read_marks(message, where)
    for key in message:
        if _MEDIA.search(key) and message[key]:
            raise BadRow(f"{where}.{key} holds more than text, and potstill reads text alone.")
    if "content" in message:
        message["content"] = _joined(message["content"], f"{where}.content")
    _read_calls(message, speaker, where)
    if "thinking" in message:
        message.setdefault("reasoning_content", message.pop("thinking"))
    for key in ("content", "reasoning_content", "reasoning"):
        if key in message:
            require(str, message[key], f"{where}.{key}")
    if "content" not in message:
        raise BadRow(f"{where} has no content.")
    calls = message.get("tool_calls")
    if not message["content"].strip() and message["role"] in ("user", "assistant") and not calls:
        raise BadRow(f"{where}.content is empty.", empty=True)
    return message


def _read_marks(message: Message, where: str) -> None:
    """Replace keys that say whether a turn is trained on by `trained: False`, where it is not."""
    said = {}
    for key in [key for key in message if _OF_TRAINING.search(key)]:
        value = message.pop(key)
        if isinstance(value, str):
            with suppress(ValueError):
                value = parse_json(value.strip().lower())
        if key not in _TRAINED or value not in (0, 1):
            raise BadRow(
                f"{where}.{key} says which words are trained on in a way that potstill does not read; it reads "
                f"true, false, 0 and 1 of {', '.join(_TRAINED)}."
            )
        said[key] = bool(value) is _TRAINED[key]
    if len(set(said.values())) > 1:
        raise BadRow(f"{where} is to be trained on and is not: {' and '.join(said)} disagree.")
    trained = all(said.values())
    if message["role"] == "assistant":
        if not trained:
            message["trained"] = False
    elif trained and said.keys() - {"weight"}:
        raise BadRow(
            f"{where}.{min(said.keys() - {'weight'})} asks to train on a turn of the {message['role']}."
        )


def _joined(content: Any, where: str) -> Any:
    """Join content that is a list of text parts."""
    if not isinstance(content, list):
        return content
    for number, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            continue
        kind = repr(part.get("type")) if isinstance(part, dict) else describe(part)
        raise BadRow(f"{where}[{number}] is {kind}, and potstill reads parts of the type 'text' alone.")
    return "".join(part["text"] for part in content)


def _read_calls(message: Message, speaker: str, where: str) -> None:
    """Read tool calls: in `tool_calls`, in the older `function_call`, or as the content of a turn of their own."""
    calls: Any = message.get("tool_calls")
    where_calls = f"{where}.tool_calls"
    if "function_call" in message:
        legacy = message.pop("function_call")
        if calls and legacy:
            raise BadRow(f"{where} has both tool_calls and function_call.")
        calls, where_calls = calls or (legacy and [legacy]), f"{where}.function_call"
    if speaker in _CALLERS and not calls:
        try:
            calls = parse_json(message.pop("content", ""))
        except (TypeError, ValueError) as error:
            raise BadRow(f"{where} is a tool call that is not JSON: {error}.") from error
        calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        return
    require(list, calls, where_calls)
    if message["role"] != "assistant":
        raise BadRow(f"{where} calls a tool, and its role is {message['role']}.")
    message["tool_calls"] = [_call(call, f"{where_calls}[{i}]") for i, call in enumerate(calls)]
    # Templates test whether content is empty; few of them expect it to be absent.
    message.setdefault("content", "")


def _call(call: Any, where: str) -> dict[str, Any]:
    """Read a tool call as an object, its arguments too: servers write JSON text, templates print objects."""
    require(dict, call, where)
    function = call.get("function", call)
    require(dict, function, f"{where}.function")
    if not isinstance(function.get("name"), str):
        raise BadRow(f"{where} has no name.")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments or "{}")
        except ValueError as error:
            raise BadRow(f"{where} has arguments that are not JSON: {error}.") from error
    arguments = {} if arguments is None else arguments
    require(dict, arguments, f"{where}.arguments")
    rest = {key: item for key, item in function.items() if key not in ("arguments", "parameters")}
    outer = call if "function" in call else {"type": "function"}
    return {**outer, "function": {**rest, "arguments": arguments}}


def require(kind: type, value: Any, where: str) -> None:
    """Refuse a value of another type."""
    if not isinstance(value, kind):
        raise BadRow(f"{where} is {describe(value)}, not {describe(kind())}.")
