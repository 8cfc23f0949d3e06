"""Text from an endpoint of the OpenAI protocol: journalled, paced, within a budget, and never bought twice.

One layer tries again: this one. Its client retries nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from potstill.generate.answers import answers_of
from potstill.generate.journal import Journal
from potstill.generate.limits import check, limits_of, rules_of
from potstill.generate.served import Given, TextRequest
from potstill.generate.wire import require_client
from potstill.generate.work import Work, answered

TAKES = "messages"
# Options that decide when and whether something is asked, not what an answer is.
PACE = frozenset({
    "requests_per_minute", "tokens_per_minute", "attempts", "timeout", "patience", "budget_money",
    "budget_tokens", "budget_requests", "confirm_above",
})  # fmt: skip

# Where options stand now that were here once.
MOVED = {
    "truncated": "generate.filters: [{truncated: {action: count}}] to keep such answers",
    "refusals": "generate.filters: [{refusals: {action: reject}}] to leave such answers out",
    "loops": "generate.filters: [{loops: {action: count}}] to keep such answers",
}


def require(teacher: Any) -> None:
    """Raises MachineError: the protocol's client is not installed."""
    require_client()


def require_options(teacher: Any, max_new_tokens: int, **options: Any) -> None:
    """Raises RecipeError for options that cannot be."""
    check("openai", teacher, max_new_tokens, options)


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
    reasoning: Literal["drop", "wrap"] = "drop",
    missing: Literal["stop", "skip"] = "stop",
    retry_truncated: int | None = None,
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
        reasoning: drop what comes in a field of its own, or wrap it in <think> before the answer.
        retry_truncated: the limit of tokens with which an answer that was cut off is asked for once more.
        missing: stop where the endpoint failed to answer a prompt, or skip it.

    Raises:
        ProviderError: a key, a quota, a budget, or an endpoint that fails.
        RecipeError: the server refuses or ignores a field, or nobody agreed to the price.
        DataError: most of the first answers cannot be used.
    """
    limits = limits_of(
        "openai",
        request,
        {"retry_truncated": retry_truncated},
        attempts=attempts,
        timeout=timeout,
        patience=patience,
        budget_money=budget_money,
        budget_tokens=budget_tokens,
        budget_requests=budget_requests,
        confirm_above=confirm_above,
        missing=missing,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    rules = rules_of(request, reasoning=reasoning)
    with Journal(request.journal) as journal:
        answers = answers_of(request, journal, reuse, rules, retry_truncated)
        yield from answered(request, journal, Work(request, journal, answers, limits))
