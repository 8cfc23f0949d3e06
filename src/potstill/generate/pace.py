"""When the next request may be sent to an endpoint, and when to give up on it."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from potstill.errors import ProviderError
from potstill.generate.served import Clock

BURST = 0.1  # of a minute's allowance may be used at once; the rest comes evenly
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds
WINDOW, LEAST = 50, 20  # requests that the breaker looks at, and how many of them it needs


@dataclass
class Bucket:
    """An allowance a minute: in no 60 seconds more than that, but for one request that is larger than a burst."""

    per_minute: float
    clock: Clock
    _level: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._most = max(1.0, BURST * self.per_minute)
        self._rate = max(self.per_minute - self._most, self.per_minute * (1 - BURST) / 2) / 60
        self._level, self._at = self._most, self.clock.now()

    def delay(self, amount: float) -> float:
        """Seconds until so much may be taken."""
        self._fill()
        return max(0.0, (min(amount, self._most) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take it; a negative amount gives back."""
        self._fill()
        self._level = min(self._most, self._level - amount)

    def _fill(self) -> None:
        now = self.clock.now()
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now


class Pace:
    """How many requests are in flight, and when the next one starts.

    The number in flight is halved when the endpoint says that they are too many, once for all that were in flight
    then, and grows by one for as many answers as are in flight (AIMD). A pause holds for every worker.

    Args:
        patience: seconds for which an endpoint may refuse everything before `wait` gives up.
    """

    def __init__(
        self,
        workers: int,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        patience: float,
        clock: Clock,
        dice: random.Random,
    ) -> None:
        self._most, self._limit = workers, float(workers)
        self._requests = None if requests_per_minute is None else Bucket(requests_per_minute, clock)
        self._tokens = None if tokens_per_minute is None else Bucket(tokens_per_minute, clock)
        self._patience, self._clock, self._dice = patience, clock, dice
        self._flying = 0
        self._paused_until = self._slowed_at = -1e9
        self._refused_since: float | None = None
        self._refusals = 0
        self._changed = threading.Condition()
        self._stopped = False

    @property
    def limit(self) -> int:
        """Most requests in flight now."""
        return max(1, int(self._limit))

    def admit(self, tokens: int) -> float | None:
        """Wait until a request of so many tokens may be sent, and return the time; None once `stop` was called."""
        with self._changed:
            while not self._stopped:
                now = self._clock.now()
                wait = max(
                    self._paused_until - now,
                    self._requests.delay(1) if self._requests else 0.0,
                    self._tokens.delay(tokens) if self._tokens else 0.0,
                )
                if wait <= 0 and self._flying < self.limit:
                    self._flying += 1
                    if self._requests:
                        self._requests.take(1)
                    if self._tokens:
                        self._tokens.take(tokens)
                    return now
                if wait > 0:
                    self._clock.wait(self._changed, wait)
                else:
                    self._changed.wait(1.0)  # for one that is in flight
            return None

    def done(self, reserved: int, used: int | None) -> None:
        """A request has ended; what it did not use of its tokens is given back."""
        with self._changed:
            self._flying -= 1
            if self._tokens and used is not None:
                self._tokens.take(used - reserved)
            self._changed.notify_all()

    def answered(self) -> None:
        """The endpoint answers."""
        with self._changed:
            self._refused_since, self._refusals = None, 0
            self._limit = min(float(self._most), self._limit + 1 / self._limit)
            self._changed.notify_all()

    def refused(self, sent: float, asked: float | None) -> None:
        """The endpoint says that there are too many requests, of one sent then; `asked` is its Retry-After.

        Raises:
            ProviderError: it has refused everything for too long, or asks to wait longer than that.
        """
        with self._changed:
            now = self._clock.now()
            if self._refused_since is None:
                self._refused_since = now
            if sent >= self._slowed_at:
                self._slowed_at = now
                self._limit = max(1.0, self._limit / 2)
                self._refusals += 1
            seconds = asked if asked is not None else backoff(self._refusals, self._dice)
            if asked is not None and self._refusals > 1:  # what it asked for did not help
                seconds = max(asked, backoff(self._refusals - 1, self._dice))
            waited = now - self._refused_since
            if waited + seconds > self._patience:
                word = (
                    f"asks to wait {seconds:.0f} s" if asked else f"has refused everything for {waited:.0f} s"
                )
                raise ProviderError(
                    f"the endpoint {word}; patience is {self._patience:.0f} s.",
                    fix="Run the same command again later, or raise patience (generate.engine).",
                )
            self._pause(seconds)

    def pause(self, seconds: float) -> None:
        """Send nothing for so long, whoever asks.

        Raises:
            ProviderError: that is longer than patience lasts.
        """
        if seconds > self._patience:
            raise ProviderError(
                f"the endpoint asks to wait {seconds:.0f} s; patience is {self._patience:.0f} s.",
                fix="Run the same command again later, or raise patience (generate.engine).",
            )
        with self._changed:
            self._pause(seconds)

    def nap(self, seconds: float) -> None:
        """Let one worker wait, unless all stop."""
        with self._changed:
            until = self._clock.now() + seconds
            while not self._stopped and (left := until - self._clock.now()) > 0:
                self._clock.wait(self._changed, left)

    def stop(self) -> None:
        """Let nobody send or wait any longer."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, self._clock.now() + seconds)


def backoff(attempt: int, dice: random.Random) -> float:
    """Seconds before the next try: doubled with each, and spread so that workers do not come back together."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(attempt, 20)) * dice.uniform(0.5, 1.0)


class Breaker:
    """Stops where at least half of the last requests failed. It looks at earlier runs too, so that a run that
    only asks again what failed before is not judged by these alone.

    Args:
        before: whether earlier requests to the endpoint were answered, the oldest first.
    """

    def __init__(self, before: Iterable[bool] = ()) -> None:
        self._last = deque(before, maxlen=WINDOW)
        self._here = 0
        self._lock = threading.Lock()

    def note(self, answered: bool, reason: str = "") -> None:
        """Note a request's end.

        Raises:
            ProviderError: too many of the last ones failed.
        """
        with self._lock:
            self._last.append(answered)
            self._here += 1
            failed, of = self._last.count(False), len(self._last)
            if answered or self._here < LEAST or of < LEAST or 2 * failed < of:
                return
        raise ProviderError(
            f"{failed} of the last {of} requests to the endpoint failed (it stops at half of the last {WINDOW}, "
            f"earlier runs included); the last one: {reason}.",
            fix="See whether the server works, and run the same command again: answers are kept.",
        )
