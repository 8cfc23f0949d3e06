"""Ask for what is missing: workers that send, wait, try again, and write down everything."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.errors import MachineError, RecipeError
from potstill.generate import faults, replies
from potstill.generate.asks import Ask, ignored_field
from potstill.generate.entries import Intent
from potstill.generate.faults import Fault
from potstill.generate.journal import Journal
from potstill.generate.pace import Breaker, Pace, backoff
from potstill.generate.price import Budget, Price
from potstill.generate.replies import Answer, NoAnswer
from potstill.generate.served import Clock
from potstill.generate.wire import Reply, Wire

DRAIN_SECONDS = 60.0  # that requests in flight have once nothing more is sent
POLL_SECONDS = 0.05


@dataclass
class Campaign:
    """Requests to one endpoint, by workers that share its pace, its budget and its journal.

    Args:
        attempts: tries of a request that fails; what the endpoint is too busy for is not counted.
        timeout: seconds that a whole request may take.
    """

    journal: Journal
    wire: Wire
    pace: Pace
    budget: Budget
    breaker: Breaker
    teacher: Any  # endpoint, model, price, limit_field, extra_body
    payer: str
    workers: int
    attempts: int
    timeout: float
    clock: Clock
    dice: random.Random
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = threading.Condition()
        self._error: BaseException | None = None
        self._stopping = False
        self.answered = 0  # requests that have an answer, or none for good
        self.unanswered: list[Ask] = []

    def run(
        self, asks: Sequence[Ask], on_progress: Callable[[], None], should_stop: Callable[[], bool]
    ) -> bool:
        """Ask all of these; false where a stop came first. What is in flight then may finish, for a while.

        Raises:
            ProviderError: a key, a quota, a budget or an endpoint that fails; in-flight requests have ended.
            RecipeError: the server refuses or ignores what the recipe asks for.
        """
        if should_stop():
            self._stop(None)
        queue = iter(asks)
        threads = [
            threading.Thread(target=self._work, args=(queue,), daemon=True, name="asks")
            for _ in range(min(self.workers, len(asks)))
        ]
        for thread in threads:
            thread.start()
        leave, signalled = math.inf, False
        while alive := [thread for thread in threads if thread.is_alive()]:
            if not signalled and should_stop():
                signalled = True
                self.say(
                    f"nothing more is sent; requests in flight have {DRAIN_SECONDS:.0f} s (a second signal leaves at once)"
                )
                self._stop(None)
                leave = min(leave, time.monotonic() + DRAIN_SECONDS)
            if self._stopping and leave == math.inf:  # an error: what is in flight is paid for all the same
                leave = time.monotonic() + self.timeout + DRAIN_SECONDS
            if time.monotonic() > leave:
                break
            alive[0].join(POLL_SECONDS)
            try:
                on_progress()
            except Exception as error:  # such as a full disk: first take in what is in flight
                self._stop(error)
        if self._error is not None:
            raise self._error
        return not self._stopping

    def _work(self, queue: Any) -> None:
        try:
            while (ask := self._next(queue)) is not None:
                self._get(ask)
        except BaseException as error:  # whatever it is, the thread that waits must hear of it
            self._stop(error)

    def _next(self, queue: Any) -> Ask | None:
        with self._lock:
            return None if self._stopping else next(queue, None)

    def _stop(self, error: BaseException | None) -> None:
        with self._lock:
            self._stopping = True
            self._error = self._error or error
        self.pace.stop()
        self.budget.stop()

    def _get(self, ask: Ask) -> None:
        """Ask until there is an answer, or none for good."""
        failed = 0
        while True:
            outcome, sent, reply = self._once(ask)
            if outcome is None:
                return
            if isinstance(outcome, Answer):
                self._arrived(outcome, ask)
                return
            asked = faults.retry_after(reply.headers, self.clock.date())
            match outcome.action:
                case "stop" | "refuse":
                    raise faults.error_of(outcome)
                case "reject":
                    self._ended(ask, answered=outcome.final, reason=_words(outcome))
                    return
                case "wait":
                    self.pace.refused(sent, asked)
                case "again":
                    failed += 1
                    if failed >= min(self.attempts, outcome.most or self.attempts):
                        self._ended(ask, answered=False, reason=_words(outcome))
                        return
                    if asked is not None:
                        self.pace.pause(asked)
                    else:
                        self.pace.nap(backoff(failed, self.dice))

    def _once(self, ask: Ask) -> tuple[Answer | Fault | None, float, Reply]:
        """Send a request once, with everything written down; None where nothing may be sent any more."""
        price: Price | None = self.teacher.price
        tokens = ask.bound + ask.most
        money = None if price is None else price.cost(ask.bound, ask.most)
        if not self.budget.reserve(tokens, money):
            return None, 0.0, Reply()
        sent = self.pace.admit(ask.tokens + ask.most)
        if sent is None:
            self.budget.back(tokens, money)
            return None, 0.0, Reply()
        used, cost = None, None
        try:
            number = self.journal.intend(self.intent(ask, tokens, money), self.clock.date())
            began = time.monotonic()
            reply = self.wire.send(ask.body, ask.key)
            self._keep(number, reply, time.monotonic() - began)
            outcome = outcome_of(reply.status, reply.body, reply.fault)
            state, values = entry_of(outcome, price)
            self.journal.settle(number, state, **values)
            if values.get("tokens_in") is not None and values.get("tokens_out") is not None:
                used, cost = values["tokens_in"] + values["tokens_out"], values["cost"]
        finally:
            self.pace.done(ask.tokens + ask.most, used)
            self.budget.settle(tokens, money, used, cost)
        return outcome, sent, reply

    def _keep(self, number: int, reply: Reply, seconds: float) -> None:
        """Commit a reply; it is paid for, so a journal that cannot be written is tried again for a while.

        Raises:
            MachineError: it cannot be written for `DRAIN_SECONDS`.
        """
        until = self.clock.now() + DRAIN_SECONDS
        while True:
            try:
                self.journal.keep(
                    number, reply.body, status=reply.status, request_id=reply.request_id, seconds=seconds
                )
                return
            except MachineError:
                if self.clock.now() >= until:
                    raise
            with self._waiting:
                self.clock.wait(self._waiting, 1.0)

    def intent(self, ask: Ask, tokens: int, money: float | None) -> Intent:
        """What is written down of a request that may cost so much before it is sent."""
        currency = self.teacher.price.currency if self.teacher.price else ""
        teacher = self.teacher
        return Intent(
            ask.key, ask.family, ask.body, ask.most, teacher.endpoint, teacher.model, self.payer, tokens,
            money, currency,
        )  # fmt: skip

    def _arrived(self, answer: Answer, ask: Ask) -> None:
        self.pace.answered()
        self._ended(ask, answered=True)
        if ignored := ignored_field(answer, ask):
            raise RecipeError(
                f"the server ignores a field: {ignored}.",
                fix="Leave the field out (a schema: task.response_format: false), name it as the server does "
                "(teacher.limit_field, teacher.extra_body), or use another server. What it answered is kept.",
                path="teacher",
            )

    def _ended(self, ask: Ask, *, answered: bool, reason: str = "") -> None:
        with self._lock:
            self.answered += answered
            if not answered:
                self.unanswered.append(ask)
        self.breaker.note(answered, reason)


def _words(fault: Fault) -> str:
    return f"{fault.reason} ({fault.said})" if fault.said else fault.reason


def outcome_of(status: int | None, body: bytes, fault: Fault | None = None) -> Answer | Fault:
    """What a reply is: an answer, or a fault of the table. Pure, so that a stored reply can be read again."""
    if fault is not None or status is None:
        return fault or faults.RESET
    if not 200 <= status < 300:
        return faults.of_status(status, body)
    try:
        return replies.read(body)
    except NoAnswer as error:
        codes, _ = faults.read_error(body)
        if str(error) != replies.BROKEN_OFF and (codes or b'"error"' in body[:10_000]):
            return faults.of_status(status, body)
        return replace(faults.UNUSABLE if error.whole else faults.UNREADABLE, said=str(error))


def entry_of(outcome: Answer | Fault, price: Price | None) -> tuple[str, dict[str, Any]]:
    """What the journal notes of a reply: the state and its columns."""
    if isinstance(outcome, Answer):
        stated = outcome.tokens_in is not None and outcome.tokens_out is not None
        cost = None
        if stated and price is not None:
            cost = price.cost(outcome.tokens_in or 0, outcome.tokens_out or 0, outcome.cached)
        return "answered", {
            "finish": outcome.finish,
            "echoed": outcome.echoed,
            "tokens_in": outcome.tokens_in,
            "tokens_out": outcome.tokens_out,
            "cost": cost,
        }
    values: dict[str, Any] = {"reason": _words(outcome)}
    if not outcome.billed:
        values |= {"tokens_in": 0, "tokens_out": 0, "cost": 0.0}
    return "rejected" if outcome.final else "failed", values
