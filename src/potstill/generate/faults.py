"""What goes wrong between a request and its answer, in one table: what it means, and what to do about it."""

from __future__ import annotations

import email.utils
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Literal

from potstill.errors import PotstillError, ProviderError, RecipeError

Action = Literal["wait", "again", "reject", "refuse", "stop"]
"""wait: the endpoint is busy; ask again when it says, without counting the attempt.
again: try again, so many times.
reject: this prompt has no answer; go on with the others.
refuse: the request itself is wrong, so every other would be; the recipe has to change.
stop: nobody is going to answer: a key, a quota, an address."""


@dataclass(frozen=True)
class Fault:
    """A request without an answer. `billed` says that it may have been paid for all the same."""

    action: Action
    reason: str  # short and the same for all of its kind
    said: str = ""  # what the server said of it
    billed: bool = False
    final: bool = False  # rejected for good: asking again would give the same
    most: int | None = None  # tries that make sense, where they are fewer than for others


SCHEMA_FIELD = "response_format"
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded",
          "insufficient_credits", "credit_balance_too_low", "insufficient_balance"}  # fmt: skip
_LONG = {"context_length_exceeded", "string_above_max_length", "exceed_context_size_error"}
_FILTER = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "prohibited_content"}
_FIELD = {"unsupported_parameter", "unsupported_value", "unknown_parameter", "invalid_parameter",
          SCHEMA_FIELD}  # fmt: skip
_ANY: frozenset[int] = frozenset()

# The first line that fits counts: statuses (none: every one), codes that the reply names (none: whatever it names).
TABLE: tuple[tuple[frozenset[int], set[str], Action, str, bool], ...] = (
    (_ANY, _QUOTA, "stop", "the quota is used up", False),
    (frozenset({402}), set(), "stop", "the quota is used up", False),
    (_ANY, _FILTER, "reject", "content filter", True),
    (_ANY, _LONG, "reject", "longer than the teacher's context", True),
    (frozenset({400, 422}), _FIELD, "refuse", "the server refuses a field", False),
    (frozenset({401, 403}), set(), "stop", "the key is refused", False),
    (frozenset({404, 405, 410}), set(), "stop", "there is no such model or address", False),
    (frozenset({429}), set(), "wait", "too many requests", False),
    (frozenset({408, 409, 425}), set(), "again", "the server could not take it now", False),
    (frozenset(range(500, 600)), set(), "again", "the server failed", False),
    (frozenset(range(400, 500)), set(), "reject", "refused by the server", False),
    (frozenset(range(200, 300)), set(), "again", "an error in place of an answer", False),
    (_ANY, set(), "stop", "the address answers with something else", False),
)
# What to do where nobody is going to answer, by reason.
FIXES = {
    "the quota is used up": "See to the account at the provider",
    "the key is refused": "Check the key in the variable that teacher.key_env names, and what it may use",
    **dict.fromkeys(
        ("there is no such model or address", "the address answers with something else"),
        "Check teacher.model, and teacher.endpoint up to its version (https://HOST/v1)",
    ),
}
# Without a status: what the network did.
UNREACHABLE = Fault("again", "the server cannot be reached")
TIMEOUT = Fault("again", "no reply in time", billed=True)
RESET = Fault("again", "the connection broke", billed=True)
UNREADABLE = Fault("again", "a reply that cannot be read", billed=True)
UNUSABLE = Fault("again", "a reply that cannot be read", billed=True, most=2)  # whole, and each is paid for


def of_status(status: int, body: bytes) -> Fault:
    """What a reply that is no answer means. A request that failed on the server may have been billed."""
    codes, said = read_error(body)
    for statuses, named, action, reason, final in TABLE:
        if (not statuses or status in statuses) and (not named or named & codes):
            billed = status < 300 or status >= 500 or status == 408
            return Fault(action, reason, f"{status}: {said}" if said else str(status), billed, final)
    raise AssertionError("the last line of the table fits everything")


def error_of(fault: Fault) -> PotstillError:
    """The error of a fault that every other request would have too: `stop` and `refuse`."""
    message = f"{fault.reason}: {fault.said}".rstrip(".") + "."
    if fault.action == "refuse":
        return RecipeError(
            message,
            path="teacher",
            fix="Write teacher.omit: [temperature, top_p] for a field that it does not take, "
            "teacher.limit_field: max_completion_tokens, task.response_format: false where it takes no "
            "schema (answers are checked all the same), or repair teacher.extra_body.",
        )
    fix = FIXES.get(fault.reason, "See to it")
    return ProviderError(
        message,
        path="teacher",
        fix=f"{fix}, and run the same command again: everything answered so far is kept.",
    )


def read_error(body: bytes) -> tuple[set[str], str]:
    """The codes that an error body names, and its message; whatever its form."""
    try:
        value = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return set(), " ".join(body[:200].decode("utf-8", "replace").split())
    error = value.get("error", value) if isinstance(value, Mapping) else value
    if not isinstance(error, Mapping):
        return set(), str(error)[:500]
    inner = error.get("innererror")
    places = [error, inner if isinstance(inner, Mapping) else {}]
    codes = {
        str(place[name]).lower()
        for place in places
        for name in ("code", "type")
        if isinstance(place.get(name), str)
    }
    said = next(
        (error[name] for name in ("message", "detail", "error") if isinstance(error.get(name), str)), ""
    )
    field = error.get("param")
    if field == SCHEMA_FIELD:  # a schema that is no good is told by the field alone
        codes.add(SCHEMA_FIELD)
    return codes, f"{field}: {said}"[:500] if isinstance(field, str) and field not in said else said[:500]


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that a reply asks to wait, in all forms in which servers say so; None where it says nothing usable.

    `retry-after-ms` in milliseconds, else `retry-after` in seconds or as an HTTP date; one in the past is 0.
    Negative and unreadable values say nothing. `now` is the time in seconds since 1970.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        seconds = _number(headers.get(name))
        if seconds is not None:
            return seconds / unit
    text = headers.get("retry-after", "")
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 0 <= value < math.inf else None
