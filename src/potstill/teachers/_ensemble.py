"""The teacher that several teachers make together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from potstill.errors import RecipeError, SignalError
from potstill.generate.mixture import Mixture
from potstill.signals import pool
from potstill.signals.ensemble import Combine, Ensemble
from potstill.signals.signal import Signal
from potstill.signals.support import tempered
from potstill.signals.teacher import Teacher
from potstill.signals.text import Text
from potstill.teachers._members import Member, kind_of
from potstill.types import Batch, Example

Weigh = Literal["fixed", "confidence", "gold"]
NO_MASS = -1e4  # nats; a softmax of it beside any other score is 0


class EnsembleTeacher:
    """Asks each teacher in turn and hands over what all of them said, with the weight of each at each token."""

    def __init__(
        self,
        members: Sequence[Member],
        combine: str,
        why: str,
        *,
        weigh: Weigh = "fixed",
        route: str | None = None,
        writes: str = "mixture",
        one_at_a_time: bool = False,
    ) -> None:
        self.members, self.route = tuple(members), route
        self.combine: Combine = combine  # type: ignore[assignment]
        self.average = (combine, why)
        self.weigh: Weigh = weigh
        self.writes, self._one_at_a_time = writes, one_at_a_time
        self.name = " + ".join(member.name for member in members)
        self.kind = kind_of(members, combine)
        self.reads = members[0].teacher.reads
        settings = [combine, weigh, route, writes, [member.identity for member in members]]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.fingerprint = f"ensemble {digest}"
        self.sharded = any(getattr(teacher, "sharded", False) for teacher in self.teachers)
        self.live = all(getattr(teacher, "live", True) for teacher in self.teachers)
        self.batchwise = all(getattr(teacher, "batchwise", True) for teacher in self.teachers)
        self.batch_invariant = all(getattr(teacher, "batch_invariant", False) for teacher in self.teachers)
        lengths = [getattr(teacher, "context_length", None) for teacher in self.teachers]
        self.context_length = min((length for length in lengths if length is not None), default=None)
        writers = self._writers()
        text = {"text"} if writers and all(hasattr(one.teacher, "loaded") for one in writers) else set()
        self.provides = frozenset({self.kind, *text})

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """The teachers themselves."""
        return tuple(member.teacher for member in self.members)

    @property
    def about(self) -> str:
        """Every teacher and how they are put together, in one line."""
        total = sum(member.weight for member in self.members)
        parts = []
        for member in self.members:
            said = [f"weight {member.weight / total:.3g}"]
            if member.temperature != 1.0:
                said.append(f"temperature {member.temperature:g}")
            if self.route is not None:
                said.append(
                    "all other rows" if member.rows is None else f"rows {', '.join(sorted(member.rows))}"
                )
            parts.append(f"{member.name} ({', '.join(said)})")
        how = {"losses": "the sum of their losses"}.get(self.combine, f"the average of {self.combine}")
        how = how.replace("_", "-")
        return f"{len(parts)} teachers: {'; '.join(parts)}; {how}, {self.average[1]}; weights {self.weigh}"

    @property
    def notes(self) -> Iterator[str]:
        """What is worth a line before anything is read."""
        first = self.members[0]
        for other in self.members[1:]:
            if other.teacher.reads.templater.fingerprint != first.teacher.reads.templater.fingerprint:
                yield (
                    f"the chat templates of the teachers {first.name} and {other.name} differ; all are given what "
                    f"that of {first.name} prints."
                )
        if self._one_at_a_time:
            yield "teacher.one_at_a_time loads every teacher anew for every batch; caches of each are read faster."

    @property
    def licence(self) -> str:
        """What each teacher's files say of its licence, "" where none says anything."""
        return self._stated("licence")

    @property
    def terms(self) -> str:
        """What the recipe states of each teacher's terms, "" where it states none."""
        return self._stated("terms")

    def _stated(self, what: str) -> str:
        texts = {member.name: getattr(member.teacher, what, "") for member in self.members}
        if not any(texts.values()):
            return ""
        return "; ".join(f"{name}: {text or 'not stated'}" for name, text in texts.items())

    def require_rows(self, values: Sequence[str]) -> None:
        """Refuse rows that no teacher is asked about, and teachers that are asked about no row.

        Args:
            values: what each row holds in the column `route`.

        Raises:
            RecipeError: names the value with its rows, or the teacher.
        """
        counts = Counter(values)
        for value, count in counts.items():
            if not self._asked(value).any():
                raise RecipeError(
                    f"{count} rows hold {value!r} in the column {self.route!r}, and no teacher is asked about them.",
                    path="teacher.ensemble",
                    fix="Add the value to a teacher's rows, or leave the rows of one teacher out.",
                )
        for number, member in enumerate(self.members):
            if not any(self._asked(value)[number] for value in counts):
                wanted = "the others take all" if member.rows is None else ", ".join(sorted(member.rows))
                raise RecipeError(
                    f"no row is for the teacher {member.name} ({wanted}); the column {self.route!r} holds "
                    f"{', '.join(sorted(counts)[:8])}.",
                    path=f"teacher.ensemble.{number}.rows",
                    fix="Take the teacher out, or repair its rows.",
                )

    def _asked(self, value: str | None) -> Tensor:
        """Which teachers [M] are asked about a row with this value."""
        named = torch.tensor([m.rows is not None and value in m.rows for m in self.members])
        return named if named.any() else torch.tensor([m.rows is None for m in self.members])

    def caches(self, example: Example) -> list[Teacher]:
        """The caches among the teachers that are asked about an example."""
        asked = [True] * len(self.members) if self.route is None else self._asked(example.domain).tolist()
        return [
            teacher
            for teacher, one in zip(self.teachers, asked, strict=True)
            if one and hasattr(teacher, "holds")
        ]

    @torch.no_grad()
    def signal(self, batch: Batch) -> Ensemble:
        """What each teacher says at the scored positions, and the weight of each there."""
        rows = None if self.route is None else self._rows(batch)
        owners = batch.owners()
        asked = None if rows is None else rows[owners]
        signals: list[Signal] = []
        for number, member in enumerate(self.members):
            part = batch if rows is None else batch.rows(rows[:, number])
            signals.append(member.teacher.signal(part) if rows is None or part.count else Text())
            if self._one_at_a_time:
                member.teacher.close()
        return Ensemble(
            kind=self.kind,
            estimated=any(signal.estimated for signal in signals),
            names=tuple(member.name for member in self.members),
            signals=tuple(signals),
            temperatures=tuple(member.temperature for member in self.members),
            combine=self.combine,
            weights=self._weights(batch, signals, asked),
            asked=asked,
        )

    def _rows(self, batch: Batch) -> Tensor:
        """Which teachers are asked about each row, [R, M]; about one without a scored token none."""
        scored = set(batch.owners().tolist())
        rows = []
        for number, name in enumerate(batch.row_ids):
            value = batch.domains[number] if batch.domains else None
            asked = self._asked(value)
            if number not in scored:
                asked = torch.zeros_like(asked)
            elif value is None or not asked.any():
                raise SignalError(
                    f"no teacher is asked about row {name}: it holds {value!r} in the column {self.route!r}.",
                    fix="Fill the column in every row, and name each value in a teacher's rows.",
                )
            rows.append(asked)
        return torch.stack(rows).to(batch.input_ids.device)

    def _weights(self, batch: Batch, signals: Sequence[Signal], asked: Tensor | None) -> Tensor:
        """The weight of each teacher at each position, [N, M], summing to 1."""
        fixed = torch.tensor([member.weight for member in self.members], device=batch.targets.device).log()
        scores = fixed.expand(batch.count, -1).clone()
        device, vocabulary = batch.targets.device, self.reads.vocabulary.size
        for number, (member, signal) in enumerate(zip(self.members, signals, strict=True)):
            here = slice(None) if asked is None else asked[:, number]
            if self.weigh == "confidence" and signal.rows:
                scores[here, number] -= pool.entropies(signal, member.temperature, vocabulary, device)
            elif self.weigh == "gold" and signal.rows:
                targets, hard = batch.targets[here], batch.hard[here]
                lp = pool.log_probabilities(signal, targets, member.temperature, vocabulary, device)
                # Of a stored id without a tail nothing is left for others: such a teacher counts for nothing, and
                # where all of them do, as `fixed` has it.
                scores[here, number] += torch.where(hard, lp.clamp(min=NO_MASS), 0.0)
        if asked is not None:
            scores = scores.masked_fill(~asked, -torch.inf)
        return scores.softmax(-1)

    def writer(self, temperature: float) -> nn.Module:
        """The model that writes answers: one teacher's, or all of them, drawn from together at each token."""
        writers = self._writers()
        if len(writers) == 1:
            model: nn.Module = writers[0].teacher.loaded().model
            return model
        return Mixture(
            [member.teacher.loaded().model for member in writers],
            partial(self._pooled, temperature=temperature or 1.0),
            vocabulary=self.reads.vocabulary.size,
            unused=self.reads.unused_ids,
            temperature=temperature or 1.0,
        )

    @property
    def way_to_text(self) -> str:
        """How a recipe has answers written where this ensemble writes none."""
        names = ", ".join(member.name for member in self.members if hasattr(member.teacher, "loaded"))
        return f"Set teacher.writes to the teacher that writes ({names or 'none has its weights here'})."

    def _writers(self) -> tuple[Member, ...]:
        """Who writes. Where rows have teachers of their own, no mixture of all writes an answer."""
        if self.writes == "mixture":
            return () if self.route is not None else self.members
        named = tuple(member for member in self.members if member.name == self.writes)
        if not named:
            raise RecipeError(
                f"no teacher is called {self.writes!r}.",
                path="teacher.writes",
                fix=f"Write mixture, or one of {', '.join(member.name for member in self.members)}.",
            )
        return named

    def _pooled(self, logits: Sequence[Tensor], *, temperature: float) -> Tensor:
        """What a token is drawn from; no gold token is there to weigh by, so such weights are the fixed ones."""
        weights = torch.tensor([member.weight for member in self.members]).log()
        scores = weights.to(logits[0]).expand(logits[0].shape[0], -1).clone()
        sides = []
        for number, (member, z) in enumerate(zip(self.members, logits, strict=True)):
            if self.weigh == "confidence":
                lp = tempered(z, member.temperature)
                scores[:, number] += torch.special.xlogy(lp.exp(), lp.exp()).sum(-1)
            sides.append(tempered(z, member.temperature * temperature))
        average: pool.Average = (
            "log_probabilities" if self.combine == "log_probabilities" else "probabilities"
        )
        return pool.averaged(sides, scores.softmax(-1), average)

    def heldout(self) -> EnsembleTeacher:
        """The same teachers on the rows to measure on: of each cache its own signals of these."""
        members = [
            replace(member, teacher=member.teacher.heldout())
            if hasattr(member.teacher, "heldout")
            else member
            for member in self.members
        ]
        return EnsembleTeacher(
            members,
            *self.average,
            weigh=self.weigh,
            route=self.route,
            writes=self.writes,
            one_at_a_time=self._one_at_a_time,
        )

    def close(self) -> None:
        """Free the weights of every teacher."""
        for teacher in self.teachers:
            teacher.close()
