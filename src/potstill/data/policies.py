"""What is done with system prompts and with reasoning before a conversation reaches the template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from potstill.data import chat
from potstill.data.chat import Message
from potstill.errors import DataError

System = Literal["keep", "merge", "drop"]
Reasoning = Literal["keep", "strip", "separate"]

OPEN, CLOSE = "<think>", "</think>"
_THOUGHT = re.compile(rf"\A\s*(?:{OPEN})?(.*?){CLOSE}\s*", re.DOTALL)


def apply_system(messages: Sequence[Message], policy: System) -> list[Message]:
    """Keep system prompts, merge each into the user turn that follows, or drop them.

    Raises:
        DataError: a system prompt is to be merged and no user turn follows.
    """
    if policy == "keep":
        return list(messages)
    pending: list[str] = []
    result: list[Message] = []
    for message in messages:
        if message["role"] in chat.SYSTEM:
            pending.append(message["content"])
        elif policy == "merge" and pending and message["role"] == "user":
            parts = [text for text in (*pending, message["content"]) if text.strip()]
            result.append({**message, "content": "\n\n".join(parts)})
            pending = []
        else:
            result.append(message)
    if policy == "merge" and pending:
        raise DataError("no user turn follows a system prompt.", fix="Use system: drop, or repair the row.")
    return result


def split_reasoning(message: Message) -> tuple[str, str]:
    """(reasoning, answer) of an assistant turn, wherever it holds its reasoning; both without outer space."""
    field = message.get("reasoning_content") or message.get("reasoning") or ""
    thought = _THOUGHT.match(message["content"])
    inside, answer = (
        (thought[1], message["content"][thought.end() :]) if thought else ("", message["content"])
    )
    return (field or inside).strip(), answer.strip() if thought or field else answer


def wrapped(reasoning: str, answer: str) -> str:
    """An answer with its reasoning before it, as most models write it."""
    return f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}" if reasoning else answer


def apply_reasoning(messages: Sequence[Message], policy: Reasoning) -> list[Message]:
    """Reasoning wrapped into the answer, stripped, or in its own field `reasoning_content`.

    Raises:
        DataError: an answer is nothing but reasoning, and that is to be stripped.
    """
    return [_with_policy(m, policy) if m["role"] == "assistant" else m for m in messages]


def _with_policy(message: Message, policy: Reasoning) -> Message:
    reasoning, answer = split_reasoning(message)
    if not reasoning:
        return message
    own_field = bool(message.get("reasoning_content") or message.get("reasoning"))
    rest = {k: v for k, v in message.items() if k not in ("reasoning_content", "reasoning")}
    if policy == "keep":
        # A model whose prompt opens the block writes the rest of it; the tag comes back here.
        opened = own_field or OPEN in message["content"]
        content = wrapped(reasoning, answer) if own_field else message["content"]
        return {**rest, "content": content if opened else f"{OPEN}\n{content.lstrip()}"}
    if policy == "separate":
        return {**rest, "content": answer, "reasoning_content": reasoning}
    if not answer and not message.get("tool_calls"):
        raise DataError("an answer is nothing but reasoning.", fix="Use reasoning: keep, or drop the row.")
    return {**rest, "content": answer}
