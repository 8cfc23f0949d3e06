"""The answers that the journal holds: which replies serve, and what they say. Never asks the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from potstill.data import habits
from potstill.generate import replies
from potstill.generate.asks import Ask, Reuse, chosen, ignored_field
from potstill.generate.entries import Kept
from potstill.generate.journal import Journal
from potstill.generate.replies import Answer, NoAnswer, Rules
from potstill.generate.served import Given

AGAIN = "-again"  # marks the second request of one that is sent twice


@dataclass(frozen=True)
class Answers:
    """What the journal holds of these requests."""

    journal: Journal
    model: str
    asks: Sequence[Ask]
    reuse: Reuse
    rules: Rules

    def kept(self) -> dict[tuple[int, int], Kept]:
        """The replies that need no further request, by prompt and sample."""
        kept = self.journal.kept(self.model, {ask.family for ask in self.asks})
        chosen_ones = (((ask.index, ask.sample), chosen(ask, kept, self.reuse)) for ask in self.asks)
        return {place: entry for place, entry in chosen_ones if entry is not None}

    def missing(self) -> list[Ask]:
        """The requests that must be sent."""
        kept = self.kept()
        return [ask for ask in self.asks if (ask.index, ask.sample) not in kept]

    def read(self, entries: Sequence[Kept]) -> Iterator[Answer | None]:
        """Read replies again from their raw bytes; None for one that is rejected."""
        for entry, reply in zip(entries, self.journal.replies([e.id for e in entries]), strict=True):
            try:
                yield replies.read(reply) if entry.state == "answered" else None
            except NoAnswer:
                yield None

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
        kept = self.kept()
        tried = self.journal.attempts(ask.key for ask in self.asks)
        present = [ask for ask in self.asks if (ask.index, ask.sample) in kept]
        entries = [kept[ask.index, ask.sample] for ask in present]
        seen: dict[int, set[str]] = {}
        for ask, entry, answer in zip(present, entries, self.read(entries), strict=True):
            count, _ = tried.get(ask.key, (0, ""))
            yield self._given(ask, entry, answer, count, seen.setdefault(ask.index, set()))
        for ask in self.asks:
            if (ask.index, ask.sample) not in kept:
                count, reason = tried.get(ask.key, (0, ""))
                yield Given(ask.index, ask.sample, reason=reason or "not asked", attempts=count)

    def _given(self, ask: Ask, entry: Kept, answer: Answer | None, attempts: int, seen: set[str]) -> Given:
        given = Given(ask.index, ask.sample, attempts=attempts, at=entry.sent_at, endpoint=entry.endpoint)
        if answer is None:
            return replace(given, reason=entry.reason or "a reply that cannot be read")
        text, reason = self.rules.text(answer), self.rules.problem(answer)
        if not reason and (ignored := ignored_field(answer, ask)):
            reason = f"the server ignores a field ({ignored})"
        if not reason and text in seen:
            reason = "the same as another answer to its prompt"
        if not reason:
            seen.add(text)
        return replace(
            given,
            text=text,
            finish=answer.finish,
            echoed=answer.echoed,
            reason=reason,
            refuses=habits.refuses(answer.text),
            loops=habits.loops(answer.text),
        )
