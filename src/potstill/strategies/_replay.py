"""Rollouts that are trained on again: those of all processes, the same list in each."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from potstill.devices import ranks
from potstill.types import Example, Reading


@dataclass(frozen=True)
class Held:
    """A rollout and the process that wrote it, where the teacher's signal is kept."""

    example: Example
    owner: int

    @property
    def mine(self) -> bool:
        """Whether this process trains on it; after a resume there may be fewer of them."""
        return self.owner % ranks.world() == ranks.rank()


def held_by_all(rollouts: Sequence[Example]) -> list[Held]:
    """The rollouts of all processes, in an order that does not depend on who wrote which."""
    parts = ranks.gather(list(rollouts))
    held = [Held(example, owner) for owner, part in enumerate(parts) for example in part]
    return sorted(held, key=lambda one: one.example.id)


@dataclass
class Replay:
    """The newest rollouts, oldest first.

    Args:
        size: most rollouts.
        max_age: optimizer steps after which one is dropped; 0 keeps it.
    """

    size: int
    max_age: int = 0
    rows: list[Held] = field(default_factory=list)
    filled: bool = False  # it was full once

    def add(self, rollouts: Sequence[Held]) -> None:
        """Add the newest and drop the oldest."""
        self.rows = [*self.rows, *rollouts][-self.size :]
        self.filled |= len(self.rows) == self.size

    def expire(self, version: int) -> None:
        """Drop what a student of so many steps is too far from."""
        if self.max_age:
            self.rows = [h for h in self.rows if version - (h.example.version or 0) <= self.max_age]

    def draw(self, count: int, chance: random.Random) -> list[Held]:
        """Draw so many of them, each once."""
        return chance.sample(self.rows, count)

    def state(self) -> Mapping[str, Any]:
        return {"rows": stored(self.rows), "filled": self.filled}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rows, self.filled = held(state["rows"]), state["filled"]


def stored(rows: Collection[Held]) -> list[dict[str, Any]]:
    """Rollouts as JSON holds them."""
    return [{**vars(one.example), "reading": _reading(one.example), "owner": one.owner} for one in rows]


def _reading(example: Example) -> dict[str, Any] | None:
    return None if example.reading is None else asdict(example.reading)


def held(rows: Sequence[Mapping[str, Any]]) -> list[Held]:
    """Rollouts from JSON."""
    return [Held(_example({k: v for k, v in row.items() if k != "owner"}), row["owner"]) for row in rows]


def _example(values: Mapping[str, Any]) -> Example:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if values["reading"] is not None:
        values["reading"] = Reading(**{name: tuple(ids) for name, ids in values["reading"].items()})
    return Example(**values)
