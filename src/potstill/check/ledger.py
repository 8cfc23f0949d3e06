"""What becomes of everything that the rows hold: what is rendered, what is scored, what nobody reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from potstill.check.report import Count
from potstill.data.ledger import Account
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.stages._context import Setup


def accounts(setup: Setup, row: Row, *, asked: bool) -> list[Account]:
    """What becomes of each part of a row; nothing for a row that cannot be rendered, which is counted elsewhere.

    `asked` says that the teacher answers the row's prompt.
    """
    reader = setup.readers.of_prompts if asked else setup.readers.student
    try:
        return reader.templater.accounts(row, asked=asked)
    except DataError:
        return []


def counts(setup: Setup, *, asked: bool) -> tuple[Count, ...]:
    """Count the parts of all rows by what they are, and the columns that nobody reads."""
    data = setup.data
    held, rendered, scored = Counter[str](), Counter[str](), Counter[str]()
    for account in _all(setup, data.everything, asked):
        what = account.part.what
        held[what] += 1
        rendered[what] += account.rendered
        scored[what] += account.scored
    unread = [Count(f"column {name}", rows, 0, 0) for name, rows in data.not_read.items()]
    return (*(Count(what, held[what], rendered[what], scored[what]) for what in held), *unread)


def _all(setup: Setup, rows: Iterable[Row], asked: bool) -> Iterator[Account]:
    for row in rows:
        yield from accounts(setup, row, asked=asked)
    for parts in setup.data.of_stages.values():
        for row in parts.train + parts.validation:
            yield from accounts(setup, row, asked=False)


def unread(setup: Setup, row: Row) -> tuple[str, ...]:
    """The row's filled columns that nobody reads."""
    return tuple(name for name in setup.data.not_read if row.extra.get(name) not in (None, "", [], {}))
