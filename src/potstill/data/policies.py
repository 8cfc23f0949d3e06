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


def block_of(prompt: str) -> str:
    """The tag of a reasoning block that a prompt ends with: it opens one, or holds a closed one; else ""."""
    return next((tag for tag in (OPEN, CLOSE) if prompt.rstrip().endswith(tag)), "")


def block_problem(prompt: str, answer: str) -> str:
    """Say why a prompt and its answer do not give one opening and one closing tag; "" where they do."""
    tag = block_of(prompt)
    if tag == OPEN and CLOSE not in answer:
        return f"the prompt opens {OPEN}, and the answer holds no reasoning"
    if tag == OPEN and answer.lstrip().startswith(OPEN):
        return f"the prompt opens {OPEN}, and the answer opens it again"
    if tag == CLOSE and answer.lstrip().startswith(OPEN):
        return f"the prompt holds a closed {OPEN} block, and the answer holds reasoning"
    if not tag and answer.lstrip().startswith(CLOSE):
        return f"the answer closes {OPEN}, and nothing opens it"
    return ""


def require_one_block(prompt: str, answer: str) -> None:
    """Refuse a prompt and an answer that do not give one opening and one closing tag.

    Raises:
        DataError: says what stands twice or is missing.
    """
    if problem := block_problem(prompt, answer):
        raise DataError(
            f"{problem}.",
            fix="Switch thinking on or off in data.template.kwargs as the rows need it, or set reasoning: strip.",
        )


def joined_block(source: str, target: str, answer: str) -> str:
    """An answer to one model's prompt, as it follows another model's prompt: with one opening tag.

    Raises:
        DataError: the second prompt does not allow the answer.
    """
    bare = answer.lstrip()
    thinks = block_of(source) == OPEN or bare.startswith(OPEN)
    if thinks and block_of(target) == OPEN:
        return bare.removeprefix(OPEN).lstrip() if bare.startswith(OPEN) else answer
    joined = answer if not thinks or bare.startswith(OPEN) else f"{OPEN}\n{bare}"
    if problem := block_problem(target, joined):
        raise DataError(f"{problem}.")
    return joined


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
