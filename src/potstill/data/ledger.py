"""What a template prints of a conversation: each part becomes a word of its own, and the words are looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.data.policies import CLOSE, OPEN, split_reasoning
from potstill.data.row import SYSTEM, Message

_CONTENTS = {"user": "a user's turn", "tool": "a tool's result", **dict.fromkeys(SYSTEM, "a system prompt")}


@dataclass(frozen=True)
class Ledger:
    """A conversation of the same structure in which every part is one word that stands nowhere else.

    `parts` names what each word stands for. Reasoning is a part of a tool call at the end alone: templates
    leave out that of earlier turns, and that of an answer at the end is written behind its prompt.
    """

    messages: list[Message] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)

    def missing(self, text: str) -> list[str]:
        """Name the parts that the text does not hold."""
        return list(dict.fromkeys(part for word, part in self.parts.items() if word not in text))


def ledger_of(messages: Sequence[Message], tools: Sequence[Any]) -> Ledger:
    """Replace every part of a conversation, and of the tools that it may call, by a word."""
    ledger = Ledger()
    last = len(messages) - 1
    ledger.messages.extend(_message(m, ledger, place == last) for place, m in enumerate(messages))
    ledger.tools.extend(_tool(tool, ledger) for tool in tools)
    return ledger


def _word(ledger: Ledger, part: str) -> str:
    word = f"zq{len(ledger.parts)}qz"
    ledger.parts[word] = part
    return word


def _message(message: Message, ledger: Ledger, last: bool) -> Message:
    result = dict(message)
    calls = message.get("tool_calls") or ()
    if message["role"] != "assistant":
        if message["content"].strip():
            result["content"] = _word(ledger, _CONTENTS[message["role"]])
        return result
    reasoning, answer = split_reasoning(message)
    thought = _word(ledger, "the reasoning before a tool call") if last and calls and reasoning else "thought"
    if answer.strip():
        result["content"] = _word(ledger, "the words beside a tool call" if calls else "an answer")
    if CLOSE in message["content"]:
        result["content"] = f"{OPEN}\n{thought}\n{CLOSE}\n\n" + (result["content"] if answer.strip() else "")
    for name in ("reasoning_content", "reasoning"):
        if reasoning and message.get(name):
            result[name] = thought
    if calls:
        result["tool_calls"] = [_call(call, ledger) for call in calls]
    return result


def _call(call: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    inner = call.get("function", call)
    function = dict(inner) if isinstance(inner, Mapping) else {}
    if function.get("name"):
        function["name"] = _word(ledger, "the name of a tool call")
    if "arguments" in function:
        function["arguments"] = _value(function["arguments"], ledger)
    return {**call, "function": function} if "function" in call else function


def _value(value: Any, ledger: Ledger) -> Any:
    """Replace keys, texts and numbers; true, false, null and empty texts stay as they are."""
    if isinstance(value, Mapping):
        return {_word(ledger, "an argument's name"): _value(item, ledger) for item in value.values()}
    if isinstance(value, list):
        return [_value(item, ledger) for item in value]
    if isinstance(value, str):
        return _word(ledger, "an argument's value") if value.strip() else value
    if value is None or isinstance(value, bool):
        return value
    number = 9_700_000_031 + 1000 * len(ledger.parts)
    ledger.parts[str(number)] = "an argument's value"
    return number


def _tool(tool: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    inner = tool.get("function", tool)
    function = dict(inner) if isinstance(inner, Mapping) else {}
    for key in ("name", "description"):
        if isinstance(function.get(key), str) and function[key].strip():
            function[key] = _word(ledger, f"a tool's {key}")
    parameters = function.get("parameters")
    if isinstance(parameters, Mapping) and isinstance(parameters.get("properties"), Mapping):
        names = {name: _word(ledger, "a tool's parameter") for name in parameters["properties"]}
        properties = {names[name]: item for name, item in parameters["properties"].items()}
        function["parameters"] = {**parameters, "properties": properties}
        if isinstance(parameters.get("required"), list):
            required = [names.get(str(name), name) for name in parameters["required"]]
            function["parameters"]["required"] = required
    return {**tool, "function": function} if "function" in tool else function
