"""Where the answers of a served teacher stand, said now and then."""

from __future__ import annotations

import time
from dataclasses import dataclass

from potstill.generate.journal import Journal
from potstill.generate.served import Spending, TextRequest

SECONDS_BETWEEN, MOST_BETWEEN = 1.0, 10.0
LEAST_SHARE = 20  # times as long as adding up the journal takes: its thread writes nothing meanwhile


@dataclass
class Reports:
    """Tells a request's `on_progress` what its payer has spent so far."""

    request: TextRequest
    journal: Journal

    def __post_init__(self) -> None:
        self._start, self._last, self._took = time.monotonic(), 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Since the start of this process's work."""
        return time.monotonic() - self._start

    @property
    def due(self) -> bool:
        """Whether it is time for another one."""
        between = max(SECONDS_BETWEEN, min(MOST_BETWEEN, LEAST_SHARE * self._took))
        return time.monotonic() - self._last >= between

    def send(self, done: int, total: int, here: int) -> None:
        """Say that so many answers are there, `here` of them from this process."""
        self._last = time.monotonic()
        price = self.request.teacher.price
        spent = self.journal.spent(self.request.payer, price)
        self._took = time.monotonic() - self._last
        self.request.on_progress(
            Spending(
                done=done,
                total=total,
                requests=spent.requests,
                tokens_in=spent.tokens_in,
                tokens_out=spent.tokens_out,
                money=None if price is None else spent.known,
                currency="" if price is None else price.currency,
                unknown=spent.unknown,
                seconds=self._last - self._start,
                here=here,
            )
        )
