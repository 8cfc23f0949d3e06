"""The seam between potstill and any teacher."""

from __future__ import annotations

from typing import Any, Protocol

from potstill.signals.signal import Signal
from potstill.types import Batch


class Teacher(Protocol):
    """A source of signals.

    Attributes:
        name: what people call it.
        fingerprint: identifies the teacher in artifacts' keys.
        provides: the kinds of signal that it gives ("dense", "topk", "sampled", "vector"), and "text" if it writes.
        reads: how it reads text (`potstill.data.reader.Reader`), None for one that takes text as it is.

    A teacher with weights in this process has `loaded()`, its model and tokenizer; one that knows more has
    `layers`, `context_length`, `number_format` (of its stored weights) and `batch_invariant` (a row's answer does
    not depend on its neighbours). One that is a cache has `live` False, and `expect(batches of examples)`, by which it
    reads ahead. One that is asked by a field of the rows has `route`, the field's name, and `require_rows(values)`;
    one that is made of others has `members`, `about` and `notes`, lines for people, and `writer(temperature)`, the
    model that writes its text. One that cannot be asked batch by batch has `batchwise` False, and
    `prepare(examples)`, behind which it answers for these until it is closed.
    """

    name: str
    fingerprint: str
    provides: frozenset[str]
    reads: Any

    def signal(self, batch: Batch) -> Signal:
        """The signal for the N scored positions, in row-major order."""
        ...

    def close(self) -> None:
        """Free its resources; a later call may load them again."""
        ...
