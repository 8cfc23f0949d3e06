"""From a reply's raw bytes to an answer. Reading is pure: it can be done again, and never asks the teacher."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from potstill.data import policies

_HALF = re.compile("[\ud800-\udfff]")
_UNREADABLE = re.compile("[\x00\ufffd]")
# How servers call an end that the protocol has a word for.
_ENDS = {
    **dict.fromkeys(("eos", "eos_token", "end_turn", "stop_sequence"), "stop"),
    **dict.fromkeys(("max_tokens", "max_new_tokens"), "length"),
    **dict.fromkeys(("safety", "recitation", "prohibited_content", "blocklist"), "content_filter"),
}
BROKEN_OFF = "it ended by an error"
_THOUGHTS = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class Answer:
    """What a reply says. Numbers that it does not state are None."""

    text: str
    finish: str  # stop, length, content_filter, tool_calls, or what else the server says; "" for nothing
    reasoning: str = ""
    refusal: str = ""
    echoed: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    cached: int = 0
    thought: int = 0  # tokens of reasoning among those out
    calls: bool = False
    logprobs: bool = False
    alternatives: int = 0  # that it states at most beside a token


class NoAnswer(Exception):
    """Raised for a reply that holds no answer; says what is wrong with it. `whole` says that it is JSON."""

    def __init__(self, message: str, *, whole: bool = True) -> None:
        super().__init__(message)
        self.whole = whole


def read(body: bytes) -> Answer:
    """Read the reply to a request for one answer, of chat or of completions.

    Raises:
        NoAnswer: it is no JSON, holds no choice or several, ended by an error, or a field is of another type.
    """
    try:
        # Some servers write halves of surrogate pairs as they are.
        value = json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise NoAnswer(f"it is no JSON: {type(error).__name__}", whole=False) from None
    choices = value.get("choices") if isinstance(value, Mapping) else None
    if not isinstance(choices, list) or not choices:
        raise NoAnswer("it holds no choices")
    if len(choices) > 1:
        raise NoAnswer(f"it holds {len(choices)} choices, and one was asked for")
    choice = _mapping(choices[0], "a choice")
    message = (
        _mapping(choice["message"], "a message") if "message" in choice else {"content": choice.get("text")}
    )
    usage = value.get("usage") if isinstance(value.get("usage"), Mapping) else {}
    finish = _text(choice, "finish_reason").lower()
    if finish == "error":
        raise NoAnswer(BROKEN_OFF)
    content, thoughts = _content(message)
    return Answer(
        text=content,
        finish=_ENDS.get(finish, finish),
        reasoning=next(filter(None, (_text(message, name) for name in _THOUGHTS)), thoughts),
        refusal=_text(message, "refusal"),
        echoed=_text(value, "model"),
        tokens_in=_count(usage, "prompt_tokens"),
        tokens_out=_tokens_out(usage),
        cached=_count(usage.get("prompt_tokens_details"), "cached_tokens") or 0,
        thought=_count(usage.get("completion_tokens_details"), "reasoning_tokens") or 0,
        calls=bool(message.get("tool_calls")),
        logprobs=bool(choice.get("logprobs")),
        alternatives=_most_alternatives(choice),
    )


def _most_alternatives(choice: Mapping[str, Any]) -> int:
    """The most alternatives that a reply states at any position, usable or not; 0 where it states none."""
    stated = choice.get("logprobs")
    if not isinstance(stated, Mapping):
        return 0
    if isinstance(content := stated.get("content"), list):
        every = [one.get("top_logprobs") for one in content if isinstance(one, Mapping)]
    else:
        every = stated["top_logprobs"] if isinstance(stated.get("top_logprobs"), list) else []
    return max((len(one) for one in every if isinstance(one, list | dict)), default=0)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise NoAnswer(f"{what} is {type(value).__name__}")
    return value


def _content(message: Mapping[str, Any]) -> tuple[str, str]:
    """The text of a message and its thoughts, where its content is a list of parts; else the text alone."""
    content = message.get("content")
    if not isinstance(content, list):
        return _text(message, "content"), ""
    parts = [_mapping(part, "a part of content") for part in content]
    if unknown := [part.get("type") for part in parts if part.get("type") not in ("text", "thinking")]:
        raise NoAnswer(f"content has a part of type {unknown[0]!r}")
    texts = [_text(part, "text") for part in parts if part["type"] == "text"]
    return "".join(texts), "".join(_thinking(part) for part in parts if part["type"] == "thinking")


def _thinking(part: Mapping[str, Any]) -> str:
    """The text of a part of thoughts, which may hold parts itself."""
    inner = part.get("thinking")
    return _content({"content": inner})[0] if isinstance(inner, list) else _text(part, "thinking")


def _text(place: Mapping[str, Any], name: str) -> str:
    value = place.get(name)
    if value is not None and not isinstance(value, str):
        raise NoAnswer(f"{name} is {type(value).__name__}, not text")
    return value or ""


def _count(place: Any, name: str) -> int | None:
    value = place.get(name) if isinstance(place, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _tokens_out(usage: Any) -> int | None:
    """All tokens that were written. Some servers count those of reasoning in the total alone."""
    out, into = _count(usage, "completion_tokens"), _count(usage, "prompt_tokens")
    total = _count(usage, "total_tokens")
    return out if None in (out, into, total) else max(out or 0, (total or 0) - (into or 0))


@dataclass(frozen=True)
class Rules:
    """Which replies hold an answer. Whether it is a good one is for the stage's filters to say."""

    reasoning: Literal["drop", "wrap"] = "drop"
    json: bool = False  # the request asked for JSON
    task: Callable[[str], str] = lambda text: ""  # why a text is no valid answer; only the bill asks

    def text(self, answer: Answer) -> str:
        """The text to train on."""
        return policies.wrap(answer.reasoning, answer.text) if self.reasoning == "wrap" else answer.text

    def received(self, answer: Answer | None) -> str:
        """What was received in words, of an answer that is not used: its text, else its refusal or its reasoning."""
        if answer is None:
            return ""
        return self.text(answer) if answer.text.strip() else answer.refusal or answer.reasoning

    def problem(self, answer: Answer) -> str:
        """Why an answer is not used, the same words for all of its kind; "" where it is."""
        if answer.finish == "content_filter":
            return "content filter"
        if answer.refusal:
            return "refusal"
        if answer.calls:
            return "a tool call in place of text"
        if not answer.text.strip():
            return "reasoning used up its tokens" if answer.thought or answer.reasoning else "empty answer"
        if answer.finish not in ("stop", "length"):
            return f"ended by {answer.finish}" if answer.finish else "the server does not say how it ended"
        if _HALF.search(self.text(answer)):
            return "half a character"
        if _UNREADABLE.search(self.text(answer)):
            return "a character that stands for none (NUL or U+FFFD)"
        if self.reasoning == "wrap" and not answer.reasoning:
            return "no reasoning beside it"
        whole = not self.json or answer.finish == "length" or _is_json(answer.text)
        return "" if whole else "not the JSON that was asked for"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
