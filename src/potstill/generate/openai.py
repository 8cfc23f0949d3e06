"""Text from an endpoint of the OpenAI protocol: journalled, paced, within a budget, and never bought twice.

One layer tries again: this one. Its client retries nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from potstill.errors import RecipeError
from potstill.generate.answers import Answers
from potstill.generate.asks import asks_of
from potstill.generate.journal import Journal
from potstill.generate.price import Most
from potstill.generate.replies import Rules
from potstill.generate.served import Given, TextRequest
from potstill.generate.work import Limits, Work

TAKES = "messages"
# Options that decide when and whether something is asked, not what an answer is.
PACE = frozenset({
    "requests_per_minute", "tokens_per_minute", "attempts", "timeout", "patience", "budget_money",
    "budget_tokens", "budget_requests", "confirm_above",
})  # fmt: skip


def write(
    request: TextRequest,
    *,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    attempts: int = 5,
    timeout: float = 600.0,
    patience: float = 1800.0,
    budget_money: float | None = None,
    budget_tokens: int | None = None,
    budget_requests: int | None = None,
    confirm_above: float = 1.0,
    reuse: Literal["compatible", "exact"] = "compatible",
    truncated: Literal["reject", "keep"] = "reject",
    refusals: Literal["reject", "keep"] = "keep",
    loops: Literal["reject", "keep"] = "keep",
    reasoning: Literal["drop", "wrap"] = "drop",
    missing: Literal["stop", "skip"] = "stop",
) -> Iterator[Given]:
    """Ask for what the journal does not hold, then yield every sample of every prompt.

    Once `request.should_stop` is true it yields what is there.

    Args:
        request: conversations, and where they are asked.
        requests_per_minute, tokens_per_minute: no minute holds more.
        attempts: tries of a request that fails; what the endpoint is too busy for is not counted.
        timeout: seconds for a whole request.
        patience: seconds for which the endpoint may refuse everything, or ask to wait.
        budget_money, budget_tokens, budget_requests: the most that the payer spends, earlier processes included.
        confirm_above: money from which on somebody has to agree.
        reuse: whether an answer under another limit of tokens serves, where it ended by itself.
        truncated, refusals, loops: what becomes of answers that were cut off, refuse or repeat themselves.
        reasoning: drop what comes in a field of its own, or wrap it in <think> before the answer.
        missing: stop where the endpoint failed to answer a prompt, or skip it.

    Raises:
        ProviderError: a key, a quota, a budget, or an endpoint that fails.
        RecipeError: the server refuses or ignores a field, or nobody agreed to the price.
        DataError: most of the first answers cannot be used.
    """
    sizes = {"attempts": attempts, "timeout": timeout, "requests_per_minute": requests_per_minute,
             "tokens_per_minute": tokens_per_minute, "patience": patience}  # fmt: skip
    for name, value in sizes.items():
        if value is not None and value <= 0:
            raise RecipeError(
                f"cannot be {value}.", path=f"generate.engine.openai.{name}", fix="Use a number above 0."
            )
    if budget_money is not None and request.teacher.price is None:
        raise RecipeError(
            "is no limit without a price.",
            path="generate.engine.openai.budget_money",
            fix="State teacher.price, or use budget_tokens or budget_requests.",
        )
    rules = Rules(truncated, refusals, loops, reasoning, json=_wants_json(request.teacher.extra_body))
    limits = Limits(
        requests_per_minute,
        tokens_per_minute,
        attempts,
        timeout,
        patience,
        Most(budget_money, budget_tokens, budget_requests),
        confirm_above,
        missing,
    )
    with Journal(request.journal) as journal:
        answers = Answers(journal, request.teacher.model, asks_of(request), reuse, rules)
        work = Work(request, journal, answers, limits)
        try:
            if answers.missing() or not answers.seed_proven():
                with journal.alone(
                    lambda: request.say("another run asks a teacher; waiting for it"), request.should_stop
                ) as free:
                    if free:
                        work.do()
            else:
                work.say_reused()
        finally:
            work.report()
        yield from answers.given()


def _wants_json(extra_body: Mapping[str, Any]) -> bool:
    """Whether a request asks for JSON; a response_format of type text does not."""
    asked = extra_body.get("response_format")
    kind = asked.get("type") if isinstance(asked, Mapping) else None
    return "response_format" in extra_body and kind != "text"
