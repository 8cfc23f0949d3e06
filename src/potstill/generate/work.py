"""Ask for what is missing: a few first, then the bill, then the rest."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from potstill.errors import ProviderError, RecipeError
from potstill.generate import campaign
from potstill.generate.answers import AGAIN, Answers
from potstill.generate.asks import Ask
from potstill.generate.batches import Batches
from potstill.generate.bill import PILOT, Bill, pilot_of
from potstill.generate.campaign import Campaign
from potstill.generate.journal import Journal
from potstill.generate.limits import Limits
from potstill.generate.pace import WINDOW, Breaker, Pace
from potstill.generate.price import Budget
from potstill.generate.replies import Answer
from potstill.generate.reports import Reports
from potstill.generate.served import Given, TextRequest
from potstill.generate.wire import Wire

_MOST = 1e300  # money: what an unknown price is agreed to as


@dataclass
class Work:
    """What is missing, asked for: the first few, the bill, the rest."""

    request: TextRequest
    journal: Journal
    answers: Answers
    limits: Limits
    share = 1.0  # of the price, that what is left costs

    def __post_init__(self) -> None:
        self._reports = Reports(self.request, self.journal)
        self._done = 0  # answers that were there before
        self._campaign: Campaign | None = None
        self._dice = random.Random()

    def do(self) -> None:
        """Ask for all that is missing, or until a stop.

        Raises:
            ProviderError: a key, a quota, a budget, or an endpoint that fails.
            RecipeError: the server refuses or ignores a field, or nobody agreed to the price.
            DataError: most of the first answers cannot be used.
        """
        self._recover()
        wire = self._wire()
        try:
            self._begin(wire)
            left = self.answers.missing()
            self.say_reused()
            self._campaign, self._done = self._campaign_of(wire, left), len(self.answers.asks) - len(left)
            if self._all_of(left) and self._ask_longer():
                self._recover()  # what was received and could not be noted as read
                if self.limits.missing == "stop" and (missing := self.answers.missing()):
                    self._refuse_unanswered(missing)
        finally:
            wire.close()

    def _begin(self, wire: Wire) -> None:
        """Do what comes before anything is asked.

        Raises:
            RecipeError: a batch holds some of the requests; asked one by one they would be bought twice.
        """
        batches = Batches(self.journal)
        batches.release()
        count = batches.holding({ask.key for ask in self.answers.asks})
        if count:
            raise RecipeError(
                f"{count} of the requests are in a batch at the provider, whose answers are not here yet.",
                path="generate.engine",
                fix="Run with engine: batch and the endpoint that has it, which takes them in.",
            )

    @property
    def _sending(self) -> Campaign:
        """The campaign, once something is asked."""
        assert self._campaign is not None
        return self._campaign

    def _wire(self) -> Wire:
        teacher = self.request.teacher
        key, headers = teacher.secrets()
        secrets = (key, *headers.values())
        return Wire(teacher.endpoint, teacher.api, secrets, headers, self.limits.timeout, self.request.clock)

    def _campaign_of(self, wire: Wire, left: Sequence[Ask]) -> Campaign:
        request, limits, dice = self.request, self.limits, self._dice
        return Campaign(
            journal=self.journal,
            wire=wire,
            pace=Pace(
                request.workers,
                limits.requests_per_minute,
                limits.tokens_per_minute,
                limits.patience,
                request.clock,
                dice,
            ),
            budget=Budget(limits.budget, self.journal.spent(request.payer, request.teacher.price)),
            breaker=Breaker(self.journal.recent(request.teacher.endpoint, WINDOW, {ask.key for ask in left})),
            teacher=request.teacher,
            payer=request.payer,
            workers=request.workers,
            attempts=limits.attempts,
            timeout=limits.timeout,
            clock=request.clock,
            dice=dice,
            say=request.say,
        )

    def _all_of(self, left: Sequence[Ask]) -> bool:
        """Ask for a few, say what all will cost, and ask for the rest; false where a stop came first."""
        tried = len(self.answers.asks) - len(left)
        first = pilot_of(left) if tried < PILOT else []
        if not self._run(first) or not self._seed_counts(first):
            return False
        if 2 * len(self._sending.unanswered) > len(first):
            self._refuse_unanswered(self._sending.unanswered)
        asked = {id(ask) for ask in first}
        left = [ask for ask in left if id(ask) not in asked]
        if len(self.answers.asks) > PILOT:
            self._bill(len(left))
        return self._rest(left)

    def _rest(self, left: Sequence[Ask]) -> bool:
        """Ask for what is left once the price is agreed to; false where a stop came first."""
        return self._run(left)

    def _ask_longer(self) -> bool:
        """Ask once more, with the larger limit of the recipe, for answers that were cut off; false where a stop came
        first."""
        longer = self.answers.cut_off()
        if not longer:
            return True
        price = self.request.teacher.price
        self.request.say(
            f"{len(longer)} answers were cut off at {self.request.sampling.max_new_tokens} tokens, and are asked for "
            f"once more with up to {longer[0].most}"
        )
        most = None if price is None else self.share * sum(price.cost(ask.tokens, ask.most) for ask in longer)
        spent = self.journal.spent(self.request.payer, price)
        self._agree(len(longer), None if most is None else spent.money + most)
        self._done -= len(longer)  # they were counted as answered
        return self._rest(longer)

    def _run(self, asks: Sequence[Ask]) -> bool:
        return self._sending.run(asks, self._report_now_and_then, self.request.should_stop)

    def _recover(self) -> None:
        """Read what a killed process had received and not read; count what it had sent and not received."""
        unknown, received = self.journal.recover()
        teacher = self.request.teacher
        for unread in received:
            ours = (unread.payer, unread.model) == (self.request.payer, teacher.model)
            outcome = campaign.outcome_of(unread.status, unread.reply)
            state, values = campaign.entry_of(outcome, teacher.price if ours else None)
            self.journal.settle(unread.id, state, **values)
        if unknown:
            self.request.say(
                f"{unknown} requests of a process that was killed have no reply: they may have been billed, and "
                "are asked again"
            )

    def say_reused(self) -> None:
        """Say which answers are there already, and warn of those that another endpoint gave."""
        kept = self.answers.kept()
        if not kept:
            return
        missing = len(self.answers.asks) - len(kept)
        limits = {(ask.index, ask.sample): ask.most for ask in self.answers.asks}
        other = sum(entry.most != limits[place] for place, entry in kept.items())
        elsewhere = sum(entry.endpoint != self.request.teacher.endpoint for entry in kept.values())
        words = f"{len(kept)} answers are in the journal already"
        words += f", {other} of them to the same request with another limit of tokens" if other else ""
        self.request.say(f"{words}; {missing} are asked for")
        if elsewhere:
            self.request.warn(
                f"{elsewhere} of the answers in the journal were given to the same requests by another endpoint"
            )

    def _bill(self, left: int) -> None:
        request, price = self.request, self.request.teacher.price
        # Each reply beside the request that it answers, which may be the one with the larger limit.
        some = [*self.answers.pairs().values()][: 4 * PILOT]
        replies = self.answers.read([entry for _, entry in some])
        tried: list[tuple[Ask, Answer | None]] = [*zip((ask for ask, _ in some), replies, strict=True)]
        tried += [(ask, None) for ask in self._sending.unanswered]
        here = self._sending.answered
        seconds = self._reports.seconds
        spent = self.journal.spent(request.payer, request.teacher.price)
        rate = here / seconds if here else None
        again = {(ask.index, ask.sample): ask for ask in self.answers.cut_off()}
        bill = Bill(tried, left, rate, spent, price, self.answers.rules, self.share, request.judge, again)
        for line in bill.lines():
            request.say(line)
        bill.require_usable()
        if left:
            self._agree(left, bill.projected)

    def _agree(self, left: int, projected: float | None) -> None:
        """Have somebody agree to what is spent in all in the end; None is an unknown price.

        Raises:
            RecipeError: nobody does.
        """
        request, price = self.request, self.request.teacher.price
        if (price is not None and price.free) or (price is None and not request.teacher.paid):
            return
        most = _MOST if projected is None else projected
        if most <= max(self.limits.confirm_above, self.journal.consent(request.payer)):
            return
        words = (
            f"for about {projected:.4g} {price.currency}"
            if price is not None and projected is not None
            else "at an unknown price"
        )
        request.confirm(f"ask for {left} more answers {words}")
        # A projection from a few answers is not exact: going on is not asked for again over a tenth more.
        self.journal.agree(request.payer, min(1.1 * most, _MOST))

    def _seed_counts(self, first: Sequence[Ask]) -> bool:
        """Send an answered request once more where nothing shows yet that the seed counts; false where a stop came
        first.

        Raises:
            RecipeError: the two answers differ, so the server ignores the seed.
        """
        kept = self.answers.kept()
        answered = {place for place, entry in kept.items() if entry.state == "answered"}
        some = [ask for ask in (*first, *self.answers.asks) if (ask.index, ask.sample) in answered][:1]
        if not some or self.answers.seed_proven():
            return True
        (ask,) = some
        entry = kept[ask.index, ask.sample]
        again = replace(ask, key=f"{entry.key}{AGAIN}", family=f"{ask.family}{AGAIN}")
        if not self._run([again]):
            return False
        self._done -= 1  # it is no answer to a prompt
        twins = self.journal.kept(ask.body["model"], {again.family}).get(again.family, [])
        both = self.answers.read([entry, *twins[-1:]])
        texts = {answer.text for answer in both if answer is not None}
        if len(texts) > 1:
            raise RecipeError(
                "the server ignores a field: seed. One request, sent twice with one seed, has two answers.",
                fix="Leave teacher.send_seed out.",
                path="teacher.send_seed",
            )
        return True

    def _refuse_unanswered(self, asks: Sequence[Ask]) -> None:
        """Raises ProviderError: the endpoint failed to answer some requests, however often they were sent."""
        failed, of = len(asks), len(self.answers.asks)
        tried = self.journal.attempts(ask.key for ask in asks)
        reasons = sorted({reason or "a reply that was not read" for _, reason in tried.values()})[:3]
        raise ProviderError(
            f"{failed} of {of} requests have no answer: {'; '.join(reasons)}.",
            fix="See whether the server works (teacher.endpoint) and takes these requests, and run the same command "
            "again: these alone are asked. Or go on without them: "
            "missing: skip (an option of generate.engine).",
        )

    def _report_now_and_then(self) -> None:
        if self._reports.due:
            self.report()

    def report(self) -> None:
        """Say where the answers stand and what they cost."""
        here, before = (
            (self._campaign.answered, self._done) if self._campaign else (0, len(self.answers.kept()))
        )
        self._reports.send(before + here, len(self.answers.asks), here)


def answered(request: TextRequest, journal: Journal, work: Work) -> Iterator[Given]:
    """Ask for what the journal does not hold, then yield every sample of every prompt."""
    answers = work.answers
    try:
        if answers.missing() or answers.cut_off() or not answers.seed_proven():
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
