"""Rows that cannot be used: said where they are few, refused where they are many."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from potstill.errors import DataError

log = logging.getLogger("potstill")

SILENT_SHARE = 0.01  # of the rows, that may be left out without a warning
MOST_SHARE = 0.05  # of the rows, that may be left out without the recipe saying so
WAYS_OUT = (
    "Raise data.max_length or shorten these rows, or write data.on_bad_row: skip to go on without them."
)


@dataclass(frozen=True)
class Lost:
    """Rows that are left out, by reason, `of` so many; `about` says which length would keep them."""

    reasons: Mapping[str, int]
    of: int
    about: str = ""

    @property
    def count(self) -> int:
        return sum(self.reasons.values())

    @property
    def many(self) -> bool:
        """Whether they are more than a recipe loses without saying so."""
        return self.count > MOST_SHARE * self.of

    def __str__(self) -> str:
        """How many rows, which share and why."""
        why = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items() if count)
        words = f"{self.count} of {self.of} rows ({self.count / max(1, self.of):.0%}) are left out: {why}"
        return f"{words}; {self.about}" if self.about else words

    def refuse_many(self, on_bad_row: Literal["error", "skip"]) -> None:
        """Refuse a data set of which too much is lost; where the recipe says `skip`, or little is, warn.

        Raises:
            DataError: more than `MOST_SHARE` is lost.
        """
        if self.many and on_bad_row == "error":
            raise DataError(f"{self}.", path="data.max_length", fix=WAYS_OUT)
        if self.count > SILENT_SHARE * self.of:
            log.warning("%s", self)
