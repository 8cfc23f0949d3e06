"""What a conversation must look like, whatever file it came from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]
Messages: TypeAlias = tuple[Message, ...]

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM = ("system", "developer")


def flaw(messages: Sequence[Mapping[str, Any]]) -> str:
    """One sentence about what no template can render, or "" when the roles are in order."""
    if not messages:
        return "the conversation is empty."
    roles = [message["role"] for message in messages]
    asked = [role for role in roles if role not in SYSTEM]
    if not asked:
        return "the conversation holds a system prompt only."
    if asked[0] == "assistant":
        return "the conversation starts with an assistant turn; what was asked is missing."
    for before, after in itertools.pairwise(roles):
        if before == after == "assistant":
            return "two assistant turns stand in a row."
    return ""


def unfinished(messages: Sequence[Mapping[str, Any]]) -> str:
    """Why the conversation has no answer to learn from, or ""."""
    last = messages[-1]["role"]
    return (
        ""
        if last == "assistant"
        else f"it needs an assistant turn at its end; its last turn is by the {last}."
    )


def opening(messages: Sequence[Message]) -> Messages:
    """The turns before the assistant's first."""
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    return tuple(messages[:first])


def question(messages: Sequence[Message]) -> Messages:
    """What a model is asked: everything but a final assistant turn."""
    return tuple(messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages)
