"""Requests to a served teacher: the body that is sent, what identifies it, and which answers are there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from potstill.errors import DataError, RecipeError
from potstill.generate.entries import Kept
from potstill.generate.replies import Answer
from potstill.generate.served import Asked, TextRequest

Reuse = Literal["compatible", "exact"]
_A_TURN = 16  # tokens that a protocol adds to a turn, at most
MOST_ALTERNATIVES = 20  # beside a token, that the protocol allows


@dataclass(frozen=True)
class Ask:
    """One request for sample `sample` of prompt `index`.

    `key` identifies messages, model, schema, sampling and the number of the sample; `family` the same without
    the limit of tokens, `most`. `tokens` is about how many the prompt has, `bound` more than it can have.
    `ignores` says why a text shows that the server ignores the schema it was sent, "" where it does not.
    `alternatives` counts the likeliest tokens that are wanted beside each token of the answer.
    """

    index: int
    sample: int
    key: str
    family: str
    body: Mapping[str, Any]
    most: int
    tokens: int
    bound: int
    ignores: Callable[[str], str]
    alternatives: int = 0

    @property
    def prompt(self) -> str:
        """All turns as text."""
        if "prompt" in self.body:
            return str(self.body["prompt"])
        return "\n".join(str(turn.get("content", "")) for turn in self.body["messages"])


def asks_of(request: TextRequest) -> list[Ask]:
    """The requests for every sample of every prompt.

    Raises:
        RecipeError: the recipe asks for what the protocol cannot carry.
        DataError: a prompt is a conversation, and the endpoint completes one text.
    """
    if request.sampling.top_k and "top_k" not in request.teacher.extra_body:
        raise RecipeError(
            "is no field of the OpenAI protocol.",
            path="generate.top_k",
            fix="Leave it out; a server that knows the field takes it in teacher.extra_body: {top_k: 20}.",
        )
    return [
        _ask(request, asked, index, sample)
        for index, asked in enumerate(request.prompts)
        for sample in asked.samples
    ]


def _ask(request: TextRequest, asked: Asked, index: int, sample: int) -> Ask:
    teacher, sampling = request.teacher, request.sampling
    body = {"model": teacher.model, **_prompt(teacher.api, asked)}
    if asked.tools:
        body["tools"] = list(asked.tools)
    fields = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    body |= {name: value for name, value in fields.items() if name not in teacher.omit}
    if teacher.send_seed:
        body["seed"] = _seed(request.seed, sample)
    if request.response_format is not None:
        body["response_format"] = dict(request.response_format)
    body |= teacher.extra_body
    family = _digest({"api": teacher.api, "sample": sample, "body": body})
    body[teacher.limit_field] = sampling.max_new_tokens
    body |= _alternatives(teacher.api, request.alternatives)
    sent = json.dumps({name: body[name] for name in body if name not in fields}, ensure_ascii=False)
    return Ask(
        index,
        sample,
        _key(family, sampling.max_new_tokens, request.alternatives),
        family,
        body,
        sampling.max_new_tokens,
        asked.tokens,
        # No tokenizer writes more tokens than the text has bytes.
        len(sent.encode("utf-8", "surrogatepass")) + _A_TURN * (1 + len(asked.messages)),
        request.ignores,
        request.alternatives,
    )


def _alternatives(api: str, count: int) -> dict[str, Any]:
    """The fields that ask for so many alternatives."""
    if not count:
        return {}
    return {"logprobs": True, "top_logprobs": count} if api == "chat" else {"logprobs": count}


def with_limit(ask: Ask, most: int, limit_field: str) -> Ask:
    """The same request with another limit of tokens."""
    body = {**ask.body, limit_field: most}
    return replace(ask, key=_key(ask.family, most, ask.alternatives), body=body, most=most)


def _key(family: str, most: int, alternatives: int) -> str:
    asked = {"alternatives": alternatives} if alternatives else {}
    return _digest({"family": family, "most": most, **asked})


def _prompt(api: str, asked: Asked) -> dict[str, Any]:
    if api == "chat":
        return {"messages": [dict(message) for message in asked.messages]}
    if len(asked.messages) != 1 or asked.tools:
        raise DataError(
            f"a prompt has {len(asked.messages)} turns, and api: completions takes one text.",
            path="teacher.api",
            fix="Use api: chat, or rows of one user turn (data.system: merge puts a system prompt into it).",
        )
    return {"prompt": asked.messages[0]["content"]}


def _seed(seed: int, sample: int) -> int:
    """A seed for a sample, in the 31 bits that every server takes."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sample}".encode()).digest()[:4], "big") >> 1


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def chosen(ask: Ask, kept: Mapping[str, Sequence[Kept]], reuse: Reuse) -> Kept | None:
    """The reply that answers a request already: to the very request, else, where `reuse` is compatible, one to the
    same request under another limit of tokens that ended by itself within this one, or one that was to state more
    alternatives than are wanted now."""
    entries = kept.get(ask.family, ())
    exact = next((entry for entry in entries if entry.key == ask.key), None)
    if exact is not None or reuse == "exact":
        return exact
    return next((entry for entry in entries if _fits(entry, ask)), None)


def _fits(entry: Kept, ask: Ask) -> bool:
    if entry.state != "answered":
        return False
    asked = range(ask.alternatives, MOST_ALTERNATIVES + 1) if ask.alternatives else ()
    if asked and entry.key not in (_key(ask.family, entry.most, count) for count in asked):
        return False
    return entry.most == ask.most or (entry.finish == "stop" and (entry.tokens_out or 0) <= ask.most)


def ignored_field(answer: Answer, ask: Ask) -> str:
    """The field of a request that its answer shows to be ignored, in words; "" for none."""
    if answer.tokens_out is not None and answer.tokens_out > ask.most + 1:  # an end token may be counted too
        field = "max_completion_tokens" if "max_completion_tokens" in ask.body else "max_tokens"
        return f"{field} was {ask.most}, and an answer has {answer.tokens_out} tokens"
    whole = answer.text and answer.finish in ("stop", "length")  # what a provider took back may lack anything
    if ask.body.get("logprobs") and not answer.logprobs and whole:
        return "logprobs were asked for, and an answer has none"
    if whole and answer.alternatives < ask.alternatives:
        return f"{ask.alternatives} alternatives to each token were asked for, and an answer has {answer.alternatives}"
    if answer.finish == "stop" and answer.text and (problem := ask.ignores(answer.text)):
        return f"response_format was sent, and an answer is not as it says: {problem}"
    return ""
