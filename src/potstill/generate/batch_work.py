"""Ask for the rest in batches: files that a provider answers within a day, for less.

The order of things for one batch: its requests are committed to the journal, the file is uploaded, the batch is
created under a name that stands in its metadata, its id is committed, it is polled, its files are downloaded to disk
and joined. A process may be killed between any two of these. The next one goes on from what is committed; where a
batch may have been created and its id is not known, it is looked up by that name first, and never created twice.
"""

from __future__ import annotations

import uuid
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.errors import ProviderError, RecipeError
from potstill.generate import batch_files, campaign, faults
from potstill.generate.asks import Ask, ignored_field
from potstill.generate.batch_calls import BatchCalls, NotSubmitted, Stopped
from potstill.generate.batch_files import Joined, State
from potstill.generate.batches import Batch, Batches, Reading
from potstill.generate.faults import Fault
from potstill.generate.price import Budget, Price, spent_error
from potstill.generate.replies import Answer
from potstill.generate.wire import Wire
from potstill.generate.work import Work
from potstill.store.disk import write_bytes


@dataclass
class BatchWork(Work):
    """Work whose rest is asked for in batches.

    Args:
        price_share: of the price, that a request in a batch costs.
        requests_per_batch: most requests in a file.
        batches_at_once: most batches at the provider.
        poll_seconds: between two looks at a batch.
        window: how long a batch may take, as the provider calls it.
    """

    price_share: float = 1.0
    requests_per_batch: int = 5000
    batches_at_once: int = 4
    poll_seconds: float = 30.0
    window: str = "24h"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.share = self.price_share
        self._batches = Batches(self.journal)

    def _begin(self, wire: Wire) -> None:
        """Take in the batches that earlier processes left at this endpoint, whoever paid for them."""
        self._calls = BatchCalls(wire, self.request, self.limits, self._dice, self._report_now_and_then)
        self._batches.release()
        flying = self._batches.unjoined(self.request.teacher.endpoint)
        if flying:
            self.request.say(f"{len(flying)} batches of an earlier start are taken in first")
        try:
            for batch in flying:
                self._joined(self._until_ended(self._submitted(batch)), {})
        except Stopped:
            return
        super()._begin(wire)

    def _rest(self, left: Sequence[Ask]) -> bool:
        """Ask for these in batches, and again for what a batch did not answer; false where a stop came first."""
        waiting, flying, tries = deque(left), list[Batch](), Counter[str]()
        by_key = {ask.key: ask for ask in left}
        try:
            while waiting or flying:
                while waiting and len(flying) < self.batches_at_once:
                    taken = self._affordable(waiting, alone=not flying)
                    if not taken:
                        break
                    flying.append(self._submitted(self._intended(taken)))
                ended = [state for batch in flying if (state := self._calls.look(batch)) is not None]
                for state in ended:
                    flying.remove(state.batch)
                    for key, fault in self._joined(state, by_key).items():
                        tries[key] += 1
                        most = min(self.limits.attempts, fault.most or self.limits.attempts)
                        again = fault.action != "reject" and tries[key] < most
                        (waiting if again else self._sending.unanswered).append(by_key[key])
                if flying and not ended:
                    self._calls.nap(self.poll_seconds)
        except Stopped:
            if flying:
                self.request.say(
                    f"{len(flying)} batches go on at the provider; the same command takes in their answers"
                )
            return False
        return True

    def _affordable(self, waiting: deque[Ask], *, alone: bool) -> list[Ask]:
        """The next requests that the budget allows, taken from the queue.

        Raises:
            BudgetSpent: it allows none, and no batch will give anything back (`alone`).
        """
        price, taken = self._price, list[Ask]()
        budget = Budget(self.limits.budget, self.journal.spent(self.request.payer, price))
        while waiting and len(taken) < self.requests_per_batch:
            tokens, money = _most(waiting[0], price)
            if lacking := budget.lacking(tokens, money):
                if alone and not taken:
                    raise spent_error(lacking)
                break
            budget.take(tokens, money)
            taken.append(waiting.popleft())
        return taken

    @property
    def _price(self) -> Price | None:
        price: Price | None = self.request.teacher.price
        return None if price is None else price.times(self.price_share)

    def _intended(self, asks: Sequence[Ask]) -> Batch:
        """Commit a batch with its requests; nothing of it has left."""
        teacher, date = self.request.teacher, self.request.clock.date()
        batch = Batch(f"potstill-{uuid.uuid4().hex[:24]}", teacher.api, self.request.payer)
        intents = [self._sending.intent(ask, *_most(ask, self._price)) for ask in asks]
        self._batches.intend(batch, teacher.endpoint, intents, date)
        return batch

    def _submitted(self, batch: Batch) -> Batch:
        """Bring a batch to the provider as far as it is not there, and commit its ids."""
        if batch.id:
            return batch
        number = ""
        try:
            if not batch.file:
                file = batch_files.content(self._batches.bodies(batch.name), batch.api)
                batch = replace(batch, file=self._calls.upload(batch.name, file))
                self._batches.note(batch.name, file=batch.file)
            else:  # an earlier process may have created it
                number = self._calls.find(batch.name)
            batch = replace(batch, id=number or self._calls.create(batch, self.window))
        except NotSubmitted as refused:
            self._batches.release(batch.name)
            raise refused.error from None
        self._batches.note(batch.name, batch=batch.id, state="submitted")
        return batch

    def _until_ended(self, batch: Batch) -> State:
        while (state := self._calls.look(batch)) is None:
            self._calls.nap(self.poll_seconds)
        return state

    def _joined(self, state: State, by_key: Mapping[str, Ask]) -> dict[str, Fault]:
        """Download what an ended batch left, commit it, and return the requests that have no answer, and why.

        Raises:
            ProviderError: the files do not fit what was sent, or nobody is going to answer. What fits is kept.
            RecipeError: the server refuses or ignores a field.
        """
        batch = state.batch
        bodies = self._batches.bodies(batch.name)
        ids = {"output": state.value.get("output_file_id"), "errors": state.value.get("error_file_id")}
        files = [self._file(batch, kind, number) for kind, number in ids.items() if number]
        joined = batch_files.join(files, bodies)
        outcomes = {
            key: campaign.outcome_of(row.status, row.body, row.fault) for key, row in joined.rows.items()
        }
        without = state.without()
        self._batches.join(batch.name, self._readings(batch, joined, outcomes), _columns(without))
        self._count(outcomes)
        self._require_sound(state, joined, outcomes, by_key)
        ends = {key: outcomes.get(key, without) for key in bodies}
        return {key: end for key, end in ends.items() if isinstance(end, Fault) and not end.final}

    def _readings(
        self, batch: Batch, joined: Joined, outcomes: Mapping[str, Answer | Fault]
    ) -> list[Reading]:
        readings = []
        price = self._price if batch.payer == self.request.payer else None  # another has a price of its own
        for key, row in joined.rows.items():
            entry, values = campaign.entry_of(outcomes[key], price)
            values |= {"status": row.status, "request_id": row.request_id}
            readings.append(Reading(key, entry, row.body, values))
        return readings

    def _count(self, outcomes: Mapping[str, Answer | Fault]) -> None:
        if self._campaign is not None:
            ended = [one for one in outcomes.values() if isinstance(one, Answer) or one.final]
            self._campaign.answered += len(ended)
        self._report_now_and_then()

    def _require_sound(
        self,
        state: State,
        joined: Joined,
        outcomes: Mapping[str, Answer | Fault],
        by_key: Mapping[str, Ask],
    ) -> None:
        if joined.problem:
            raise ProviderError(
                f"the files of batch {state.batch.id} {joined.problem}; they lie in {self._folder}.",
                fix="What fits is kept, of requests named twice the first answer. Run the same command again: only what "
                "is missing is asked.",
            )
        if state.fatal:
            raise ProviderError(
                f"batch {state.batch.id} failed: {state.words}.",
                fix="Repair it and run the same command again; nothing that is answered is asked again.",
            )
        for key, outcome in outcomes.items():
            if isinstance(outcome, Fault) and outcome.action in ("stop", "refuse"):
                raise faults.error_of(outcome)
            if (
                isinstance(outcome, Answer)
                and key in by_key
                and (ignored := ignored_field(outcome, by_key[key]))
            ):
                raise RecipeError(
                    f"the server ignores a field: {ignored}.",
                    path="teacher",
                    fix="Leave the field out, or name it as the server does. What it answered is kept.",
                )

    @property
    def _folder(self) -> Path:
        """Where the files of batches are kept as they came."""
        return self.journal.path.parent / "batches"

    def _file(self, batch: Batch, kind: str, number: str) -> bytes:
        """A file of a batch, which is on disk as it came before anybody reads it."""
        place = self._folder / f"{batch.name}.{kind}.jsonl"
        if not place.is_file():
            content = self._calls.file(number)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, content)
        return place.read_bytes()


def _most(ask: Ask, price: Price | None) -> tuple[int, float | None]:
    """The most tokens and money that a request can cost."""
    return ask.bound + ask.most, None if price is None else price.cost(ask.bound, ask.most)


def _columns(fault: Fault) -> tuple[str, dict[str, Any]]:
    return fault.reason, {} if fault.billed else {"tokens_in": 0, "tokens_out": 0, "cost": 0.0}
