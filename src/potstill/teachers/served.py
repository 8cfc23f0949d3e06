"""A teacher behind an endpoint of the OpenAI protocol: it gives text, and some log-probabilities beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from potstill.data.reader import Reader
from potstill.errors import RecipeError, SignalError
from potstill.generate.asks import MOST_ALTERNATIVES
from potstill.generate.price import Price
from potstill.models import loading
from potstill.teachers._context import TeacherContext
from potstill.types import Batch

PROVIDES = frozenset({"text"})
# Fields of a request that potstill writes itself -> where a recipe sets them.
_OURS = {
    "model": "teacher.model", "messages": "the rows", "prompt": "the rows", "tools": "the rows",
    "n": "generate.samples", "best_of": "generate.samples", "stream": "nothing: replies are read whole",
    "max_tokens": "generate.max_new_tokens", "max_completion_tokens": "generate.max_new_tokens",
    "temperature": "generate.sampling_temperature", "top_p": "generate.top_p", "seed": "teacher.send_seed",
}  # fmt: skip
_OMITTED = ("temperature", "top_p")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SENDABLE = re.compile(r"[\x21-\x7e]+")


def build(
    context: TeacherContext,
    *,
    endpoint: str,
    model: str,
    key_env: str | None = None,
    api: Literal["chat", "completions"] = "chat",
    price: dict | None = None,
    terms: str = "",
    headers_env: dict | None = None,
    extra_body: dict | None = None,
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    omit: list | None = None,
    send_seed: bool = False,
    tokenizer: str | None = None,
    top_logprobs: int = 20,
) -> ServedTeacher:
    """A teacher at an address. Asks nobody, and reads no key before it is needed.

    Args:
        endpoint: the address up to the version, such as https://api.openai.com/v1 or http://localhost:8000/v1.
        model: what the server calls it.
        key_env: the environment variable that holds the key; none for a server that takes any.
        api: chat sends the turns, completions the text of a single one.
        price: of a million tokens: {input: 0.15, output: 0.60, cached: 0.075, currency: USD}.
        terms: under which terms the answers are used; it is written into the manifest, the report and the card.
        headers_env: further headers of a gateway, each by the environment variable that holds its value.
        extra_body: further fields of a request, such as response_format or top_k.
        limit_field: how the server calls the limit of tokens.
        omit: fields that the server does not take: temperature, top_p.
        send_seed: send a seed for each sample; that the server heeds it is tried before anything else is asked.
        tokenizer: hub id or folder of the model's tokenizer, by which `generate.keep: topk` knows ids from strings.
        top_logprobs: how many of the likeliest tokens are asked for beside each token of an answer, with `keep: topk`.

    Raises:
        RecipeError: an option cannot be as it is.
        ModelError: the tokenizer cannot be read.
    """
    _require_address(endpoint)
    if not 1 <= top_logprobs <= MOST_ALTERNATIVES:
        raise RecipeError(
            f"is {top_logprobs}, and a reply states 1 to {MOST_ALTERNATIVES}.", path="teacher.top_logprobs"
        )
    extra = _mapping(extra_body, "extra_body")
    for name in extra:
        if name in _OURS:
            raise RecipeError(
                "is written by potstill.", path=f"teacher.extra_body.{name}", fix=f"Set {_OURS[name]}."
            )
    headers = _mapping(headers_env, "headers_env")
    for header, variable in [*headers.items(), *([("key_env", key_env)] if key_env is not None else [])]:
        if not isinstance(variable, str) or not _NAME.fullmatch(variable):
            # What stands there may be the key itself, so it is not repeated.
            raise RecipeError(
                "names no environment variable.",
                path=f"teacher.{'' if header == 'key_env' else 'headers_env.'}{header}",
                fix="Write the name of the variable that holds the value, never the value.",
            )
    for header in headers:
        if not isinstance(header, str) or not _HEADER.fullmatch(header):
            raise RecipeError(
                f"{header!r} is no name of a header.",
                path="teacher.headers_env",
                fix="Write letters, digits and dashes, such as X-Gateway-Key.",
            )
    left_out = tuple(omit or ())
    if unknown := [name for name in left_out if name not in _OMITTED]:
        raise RecipeError(
            f"holds {unknown[0]!r}.", path="teacher.omit", fix=f"It may hold {', '.join(_OMITTED)}."
        )
    return ServedTeacher(
        endpoint=endpoint.rstrip("/"),
        model=model,
        api=api,
        key_env=key_env,
        headers_env=headers,
        price=None if price is None else Price.read(price, "teacher.price"),
        terms=terms,
        extra_body=extra,
        limit_field=limit_field,
        omit=left_out,
        send_seed=send_seed,
        words=None if tokenizer is None else _words(tokenizer, context),
        top_logprobs=top_logprobs,
    )


def _words(tokenizer: str, context: TeacherContext) -> Reader:
    return context.reader(loading.load_tokenizer(loading.find_source(tokenizer, base=context.base)))


def _require_address(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(
            "is no address.", path="teacher.endpoint", fix="Write it up to the version: https://HOST/v1."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError(
            "holds more than an address.",
            path="teacher.endpoint",
            fix="Keys come by name, in key_env and headers_env; fields of a request in extra_body.",
        )


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise RecipeError(f"must be a mapping, not {value!r}.", path=f"teacher.{name}")
    return dict(value or {})


class ServedTeacher:
    """Where a teacher is asked and how. What it answers is text: it reads messages and has no ids here."""

    provides = PROVIDES
    reads: Any = None
    engine = "openai"

    def __init__(
        self,
        *,
        endpoint: str,
        model: str,
        api: Literal["chat", "completions"] = "chat",
        key_env: str | None = None,
        headers_env: Mapping[str, str] | None = None,
        price: Price | None = None,
        terms: str = "",
        extra_body: Mapping[str, Any] | None = None,
        limit_field: str = "max_tokens",
        omit: tuple[str, ...] = (),
        send_seed: bool = False,
        words: Reader | None = None,
        top_logprobs: int = MOST_ALTERNATIVES,
    ) -> None:
        self.name = model
        self.endpoint, self.model, self.api = endpoint, model, api
        self.key_env, self.headers_env = key_env, dict(headers_env or {})
        self.price, self.terms = price, terms
        self.extra_body, self.limit_field = dict(extra_body or {}), limit_field
        self.omit, self.send_seed = omit, send_seed
        self.words, self.top_logprobs = words, top_logprobs

    @property
    def fingerprint(self) -> str:
        """What decides about its answers, as far as anybody outside knows."""
        parts = [
            self.endpoint,
            self.model,
            self.api,
            sorted(self.extra_body.items()),
            self.omit,
            self.send_seed,
        ]
        return f"served {parts!r}"

    @property
    def licence(self) -> str:
        """The terms under which its answers are used, as the recipe states them."""
        return self.terms

    @property
    def paid(self) -> bool:
        """Whether somebody may pay for its answers: it needs a key or a header with one, or its price is stated."""
        return (
            self.key_env is not None
            or bool(self.headers_env)
            or (self.price is not None and not self.price.free)
        )

    def secrets(self) -> tuple[str, dict[str, str]]:
        """The key, "" for none, and the headers of the gateway, from the environment.

        Raises:
            RecipeError: a variable is not set, or holds what no header can carry. It does not repeat the value.
        """
        key = "" if self.key_env is None else secret(self.key_env, "teacher.key_env")
        headers = {
            header: secret(variable, f"teacher.headers_env.{header}")
            for header, variable in self.headers_env.items()
        }
        return key, headers

    def signal(self, batch: Batch) -> Any:
        """Raises SignalError: it gives no distribution."""
        raise SignalError(
            f"{self.name} is served as text and gives no distribution.", fix="Train on its text: finetune."
        )

    def close(self) -> None:
        return None


def secret(variable: str, path: str) -> str:
    """The value of an environment variable, as a header can carry it; no error repeats it."""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise RecipeError(
            f"the environment variable {variable} is not set.",
            path=path,
            fix=f"Set it where the run starts: export {variable}=…",
        )
    if not _SENDABLE.fullmatch(value):
        raise RecipeError(
            f"the environment variable {variable} holds characters that no header can carry.",
            path=path,
            fix="Set it again, without spaces, quotes or line breaks.",
        )
    return value
