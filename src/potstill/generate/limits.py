"""How fast, how often and for how much a served teacher is asked, and which options cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from potstill.errors import RecipeError
from potstill.generate.price import Most
from potstill.generate.replies import Rules
from potstill.generate.served import TextRequest


@dataclass(frozen=True)
class Limits:
    """How fast and how often an endpoint is asked, and what that may cost. See the options of the engine."""

    attempts: int
    timeout: float
    patience: float
    budget: Most
    confirm_above: float
    missing: Literal["stop", "skip"]
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def limits_of(
    engine: str,
    request: TextRequest,
    others: Mapping[str, Any],
    *,
    budget_money: float | None,
    budget_tokens: int | None,
    budget_requests: int | None,
    **options: Any,
) -> Limits:
    """The limits that an engine's options set; `others` are numbers of the engine that are checked with them.

    Raises:
        RecipeError: an option cannot be.
    """
    checked = {**options, **others, "budget_money": budget_money}
    check(engine, request.teacher, request.sampling.max_new_tokens, checked)
    return Limits(budget=Most(budget_money, budget_tokens, budget_requests), **options)


def rules_of(request: TextRequest, **rules: Any) -> Rules:
    """Which answers are used."""
    return Rules(**rules, json=_wants_json(request.teacher.extra_body), task=request.problem)


_ABOVE_0 = (
    "attempts", "timeout", "requests_per_minute", "tokens_per_minute", "patience", "requests_per_batch",
    "batches_at_once", "poll_seconds", "price_share",
)  # fmt: skip


def check(engine: str, teacher: Any, max_new_tokens: int, options: Mapping[str, Any]) -> None:
    """Refuse options of an engine that cannot be, before anything is asked.

    Raises:
        RecipeError: a number is not above 0, a budget of money has no price, or cut-off answers are asked for
            again with a limit that is no larger.
    """
    path = f"generate.engine.{engine}"
    for name in _ABOVE_0:
        if (value := options.get(name)) is not None and value <= 0:
            raise RecipeError(f"cannot be {value}.", path=f"{path}.{name}", fix="Use a number above 0.")
    if options.get("budget_money") is not None and teacher.price is None:
        raise RecipeError(
            "is no limit without a price.",
            path=f"{path}.budget_money",
            fix="State teacher.price, or use budget_tokens or budget_requests.",
        )
    longer = options.get("retry_truncated")
    if longer is not None and longer <= max_new_tokens:
        raise RecipeError(
            f"is {longer}, and generate.max_new_tokens is {max_new_tokens}.",
            path=f"{path}.retry_truncated",
            fix="Write a larger limit of tokens, or leave it out.",
        )


def _wants_json(extra_body: Mapping[str, Any]) -> bool:
    """Whether a request asks for JSON; a response_format of type text does not."""
    asked = extra_body.get("response_format")
    kind = asked.get("type") if isinstance(asked, Mapping) else None
    return "response_format" in extra_body and kind != "text"
