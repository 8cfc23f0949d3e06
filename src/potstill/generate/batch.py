"""Text from a provider's batch files: cheaper, within a day, in the same journal and budget as single requests.

The first few requests are sent one by one, so that the bill is known before the rest is submitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from potstill.generate.answers import answers_of
from potstill.generate.batch_work import BatchWork
from potstill.generate.journal import Journal
from potstill.generate.limits import check, limits_of, rules_of
from potstill.generate.served import Given, TextRequest
from potstill.generate.wire import require_client
from potstill.generate.work import answered

TAKES = "messages"
# Options that decide when and whether something is asked, not what an answer is.
PACE = frozenset({
    "requests_per_batch", "batches_at_once", "poll_seconds", "window", "price_share", "attempts", "timeout",
    "patience", "budget_money", "budget_tokens", "budget_requests", "confirm_above",
})  # fmt: skip


def require(teacher: Any) -> None:
    """Raises MachineError: the protocol's client is not installed."""
    require_client()


def require_options(teacher: Any, max_new_tokens: int, **options: Any) -> None:
    """Raises RecipeError for options that cannot be."""
    check("batch", teacher, max_new_tokens, options)


def write(
    request: TextRequest,
    *,
    requests_per_batch: int = 5000,
    batches_at_once: int = 4,
    poll_seconds: float = 30.0,
    window: str = "24h",
    price_share: float = 1.0,
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

    Once `request.should_stop` is true it yields what is there; batches go on at the provider.

    Args:
        request: conversations, and where they are asked.
        requests_per_batch: most requests in a file.
        batches_at_once: most batches at the provider at a time.
        poll_seconds: between two looks at a batch.
        window: how long a batch may take, as the provider calls it.
        price_share: of teacher.price, that a request in a batch costs; 0.5 at many providers.
        attempts: batches that a request without an answer is put into, and tries of a call that fails.
        timeout: seconds for a whole call.
        patience: seconds that the endpoint may ask to wait.
        budget_money, budget_tokens, budget_requests: the most that the payer spends, earlier processes included.
        confirm_above: money from which on somebody has to agree.
        reuse: whether an answer under another limit of tokens serves, where it ended by itself.
        reasoning: drop what comes in a field of its own, or wrap it in <think> before the answer.
        retry_truncated: the limit of tokens with which an answer that was cut off is asked for once more.
        missing: stop where the endpoint failed to answer a prompt, or skip it.

    Raises:
        ProviderError: a key, a quota, a budget, files that do not fit what was sent, or an endpoint that fails.
        RecipeError: the server refuses or ignores a field, or nobody agreed to the price.
        DataError: most of the first answers cannot be used.
    """
    sizes: dict[str, Any] = {
        "price_share": price_share,
        "requests_per_batch": requests_per_batch,
        "batches_at_once": batches_at_once,
        "poll_seconds": poll_seconds,
    }
    limits = limits_of(
        "batch",
        request,
        {"retry_truncated": retry_truncated, **sizes},
        attempts=attempts,
        timeout=timeout,
        patience=patience,
        budget_money=budget_money,
        budget_tokens=budget_tokens,
        budget_requests=budget_requests,
        confirm_above=confirm_above,
        missing=missing,
    )
    rules = rules_of(request, reasoning=reasoning)
    with Journal(request.journal) as journal:
        answers = answers_of(request, journal, reuse, rules, retry_truncated)
        work = BatchWork(request, journal, answers, limits, window=window, **sizes)
        yield from answered(request, journal, work)
