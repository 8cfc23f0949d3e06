"""What a template prints of a conversation: each part becomes a word of its own, and the words are looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.data.policies import CLOSE, OPEN, split_reasoning
from potstill.data.row import SYSTEM, Message

SHOWN = 60  # characters of a value that are kept for showing
_CONTENTS = {"user": "a user's turn", "tool": "a tool's result", **dict.fromkeys(SYSTEM, "a system prompt")}


@dataclass(frozen=True)
class Part:
    """One part of a row: the number of its turn from 1 (0 for the tools), what it is, and how it begins."""

    turn: int
    what: str
    value: str
    needed: bool = True  # a template that leaves it out is refused

    @classmethod
    def of(cls, turn: int, what: str, value: Any, needed: bool = True) -> Part:
        """The part with the beginning of its value in one line."""
        return cls(turn, what, " ".join(str(value)[: 2 * SHOWN].split())[:SHOWN], needed)


@dataclass(frozen=True)
class Account:
    """What becomes of a part: whether the template prints it, and whether its tokens are scored."""

    part: Part
    rendered: bool
    scored: bool


@dataclass(frozen=True)
class Ledger:
    """A conversation of the same structure in which every part is one word that stands nowhere else.

    `parts` says what each word stands for. Reasoning is needed in a tool call at the end alone: templates
    leave out that of earlier turns, and that of an answer at the end is written behind its prompt.
    """

    messages: list[Message] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)

    def missing(self, text: str) -> list[str]:
        """Name the needed parts that the text does not hold."""
        lost = [part.what for word, part in self.parts.items() if part.needed and word not in text]
        return list(dict.fromkeys(lost))


def ledger_of(messages: Sequence[Message], tools: Sequence[Any]) -> Ledger:
    """Replace every part of a conversation, and of the tools that it may call, by a word."""
    ledger = Ledger()
    last = len(messages)
    ledger.messages.extend(
        _message(message, _Turn(ledger, turn), turn == last) for turn, message in enumerate(messages, 1)
    )
    ledger.tools.extend(_tool(tool, _Turn(ledger, 0)) for tool in tools)
    return ledger


@dataclass(frozen=True)
class _Turn:
    """One turn's way into the ledger."""

    ledger: Ledger
    number: int

    def word(self, what: str, value: Any, needed: bool = True) -> str:
        return self.enter(f"zq{len(self.ledger.parts)}qz", what, value, needed)

    def enter(self, word: str, what: str, value: Any, needed: bool = True) -> str:
        self.ledger.parts[word] = Part.of(self.number, what, value, needed)
        return word


def _message(message: Message, turn: _Turn, last: bool) -> Message:
    result = dict(message)
    calls = message.get("tool_calls") or ()
    if message["role"] != "assistant":
        if message["content"].strip():
            result["content"] = turn.word(_CONTENTS[message["role"]], message["content"])
        return result
    reasoning, answer = split_reasoning(message)
    thought = ""
    if reasoning:
        what = "the reasoning before a tool call" if calls else "reasoning"
        thought = turn.word(what, reasoning, needed=bool(last and calls))
    if answer.strip():
        result["content"] = turn.word("the words beside a tool call" if calls else "an answer", answer)
    if CLOSE in message["content"]:
        result["content"] = f"{OPEN}\n{thought}\n{CLOSE}\n\n" + (result["content"] if answer.strip() else "")
    for name in ("reasoning_content", "reasoning"):
        if reasoning and message.get(name):
            result[name] = thought
    if calls:
        result["tool_calls"] = [_call(call, turn) for call in calls]
    return result


def _call(call: Mapping[str, Any], turn: _Turn) -> dict[str, Any]:
    inner = call.get("function", call)
    function = dict(inner) if isinstance(inner, Mapping) else {}
    if function.get("name"):
        function["name"] = turn.word("the name of a tool call", function["name"])
    if "arguments" in function:
        function["arguments"] = _value(function["arguments"], turn)
    return {**call, "function": function} if "function" in call else function


def _value(value: Any, turn: _Turn) -> Any:
    """Replace keys, texts and numbers; true, false, null and empty texts stay as they are."""
    if isinstance(value, Mapping):
        return {turn.word("an argument's name", key): _value(item, turn) for key, item in value.items()}
    if isinstance(value, list):
        return [_value(item, turn) for item in value]
    if isinstance(value, str):
        return turn.word("an argument's value", value) if value.strip() else value
    if value is None or isinstance(value, bool):
        return value
    number = 9_700_000_031 + 1000 * len(turn.ledger.parts)
    turn.enter(str(number), "an argument's value", value)
    return number


def _tool(tool: Mapping[str, Any], turn: _Turn) -> dict[str, Any]:
    inner = tool.get("function", tool)
    function = dict(inner) if isinstance(inner, Mapping) else {}
    for key in ("name", "description"):
        if isinstance(function.get(key), str) and function[key].strip():
            function[key] = turn.word(f"a tool's {key}", function[key])
    parameters = function.get("parameters")
    if isinstance(parameters, Mapping) and isinstance(parameters.get("properties"), Mapping):
        names = {name: turn.word("a tool's parameter", name) for name in parameters["properties"]}
        properties = {names[name]: item for name, item in parameters["properties"].items()}
        function["parameters"] = {**parameters, "properties": properties}
        if isinstance(parameters.get("required"), list):
            required = [names.get(str(name), name) for name in parameters["required"]]
            function["parameters"]["required"] = required
    return {**tool, "function": function} if "function" in tool else function
