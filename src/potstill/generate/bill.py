"""The bill before the rest is asked for: what a few answers say of all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from potstill.console import clock
from potstill.errors import DataError
from potstill.generate.asks import Ask, ignored_field
from potstill.generate.entries import Spent
from potstill.generate.price import Price
from potstill.generate.replies import Answer, Rules

PILOT = 16
_SHOWN = 1200  # characters of a request, of an answer


def pilot_of(asks: Sequence[Ask]) -> list[Ask]:
    """A few requests from everywhere in the data."""
    count = min(PILOT, len(asks))
    return [asks[(2 * i + 1) * len(asks) // (2 * count)] for i in range(count)]


@dataclass(frozen=True)
class Bill:
    """What the answers so far say of the rest.

    Args:
        tried: requests with their answers, None for one that was rejected or failed.
        left: how many requests are still to be sent.
        rate: answers a second so far; None where nothing was asked yet.
        spent: all that was sent for the payer.
        share: of the price, that the rest costs.
        again: the requests, by prompt and sample, for answers that were cut off: they are sent with a larger limit.
        judge: why an answer would not be trained on, from its prompt, its text and its finish.
    """

    tried: Sequence[tuple[Ask, Answer | None]]
    left: int
    rate: float | None
    spent: Spent
    price: Price | None
    rules: Rules
    share: float = 1.0
    judge: Callable[[str, str, str], str] = lambda prompt, text, finish: ""
    again: Mapping[tuple[int, int], Ask] = field(default_factory=dict)

    @property
    def reasons(self) -> Counter[str]:
        """Why answers cannot be used."""
        return Counter(filter(None, (self._problem(ask, answer) for ask, answer in self.tried)))

    def _problem(self, ask: Ask, answer: Answer | None) -> str:
        if answer is None:
            return "no answer"
        if (ask.index, ask.sample) in self.again:
            return ""  # the longer answer will say
        ignored = "the server ignores a field" if ignored_field(answer, ask) else ""
        text = self.rules.text(answer)
        invalid = self.rules.task(text).partition(" (")[0]
        # What was cut off is no valid answer either: the reason that says how to go on comes first.
        return self.rules.problem(answer) or ignored or self.judge(ask.prompt, text, answer.finish) or invalid

    @property
    def projected(self) -> float | None:
        """What everything will have cost in the end; None where the price is unknown, or no answer shows it."""
        costs = [
            cost + self._longer(ask)
            for ask, answer in self.tried
            if (cost := self._cost(ask, answer)) is not None
        ]
        if self.price is None or (self.left and not costs):
            return None
        rest = self.left * sum(costs) / max(1, len(costs)) + sum(map(self._longer, self.again.values()))
        return self.spent.money + self.share * rest

    def _longer(self, ask: Ask) -> float:
        """The most that a cut-off answer costs once more, 0 where it is not asked for again."""
        longer = self.again.get((ask.index, ask.sample))
        return 0.0 if longer is None or self.price is None else self.price.cost(longer.tokens, longer.most)

    def _cost(self, ask: Ask, answer: Answer | None) -> float | None:
        """A request's cost, the most it may be where nobody states it."""
        if self.price is None or answer is None:
            return None
        if answer.tokens_in is None or answer.tokens_out is None:
            return self.price.cost(ask.bound, ask.most)
        return self.price.cost(answer.tokens_in, answer.tokens_out, answer.cached)

    def lines(self) -> list[str]:
        """One request, how many answers can be used, and what the rest will cost and take; none without a try."""
        if not self.tried:
            return []
        usable = len(self.tried) - self.reasons.total()
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        longer = sum((ask.index, ask.sample) in self.again for ask, _ in self.tried)
        ask, answer = self.tried[0]
        lines = [
            f"one request as it is sent: {_short(json.dumps(dict(ask.body), ensure_ascii=False))}",
            f"its answer: {_short(answer.text) if answer else 'none'}",
            f"{usable} of {len(self.tried)} answers can be used"
            + (f" ({reasons})" if reasons else "")
            + (f", {longer} of them once they are asked for again, at more tokens" if longer else ""),
            f"{self.left} requests are left; {self._money()}, {self._time()}",
        ]
        echoed = Counter(answer.echoed for _, answer in self.tried if answer and answer.echoed)
        if set(echoed) - {str(ask.body["model"])}:
            names = ", ".join(f"{name} ({count})" for name, count in echoed.most_common())
            lines.insert(2, f"asked for {ask.body['model']}, answered by {names}")
        return lines

    def _money(self) -> str:
        tokens = f"{self.spent.tokens_in} + {self.spent.tokens_out} tokens so far"
        if self.price is None:
            return f"price unknown (teacher.price), {tokens}"
        if self.projected is None:
            return f"no answer shows what the rest costs, {tokens}"
        currency = self.price.currency
        return f"spent {self.spent.money:.4g} {currency} ({tokens}), projected {self.projected:.4g} {currency} in all"

    def _time(self) -> str:
        return f"about {clock(self.left / self.rate)}" if self.rate else "how long it takes is not known"

    def require_usable(self) -> None:
        """Stop where most answers cannot be used, before the rest is paid for.

        Raises:
            DataError: fewer than half of them can.
        """
        bad = self.reasons.total()
        if 2 * bad <= len(self.tried) or len(self.tried) < PILOT:
            return
        reason = self.reasons.most_common(1)[0][0]
        fixes = {
            "cut off at the limit of tokens": "Raise generate.max_new_tokens, or keep them: "
            "generate.filters=[{truncated: {action: count}}].",
            "reasoning used up its tokens": "Raise generate.max_new_tokens, or lower the reasoning effort in "
            "teacher.extra_body.",
            "not the JSON that was asked for": "The server ignores response_format, or the prompt does not ask for "
            "JSON: name it as the server does.",
        }
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        raise DataError(
            f"{bad} of the first {len(self.tried)} answers cannot be used: {counts}. Nothing more was asked.",
            path="generate",
            fix=fixes.get(
                reason,
                "Look at the request and its answer above; teacher.prompt and task say what is asked for.",
            ),
        )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
