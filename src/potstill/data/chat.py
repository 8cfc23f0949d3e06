"""The roles of a conversation, whatever file it came from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]
Messages: TypeAlias = tuple[Message, ...]

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM = ("system", "developer")


def problem(messages: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence why no template can render the conversation; "" when the roles are in order."""
    if not messages:
        return "the conversation is empty."
    roles = [message["role"] for message in messages]
    turns = [role for role in roles if role not in SYSTEM]
    if not turns:
        return "the conversation holds a system prompt only."
    if turns[0] == "assistant":
        return "the conversation starts with an assistant turn; its prompt is missing."
    if ("assistant", "assistant") in itertools.pairwise(roles):
        return "two assistant turns stand in a row."
    return ""


def missing_answer(messages: Sequence[Mapping[str, Any]]) -> str:
    """Say why the conversation has no answer to learn from, or ""."""
    last = messages[-1]["role"]
    if last == "assistant":
        return ""
    return f"it needs an assistant turn at its end; its last turn is by the {last}."


def opening(messages: Sequence[Message]) -> Messages:
    """The turns before the assistant's first."""
    return tuple(itertools.takewhile(lambda message: message["role"] != "assistant", messages))


def prompt(messages: Sequence[Message]) -> Messages:
    """What a model answers: the conversation without a final assistant turn."""
    return tuple(messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages)
