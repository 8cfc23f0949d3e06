"""The answers that the journal holds: which replies serve, and what they say. Never asks the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from potstill.generate import replies
from potstill.generate.asks import Ask, Reuse, asks_of, chosen, ignored_field, with_limit
from potstill.generate.entries import Kept
from potstill.generate.journal import Journal
from potstill.generate.replies import Answer, NoAnswer, Rules
from potstill.generate.served import Given, TextRequest

SHOWN_BYTES = 10_000  # of a reply without text, that are kept beside its reason
AGAIN = "-again"  # marks the second request of one that is sent twice


@dataclass(frozen=True)
class Answers:
    """What the journal holds of these requests.

    Args:
        second: the requests that are sent once more where an answer is cut off, by prompt and sample, with a larger
            limit of tokens; none where that is not wanted.
        keep: is given every answer that is used, with its raw reply.
    """

    journal: Journal
    model: str
    asks: Sequence[Ask]
    reuse: Reuse
    rules: Rules
    second: Mapping[tuple[int, int], Ask] = field(default_factory=dict)
    keep: Callable[[Given, bytes], None] | None = None

    def kept(self) -> dict[tuple[int, int], Kept]:
        """The replies that need no further request, by prompt and sample."""
        return {place: entry for place, (_, entry) in self.pairs().items()}

    def pairs(self) -> dict[tuple[int, int], tuple[Ask, Kept]]:
        """The replies, each with the request that it answers: the longer one, where there is one and it was sent."""
        kept = self.journal.kept(self.model, {ask.family for ask in self.asks})
        result = {}
        for ask in self.asks:
            place = (ask.index, ask.sample)
            entry, again = chosen(ask, kept, self.reuse), self.second.get(place)
            longer = None if again is None or not _cut(entry) else chosen(again, kept, self.reuse)
            if again is not None and longer is not None and longer.state == "answered":
                result[place] = (again, longer)
            elif entry is not None:
                result[place] = (ask, entry)
        return result

    def cut_off(self) -> list[Ask]:
        """The longer requests of answers that were cut off, as far as they were not sent."""
        if not self.second:
            return []
        kept = self.journal.kept(self.model, {ask.family for ask in self.asks})
        chosen_ones = self.pairs()
        return [
            again
            for place, again in self.second.items()
            if place in chosen_ones
            and _cut(chosen_ones[place][1])
            and chosen(again, kept, self.reuse) is None
        ]

    def missing(self) -> list[Ask]:
        """The requests that must be sent."""
        kept = self.kept()
        return [ask for ask in self.asks if (ask.index, ask.sample) not in kept]

    def read(self, entries: Sequence[Kept]) -> Iterator[Answer | None]:
        """Read replies again from their raw bytes; None for one that is rejected."""
        return (answer for _, answer in self._read(entries))

    def _read(self, entries: Sequence[Kept]) -> Iterator[tuple[bytes, Answer | None]]:
        for entry, reply in zip(entries, self.journal.replies([e.id for e in entries]), strict=True):
            try:
                yield reply, replies.read(reply) if entry.state == "answered" else None
            except NoAnswer:
                yield reply, None

    def seed_proven(self) -> bool:
        """Whether a request was answered alike when it was sent twice with one seed; true where no seed is sent."""
        if not any("seed" in ask.body for ask in self.asks):
            return True
        families = {ask.family for ask in self.asks}
        kept = self.journal.kept(self.model, families | {f"{family}{AGAIN}" for family in families})
        by_key = {entry.key: entry for entries in kept.values() for entry in entries}
        pairs = [(one, by_key[f"{key}{AGAIN}"]) for key, one in by_key.items() if f"{key}{AGAIN}" in by_key]
        return any(one and other and one.text == other.text for one, other in map(self.read, pairs))

    def given(self) -> Iterator[Given]:
        """Every sample, with the reason why it is not used where it is not; never asks the teacher."""
        kept = self.pairs()
        tried = self.journal.attempts(ask.key for ask in self.asks)
        present = [kept[ask.index, ask.sample][0] for ask in self.asks if (ask.index, ask.sample) in kept]
        entries = [kept[ask.index, ask.sample][1] for ask in present]
        for ask, entry, (reply, answer) in zip(present, entries, self._read(entries), strict=True):
            count, _ = tried.get(ask.key, (0, ""))
            given = self._given(ask, entry, answer, count)
            if given.reason:
                given = replace(given, text=self.rules.received(answer) or _as_it_came(reply))
            elif self.keep is not None:
                self.keep(given, reply)
            yield given
        for ask in self.asks:
            if (ask.index, ask.sample) not in kept:
                count, reason = tried.get(ask.key, (0, ""))
                yield Given(ask.index, ask.sample, reason=reason or "not asked", attempts=count)

    def _given(self, ask: Ask, entry: Kept, answer: Answer | None, attempts: int) -> Given:
        given = Given(ask.index, ask.sample, attempts=attempts, at=entry.sent_at, endpoint=entry.endpoint)
        if answer is None:
            return replace(given, reason=entry.reason or "a reply that cannot be read")
        text, reason = self.rules.text(answer), self.rules.problem(answer)
        if not reason and (ignored := ignored_field(answer, ask)):
            reason = f"the server ignores a field ({ignored})"
        return replace(
            given,
            text=text,
            finish=answer.finish,
            echoed=answer.echoed,
            tokens_in=answer.tokens_in,
            tokens_out=answer.tokens_out,
            cached=answer.cached,
            cost=entry.cost,
            reason=reason,
        )


def answers_of(
    request: TextRequest, journal: Journal, reuse: Reuse, rules: Rules, longer: int | None
) -> Answers:
    """What a journal holds of a request; `longer` is the limit of tokens with which cut-off answers are asked for once
    more."""
    asks, field_ = asks_of(request), request.teacher.limit_field
    second = (
        {} if longer is None else {(ask.index, ask.sample): with_limit(ask, longer, field_) for ask in asks}
    )
    return Answers(journal, request.teacher.model, asks, reuse, rules, second, request.keep)


def _as_it_came(reply: bytes) -> str:
    """The beginning of a reply that holds no text; all of it is in the journal."""
    return reply[:SHOWN_BYTES].decode("utf-8", "replace")


def _cut(entry: Kept | None) -> bool:
    return entry is not None and entry.state == "answered" and entry.finish == "length"
