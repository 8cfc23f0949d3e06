"""What 1,000 requests cost, teacher against student, and after how many the distillation has paid for itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

THOUSAND = 1000
NO_PRICE = "the teacher's price is not stated (teacher.price)"
NO_USAGE = "no reply of the teacher states its usage"
NO_SPEED = "no evaluate stage measured how fast the student writes"
NO_SERVING = "the price of the student's machine is not stated (costs.serving_hour)"
NO_TRAINING = "the price of the machine that trained is not stated (costs.training_hour)"
LOCAL = "the teacher is not served: nobody bills its answers"


@dataclass(frozen=True)
class Amount:
    """Money, or why it is unknown; never 0 for what nobody states."""

    value: float | None = None
    reason: str = ""

    def stored(self, name: str) -> dict[str, Any]:
        """The entry of a summary."""
        return {name: self.value} | ({} if self.value is not None else {f"{name}_reason": self.reason})


def money(outcome: Any, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The block `money` of a summary; `measured` are the facts of its evaluation."""
    asked = [a.facts for a in outcome.state.artifacts.values() if "per_request" in a.facts]
    if not asked:
        return {"money": None, "money_reason": LOCAL}
    price, costs = getattr(outcome.teacher, "price", None), outcome.recipe.costs
    mean = _mean([facts["per_request"] for facts in asked])
    writing = measured.get("writing", {}).get("after") or {}
    seconds = writing["seconds"] / writing["answers"] if writing.get("answers") else None
    hours = sum(outcome.state.artifacts[name].facts["seconds"] for name in outcome.state.trained) / 3600
    teacher = answers = Amount(reason=NO_PRICE if price is None else NO_USAGE)
    if price is not None and mean is not None:
        teacher = Amount(THOUSAND * price.cost(**mean))
        answers = Amount(_bought(asked, price))
    student, training = (
        Amount(reason=NO_SERVING if costs.serving_hour is None else NO_SPEED),
        Amount(reason=NO_TRAINING),
    )
    if costs.serving_hour is not None and seconds is not None:
        student = Amount(THOUSAND * seconds * costs.serving_hour / 3600)
    if costs.training_hour is not None:
        training = Amount(hours * costs.training_hour)
    currency = costs.currency if price is None else price.currency or costs.currency
    even = _break_even(teacher, student, answers, training)
    if currency != costs.currency and (costs.serving_hour, costs.training_hour) != (None, None):
        even = Amount(
            reason=f"the teacher is paid in {currency}, machines in {costs.currency} (costs.currency)"
        )
    return {
        "money": {
            "currency": currency,
            "machines_currency": costs.currency,
            "teacher": {**teacher.stored("per_1000_requests"), **(mean or {})},
            "student": {**student.stored("per_1000_requests"), "seconds_per_request": seconds},
            "spent": {**answers.stored("answers"), **training.stored("training"), "training_hours": hours},
            **even.stored("break_even_requests"),
        }
    }


def _mean(parts: list[Mapping[str, Any]]) -> dict[str, float] | None:
    """The tokens of a mean request over all stages that asked."""
    n = sum(part["n"] for part in parts)
    if not n:
        return None
    names = ("tokens_in", "tokens_out", "cached")
    return {name: sum(part["n"] * part.get(name, 0.0) for part in parts) / n for name in names}


def _bought(asked: list[Mapping[str, Any]], price: Any) -> float:
    """What the answers cost, whichever run bought them and however cheaply; those of which nobody knows what was paid
    at the price of today. With all that was sent for this run, where that is more."""
    answered = 0.0
    for part in (facts["per_request"] for facts in asked):
        if part["n"]:
            answered += part.get("paid", 0.0) + (part["n"] - part.get("priced", 0)) * price.cost(
                **(_mean([part]) or {})
            )
    return float(max(answered, sum(facts["spent"]["money"] or 0.0 for facts in asked)))


def _break_even(teacher: Amount, student: Amount, answers: Amount, training: Amount) -> Amount:
    """The requests after which the student has saved what it cost; without the training where its cost is unknown,
    which is then said."""
    if teacher.value is None or student.value is None or answers.value is None:
        return Amount(reason=next(a.reason for a in (teacher, student, answers) if a.value is None))
    saved = (teacher.value - student.value) / THOUSAND
    if saved <= 0:
        return Amount(reason="never: a request costs the student no less than the teacher")
    if training.value is None:
        alone = math.ceil(answers.value / saved)
        return Amount(reason=f"{training.reason}; the answers alone are paid back after {alone:,} requests")
    return Amount(float(math.ceil((answers.value + training.value) / saved)))


def written(amount: float, currency: str) -> str:
    """Money with so many digits that small amounts are not 0."""
    if amount == 0:
        return f"0 {currency}"
    digits = max(2, 1 - math.floor(math.log10(abs(amount))))
    return f"{amount:,.{min(digits, 12)}f} {currency}"


def rows(block: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the page shows: a name, an amount or why there is none, and how it is known."""
    currency, machines = block["currency"], block["machines_currency"]
    teacher, student, spent = block["teacher"], block["student"], block["spent"]

    def amount(place: Mapping[str, Any], name: str, of: str) -> str:
        value = place[name]
        return f"unknown: {place[f'{name}_reason']}" if value is None else written(value, of)

    tokens = ""
    if "tokens_in" in teacher:
        tokens = f"{teacher['tokens_in']:,.0f} + {teacher['tokens_out']:,.0f} tokens a request"
    yield "Teacher, 1,000 requests", amount(teacher, "per_1000_requests", currency), tokens
    seconds = student["seconds_per_request"]
    speed = "" if seconds is None else f"{seconds:.3g} s a request on this machine, requests side by side"
    yield "Student, 1,000 requests", amount(student, "per_1000_requests", machines), speed
    yield (
        "Answers of the teacher",
        amount(spent, "answers", currency),
        "bought once, whichever run bought them",
    )
    hours = f"{3600 * spent['training_hours']:,.0f} s on this machine"
    yield "Training", amount(spent, "training", machines), hours
    even = block["break_even_requests"]
    words = block.get("break_even_requests_reason", "")
    after = f"{even:,.0f} requests" if even is not None else f"unknown: {words}"
    if words.startswith("never"):
        after = words
    yield "Paid for itself after", after, "answers and training over what a request saves"


def headline(block: Mapping[str, Any] | None) -> str:
    """Both costs in words, "" where one of them is unknown."""
    if not block:
        return ""
    teacher, student = (block[side]["per_1000_requests"] for side in ("teacher", "student"))
    if teacher is None or student is None or block["currency"] != block["machines_currency"]:
        return ""
    even = block["break_even_requests"]
    paid = "" if even is None else f", paid for itself after {even:,.0f} requests"
    return f"teacher: {written(teacher, block['currency'])}{paid}"
