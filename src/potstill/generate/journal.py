"""The journal of a served teacher: every request before it is sent, every reply before it is read.

An sqlite file in the store, shared by its runs. A request is committed as `sent` before it leaves; the reply's raw
bytes are committed as `received` before they are parsed; what was read of them follows as `answered`, `rejected`
or `failed`. A process that is killed leaves `sent` rows, which become `unknown`: they may have been billed.

Commits are grouped: one thread writes, and everything that arrives while it writes goes into the next
transaction. A commit is on disk (`synchronous=FULL`) before its caller goes on. So a kill loses no reply that had
arrived and was kept; a loss of power loses none that was committed, and may lose a reply that waits for its group:
20 milliseconds at most, beside the commit that is under way and its own, as far as the disk keeps what it says it
has written.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from potstill.errors import MachineError
from potstill.generate.entries import SCHEMA, Intent, Kept, Spent, Unread, intend
from potstill.generate.pending import Pending
from potstill.generate.price import Price
from potstill.store.disk import lock

T = TypeVar("T")
KEPT = ("answered", "rejected")  # states of a request that needs no further one

# Where writes come so fast that several gather, commits stand up to SPACING seconds apart, for as long as more
# come within a STEP: each costs the processor more than the writes in it. One that comes alone is committed at once.
SPACING, STEP, FAST = 0.02, 0.004, 400.0  # seconds, seconds, writes a second
CHECKPOINT = 8000  # pages of the write-ahead log, 32 MB, that are copied into the file at a time


class Journal:
    """An open journal. Any thread may call it; one thread of its own writes.

    Raises:
        MachineError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._work: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Pending[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._closed = False
        opened: Pending[None] = Pending()
        self._thread = threading.Thread(target=self._write, args=(opened,), daemon=True, name="journal")
        self._thread.start()
        opened.result()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is waiting, and close the file."""
        self._closed = True
        self._work.put(None)
        self._thread.join()

    def intend(self, intent: Intent, now: float) -> int:
        """Commit a request that is about to be sent, and return its number."""
        return self._do(partial(intend, intent=intent, now=now)).result()

    def keep(self, number: int, reply: bytes, *, status: int | None, request_id: str, seconds: float) -> None:
        """Commit a reply as it came, before anybody reads it."""
        self._do(
            lambda db: db.execute(
                "UPDATE attempts SET state = 'received', reply = ?, status = ?, request_id = ?, seconds = ? "
                "WHERE id = ?",
                (reply, status, request_id, seconds, number),
            )
        ).result()

    def settle(self, number: int, state: str, **values: Any) -> None:
        """Note what was read of a reply; it can be read again, so nobody waits for it."""
        names = ", ".join(f"{name} = ?" for name in ("state", *values))
        self._do(
            lambda db: db.execute(
                f"UPDATE attempts SET {names} WHERE id = ?", (state, *values.values(), number)
            )
        )

    def recover(self) -> tuple[int, list[Unread]]:
        """What processes that were killed left: how many requests have no reply, which become `unknown`, and
        the replies that were never read. Needs `alone`."""

        def write(db: sqlite3.Connection) -> tuple[int, list[Unread]]:
            changed = db.execute("UPDATE attempts SET state = 'unknown' WHERE state = 'sent'").rowcount
            rows = db.execute(
                "SELECT id, payer, model, status, reply FROM attempts WHERE state = 'received'"
            ).fetchall()
            return changed, [Unread(*row) for row in rows]

        return self._do(write).result()

    def kept(self, model: str, families: Iterable[str]) -> dict[str, list[Kept]]:
        """What needs no further request to a model, by family."""
        wanted = set(families)

        def read(db: sqlite3.Connection) -> dict[str, list[Kept]]:
            found: dict[str, list[Kept]] = {}
            rows = db.execute(
                "SELECT id, key, family, state, most, endpoint, coalesce(finish, ''), coalesce(echoed, ''), "
                "tokens_out, coalesce(reason, ''), sent_at, cost FROM attempts WHERE model = ? AND state IN (?, ?) ORDER BY id",
                (model, *KEPT),
            )
            for row in rows:
                if row[2] in wanted:
                    found.setdefault(row[2], []).append(Kept(*row))
            return found

        return self._do(read).result()

    def replies(self, numbers: Iterable[int], portion: int = 64) -> Iterator[bytes]:
        """The raw replies with these numbers, in their order, a portion at a time."""
        numbers = list(numbers)
        for start in range(0, len(numbers), portion):
            some = numbers[start : start + portion]
            rows = self._do(partial(_replies, numbers=some)).result()
            for number in some:
                yield rows[number] or b""

    def attempts(self, keys: Iterable[str]) -> dict[str, tuple[int, str]]:
        """How often each request was sent, and why the last try failed."""
        wanted = set(keys)

        def read(db: sqlite3.Connection) -> dict[str, tuple[int, str]]:
            rows = db.execute(
                "SELECT key, count(*), coalesce(reason, ''), max(id) FROM attempts GROUP BY key"
            )
            return {key: (count, reason) for key, count, reason, _ in rows if key in wanted}

        return self._do(read).result()

    def recent(self, endpoint: str, most: int, without: Iterable[str] = ()) -> list[bool]:
        """Whether the last requests to an endpoint were answered in the end, the oldest first; without these keys."""
        left_out = set(without)

        def read(db: sqlite3.Connection) -> list[bool]:
            ends: dict[str, bool] = {}
            for key, state in db.execute(
                "SELECT key, state FROM attempts WHERE endpoint = ? AND state IN "
                "('answered', 'rejected', 'failed') AND coalesce(status, 0) NOT BETWEEN 400 AND 499 "
                "ORDER BY id DESC",  # those are the prompt's or the pace's fault, not the endpoint's
                (endpoint,),
            ):
                if len(ends) == most:
                    break
                if key not in left_out:
                    ends.setdefault(key, state != "failed")
            return [*reversed(ends.values())]

        return self._do(read).result()

    def spent(self, payer: str, price: Price | None = None) -> Spent:
        """What was sent for a payer so far; what was sent without a price is counted at this one."""
        each_in, each_out = (None, None) if price is None else (price.cost(1, 0), price.cost(0, 1))
        dearest = None if price is None else max(price.cost(1, 0), price.cost(0, 1))

        def read(db: sqlite3.Connection) -> Spent:
            row = db.execute(
                "SELECT count(*), total(coalesce(tokens_in + tokens_out, reserved_tokens)), "
                "total(coalesce(cost, tokens_in * :in + tokens_out * :out, reserved_money, reserved_tokens * :most)), "
                "total(tokens_in), total(tokens_out), total(coalesce(cost, tokens_in * :in + tokens_out * :out)), "
                "total(tokens_in IS NULL AND state != 'batched') FROM attempts WHERE payer = :payer",
                {"payer": payer, "in": each_in, "out": each_out, "most": dearest},
            ).fetchone()
            count, tokens, money, tokens_in, tokens_out, known, unknown = row
            return Spent(count, int(tokens), money, int(tokens_in), int(tokens_out), known, int(unknown))

        return self._do(read).result()

    def consent(self, payer: str) -> float:
        """The most that was agreed to be spent for a payer; 0 for nothing."""
        words = "SELECT money FROM consents WHERE payer = ?"
        row = self.transact(lambda db: db.execute(words, (payer,)).fetchone())
        return row[0] if row else 0.0

    def agree(self, payer: str, money: float) -> None:
        """Note what was agreed to be spent."""
        words = "INSERT OR REPLACE INTO consents VALUES (?, ?)"
        self.transact(lambda db: db.execute(words, (payer, money)))

    @contextmanager
    def alone(self, waiting: Callable[[], None], should_stop: Callable[[], bool]) -> Iterator[bool]:
        """Be the only run that asks: two would buy one answer twice. False where a stop came first.

        `waiting` is called once where another process has the right; it ends with its process.
        """
        with self.path.with_suffix(".lock").open("a") as handle:
            told = False
            while not (free := lock(handle)) and not should_stop():
                if not told:
                    waiting()
                told = True
                time.sleep(0.2)
            yield free

    def transact(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Do something of one's own with the file in a transaction, and return what it gives."""
        return self._do(action).result()

    def _do(self, action: Callable[[sqlite3.Connection], T]) -> Pending[T]:
        done: Pending[T] = Pending()
        if self._closed:
            done.set_exception(MachineError(f"{self.path} is closed."))
        else:
            self._work.put((action, done))
        return done

    def _write(self, opened: Pending[None]) -> None:
        try:
            with self.path.with_suffix(".opening").open("a") as handle:
                while not lock(handle):  # sqlite does not wait where two create a file together
                    time.sleep(0.01)
                db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
                db.executescript(
                    f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; "
                    f"PRAGMA wal_autocheckpoint={CHECKPOINT}; BEGIN IMMEDIATE; {SCHEMA} COMMIT;"
                )
        except sqlite3.Error as error:
            opened.set_exception(self._unusable(error))
            return
        opened.set_result(None)
        with closing(db):
            going, rate, before = True, 0.0, time.monotonic()
            while going:
                group = [self._work.get()]
                if rate > FAST:
                    self._gather(before + SPACING)
                with suppress(queue.Empty):
                    while len(group) < 256:
                        group.append(self._work.get_nowait())
                going = None not in group
                self._commit(db, [item for item in group if item is not None])
                before, since = time.monotonic(), before
                rate = 0.8 * rate + 0.2 * len(group) / max(1e-6, before - since)

    def _gather(self, until: float) -> None:
        """Wait for further writes while they come."""
        waiting = -1
        while (left := until - time.monotonic()) > 0 and self._work.qsize() > waiting:
            waiting = self._work.qsize()
            time.sleep(min(left, STEP))

    def _commit(self, db: sqlite3.Connection, group: list[tuple[Callable[..., Any], Pending[Any]]]) -> None:
        """Do a group's work in one transaction; nobody is told before it is on disk."""
        results: list[tuple[Pending[Any], Any]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            results = [(done, action(db)) for action, done in group]
            db.execute("COMMIT")
        except Exception as error:  # of the action too: its caller must hear of it, not this thread
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            if len(group) > 1:  # one that fails takes no other with it
                for item in group:
                    self._commit(db, [item])
                return
            for _, done in group:
                done.set_exception(self._unusable(error) if isinstance(error, sqlite3.Error) else error)
            return
        for done, result in results:
            done.set_result(result)

    def _unusable(self, error: sqlite3.Error) -> MachineError:
        return MachineError(
            f"the journal {self.path} cannot be used: {error}.",
            fix="Free space or repair the file; it holds answers that were paid for, so keep a copy of it.",
        )


def _replies(db: sqlite3.Connection, numbers: list[int]) -> dict[int, bytes | None]:
    marks = ", ".join("?" * len(numbers))
    return dict(db.execute(f"SELECT id, reply FROM attempts WHERE id IN ({marks})", numbers).fetchall())
