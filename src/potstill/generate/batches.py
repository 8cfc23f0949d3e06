"""What the journal holds of batches: a batch stands there, with its requests, before anything is submitted.

A batch is `intended` until its id at the provider is known, `submitted` until its files are read, then `joined`.
Its requests are `batched` meanwhile; no other process asks for them, and a killed one leaves them so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.generate.entries import Intent, intend
from potstill.generate.journal import Journal


@dataclass(frozen=True)
class Batch:
    """A batch that is not joined. `file` and `id` are the provider's, "" while they are not known."""

    name: str
    api: str
    payer: str
    file: str = ""
    id: str = ""


@dataclass(frozen=True)
class Reading:
    """What came of a request in a batch: the state and its columns, as `campaign.entry_of` gives them."""

    key: str
    state: str
    reply: bytes
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Batches:
    """The batches of a journal."""

    journal: Journal

    def intend(self, batch: Batch, endpoint: str, intents: Sequence[Intent], now: float) -> None:
        """Commit a batch and its requests before anything of it leaves."""

        def write(db: sqlite3.Connection) -> None:
            row = (batch.name, endpoint, batch.api, batch.payer, "intended", now)
            db.execute(
                "INSERT INTO batches (name, endpoint, api, payer, state, created) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            numbers = [intend(db, intent, now, "batched") for intent in intents]
            db.executemany("INSERT INTO batched VALUES (?, ?)", [(number, batch.name) for number in numbers])

        self.journal.transact(write)

    def note(self, name: str, **values: str) -> None:
        """Commit what the provider calls a batch or its file."""
        names = ", ".join(f"{column} = ?" for column in values)
        self.journal.transact(
            lambda db: db.execute(f"UPDATE batches SET {names} WHERE name = ?", (*values.values(), name))
        )

    def unjoined(self, endpoint: str) -> list[Batch]:
        """The batches of an endpoint whose answers are not read, the oldest first."""

        def read(db: sqlite3.Connection) -> list[Batch]:
            rows = db.execute(
                "SELECT name, api, payer, coalesce(file, ''), coalesce(batch, '') FROM batches "
                "WHERE endpoint = ? AND state != 'joined' ORDER BY created, name",
                (endpoint,),
            )
            return [Batch(*row) for row in rows]

        return self.journal.transact(read)

    def release(self, name: str = "") -> None:
        """Free the requests of a batch that the provider surely does not have; without a name those of all batches
        that were never uploaded, as killed processes leave them. Needs `Journal.alone`."""
        which = "state = 'intended' AND " + ("name = ?" if name else "file IS NULL")

        def write(db: sqlite3.Connection) -> None:
            names = db.execute(f"SELECT name FROM batches WHERE {which}", (name,) if name else ())
            for (one,) in names.fetchall():
                _close(db, one, "never sent", {"tokens_in": 0, "tokens_out": 0, "cost": 0.0})

        self.journal.transact(write)

    def holding(self, keys: Collection[str]) -> int:
        """How many of these requests are in a batch whose answers are not read."""

        def read(db: sqlite3.Connection) -> int:
            return sum(
                key in keys for (key,) in db.execute("SELECT key FROM attempts WHERE state = 'batched'")
            )

        return self.journal.transact(read)

    def bodies(self, name: str) -> dict[str, str]:
        """The requests of a batch by key, as JSON text."""

        def read(db: sqlite3.Connection) -> dict[str, str]:
            return dict(
                db.execute(
                    "SELECT attempts.key, requests.body FROM batched JOIN attempts ON attempts.id = batched.attempt "
                    "JOIN requests USING (key) WHERE batched.batch = ? ORDER BY attempts.id",
                    (name,),
                ).fetchall()
            )

        return self.journal.transact(read)

    def join(self, name: str, readings: Sequence[Reading], without: tuple[str, Mapping[str, Any]]) -> None:
        """Commit what came of a batch; `without` is the reason, and columns, of requests that have no row."""

        def write(db: sqlite3.Connection) -> None:
            place = "key = ? AND state = 'batched' AND id IN (SELECT attempt FROM batched WHERE batch = ?)"
            for one in readings:
                values = {"state": one.state, "reply": one.reply, **one.values}
                names = ", ".join(f"{column} = ?" for column in values)
                db.execute(f"UPDATE attempts SET {names} WHERE {place}", (*values.values(), one.key, name))
            _close(db, name, *without)

        self.journal.transact(write)


def _close(db: sqlite3.Connection, name: str, reason: str, columns: Mapping[str, Any]) -> None:
    """Note that a batch is done with, and why its other requests have no answer."""
    values = {"state": "failed", "reason": reason, **columns}
    names = ", ".join(f"{column} = ?" for column in values)
    db.execute(
        f"UPDATE attempts SET {names} WHERE state = 'batched' AND id IN "
        "(SELECT attempt FROM batched WHERE batch = ?)",
        (*values.values(), name),
    )
    db.execute("UPDATE batches SET state = 'joined' WHERE name = ?", (name,))
