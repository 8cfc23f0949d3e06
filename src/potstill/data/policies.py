"""System prompts and reasoning, changed as the recipe says before a conversation reaches the template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from potstill.data.row import SYSTEM, Message
from potstill.errors import DataError

System = Literal["keep", "merge", "drop"]
Reasoning = Literal["keep", "strip", "separate"]

OPEN, CLOSE = "<think>", "</think>"
_THOUGHT = re.compile(rf"\A\s*(?:{OPEN})?(.*?){CLOSE}\s*", re.DOTALL)


def apply_system(messages: Sequence[Message], policy: System) -> list[Message]:
    """Keep system prompts, merge each into the user turn that follows, or drop them.

    Raises:
        DataError: the policy is merge and no user turn follows a system prompt.
    """
    if policy == "keep":
        return list(messages)
    pending: list[str] = []
    result: list[Message] = []
    for message in messages:
        if message["role"] in SYSTEM:
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
    """Split an assistant turn into (reasoning, answer), from its fields or its <think> block, both stripped."""
    field = message.get("reasoning_content") or message.get("reasoning") or ""
    thought = _THOUGHT.match(message["content"])
    if thought is None:
        return field.strip(), message["content"].strip() if field else message["content"]
    return (field or thought[1]).strip(), message["content"][thought.end() :].strip()


def wrap(reasoning: str, answer: str) -> str:
    """Put reasoning before its answer, as most models write it."""
    return f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}" if reasoning else answer


def apply_reasoning(messages: Sequence[Message], policy: Reasoning) -> list[Message]:
    """Keep reasoning in the answer, strip it, or separate it into the field `reasoning_content`.

    Raises:
        DataError: the policy is strip and an answer is nothing but reasoning.
    """
    return [_with_policy(m, policy) if m["role"] == "assistant" else m for m in messages]


def _with_policy(message: Message, policy: Reasoning) -> Message:
    reasoning, answer = split_reasoning(message)
    if not reasoning:
        return message
    has_field = bool(message.get("reasoning_content") or message.get("reasoning"))
    rest = {k: v for k, v in message.items() if k not in ("reasoning_content", "reasoning")}
    if policy == "keep":
        # A prompt may open the block, so that the model writes the rest of it only: add the tag.
        opened = has_field or OPEN in message["content"]
        content = wrap(reasoning, answer) if has_field else message["content"]
        return {**rest, "content": content if opened else f"{OPEN}\n{content.lstrip()}"}
    if policy == "separate":
        return {**rest, "content": answer, "reasoning_content": reasoning}
    if not answer and not message.get("tool_calls"):
        raise DataError("an answer is nothing but reasoning.", fix="Use reasoning: keep, or drop the row.")
    return {**rest, "content": answer}
