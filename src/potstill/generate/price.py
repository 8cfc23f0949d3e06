"""What requests cost, and the budget that they must stay within."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import BudgetSpent, RecipeError
from potstill.generate.entries import Spent

MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """The price of a million tokens; `cached` is that of prompt tokens which the provider had cached."""

    input: float
    output: float
    cached: float | None = None
    currency: str = "USD"

    @classmethod
    def read(cls, value: Mapping[str, Any], path: str) -> Price:
        """From a recipe.

        Raises:
            RecipeError: a key is unknown or missing, or a price is no number from 0 up.
        """
        known = ("input", "output", "cached", "currency")
        if not isinstance(value, Mapping) or set(value) - set(known) or not {"input", "output"} <= set(value):
            raise RecipeError(
                f"is {value!r}.",
                fix="Write {input: 0.15, output: 0.60}: the price of a million tokens; cached and currency may follow.",
                path=path,
            )
        for name in ("input", "output", "cached"):
            number: Any = value.get(name)
            known_kind = isinstance(number, int | float) and not isinstance(number, bool)
            if name in value and not (known_kind and 0 <= number < math.inf):
                raise RecipeError(f"must be a number from 0 up, not {number!r}.", path=f"{path}.{name}")
        if not isinstance(value.get("currency", ""), str):
            raise RecipeError("must be text, such as USD.", path=f"{path}.currency")
        return cls(**value)

    def times(self, share: float) -> Price:
        """A share of this price, as providers ask for requests that may take long."""
        cached = None if self.cached is None else share * self.cached
        return Price(share * self.input, share * self.output, cached, self.currency)

    @property
    def free(self) -> bool:
        """Whether nothing is paid."""
        return not (self.input or self.output)

    def cost(self, tokens_in: int, tokens_out: int, cached: int = 0) -> float:
        """The price of a request."""
        cached = min(cached, tokens_in) if self.cached is not None else 0
        paid = (tokens_in - cached) * self.input + cached * (self.cached or 0.0) + tokens_out * self.output
        return paid / MILLION


@dataclass(frozen=True)
class Most:
    """What may be spent at most; None is no limit."""

    money: float | None = None
    tokens: int | None = None
    requests: int | None = None


def _plain(money: float) -> str:
    """A sum to four digits, without an exponent."""
    money = max(0.0, round(money, 12))  # what was given back leaves a rest of rounding, below zero too
    digits = 4 if money == 0 else max(2, 3 - math.floor(math.log10(money)))
    return f"{money:.{digits}f}".rstrip("0").rstrip(".")


def spent_error(lacking: str) -> BudgetSpent:
    """The error of a budget that does not reach, with what it lacks."""
    return BudgetSpent(
        f"the budget reaches no further: {lacking}.",
        fix="Raise it under generate.engine and run the same command again; nothing that is answered is asked again.",
    )


class Budget:
    """What is left to spend. The most that a request can cost is reserved before it is sent.

    Args:
        spent: what was sent before, by this process or an earlier one.
    """

    def __init__(self, most: Most, spent: Spent) -> None:
        self._most = most
        self._tokens, self._money, self._requests = spent.tokens, spent.money, spent.requests
        self._held = 0
        self._changed = threading.Condition()
        self._stopped = False

    def reserve(self, tokens: int, money: float | None) -> bool:
        """Reserve a request; waits while what others reserved may come back. False once `stop` was called.

        Raises:
            BudgetSpent: it could cost more than what is left.
        """
        with self._changed:
            while (lacking := self._lacking(tokens, money)) and self._held and not self._stopped:
                self._changed.wait(1.0)
            if self._stopped:
                return False
            if lacking:
                raise spent_error(lacking)
            self._add(tokens, money or 0.0, 1)
            self._held += 1
            return True

    def lacking(self, tokens: int, money: float | None) -> str:
        """What another request could exceed, in words; "" where it may be sent."""
        with self._changed:
            return self._lacking(tokens, money)

    def take(self, tokens: int, money: float | None) -> None:
        """Reserve a request that `lacking` allows, for good: what it used is counted from the journal."""
        with self._changed:
            self._add(tokens, money or 0.0, 1)

    def settle(self, tokens: int, money: float | None, used: int | None, cost: float | None) -> None:
        """Replace what was reserved by what was used; what nobody stated stays as it was reserved."""
        with self._changed:
            self._held -= 1
            if used is not None:
                self._add(used - tokens, 0.0, 0)
            if cost is not None:
                self._add(0, cost - (money or 0.0), 0)
            self._changed.notify_all()

    def back(self, tokens: int, money: float | None) -> None:
        """Give back a request that was not sent."""
        with self._changed:
            self._held -= 1
            self._add(-tokens, -(money or 0.0), -1)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _add(self, tokens: int, money: float, requests: int) -> None:
        self._tokens += tokens
        self._money += money
        self._requests += requests

    def _lacking(self, tokens: int, money: float | None) -> str:
        """What the next request could exceed, in words; "" for nothing."""
        most = self._most
        if most.requests is not None and self._requests + 1 > most.requests:
            return f"{self._requests} of {most.requests} requests were sent (budget_requests)"
        if most.tokens is not None and self._tokens + tokens > most.tokens:
            return (
                f"{self._tokens} of {most.tokens} tokens are spent, and the next request may take {tokens} "
                "(budget_tokens)"
            )
        if most.money is not None and self._money + (money or 0.0) > most.money:
            return (
                f"{_plain(self._money)} of {_plain(most.money)} are spent, and the next request may cost "
                f"{_plain(money or 0.0)} (budget_money)"
            )
        return ""
