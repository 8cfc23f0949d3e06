"""A provider's batches over the wire: upload, create, look, download; each tried again where it may be."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from potstill.errors import ProviderError
from potstill.generate import faults
from potstill.generate.batch_files import URLS, State
from potstill.generate.batches import Batch
from potstill.generate.faults import Fault
from potstill.generate.limits import Limits
from potstill.generate.pace import backoff
from potstill.generate.served import TextRequest
from potstill.generate.wire import Reply, Wire

ENDED = ("completed", "failed", "expired", "cancelled")
MOST_BYTES = 2**30
NAMES_A_FILE = b"file"


class Stopped(Exception):
    """Raised where nothing more is to be sent or waited for."""


class NotSubmitted(Exception):
    """Raised where the provider surely does not have a batch; holds the error that says why."""

    def __init__(self, error: ProviderError) -> None:
        super().__init__()
        self.error = error


@dataclass
class BatchCalls:
    """Calls to an endpoint that takes batches.

    Every method raises `Stopped` once the request is to stop, and ProviderError where a call is refused or fails
    too often.
    """

    wire: Wire
    request: TextRequest
    limits: Limits
    dice: random.Random
    report: Callable[[], None]

    _said: dict[str, str] = field(default_factory=dict, init=False)
    _waiting: threading.Condition = field(default_factory=threading.Condition, init=False)

    def upload(self, name: str, content: bytes) -> str:
        """Upload requests and return the file's id. A file alone costs nothing.

        Raises:
            NotSubmitted: it could not be uploaded.
        """
        try:
            reply = self._call("files", "create", file=(f"{name}.jsonl", content), purpose="batch")
            return _text(reply, "id")
        except ProviderError as error:
            raise NotSubmitted(error) from error

    def create(self, batch: Batch, window: str) -> str:
        """Create a batch and return its id. A file that was just uploaded may not be known yet: that is tried again;
        where a reply was lost, the batch is looked up before it is created again.

        Raises:
            NotSubmitted: the provider refuses it.
        """
        failed = 0
        while True:
            reply = self._send(
                "batches",
                "create",
                key=batch.name,
                completion_window=window,
                endpoint=URLS[batch.api],
                input_file_id=batch.file,
                metadata={"potstill": batch.name},
            )
            fault = _fault(reply)
            if fault is None:
                return _text(reply, "id")
            failed += 1
            not_known_yet = reply.status in (400, 404) and NAMES_A_FILE in reply.body.lower()
            passing = not_known_yet or fault.action in ("again", "wait")
            try:
                self._again(fault, failed, reply, allowed=passing)
            except ProviderError as error:
                if fault.action == "again":  # it may be there all the same
                    raise
                raise NotSubmitted(error) from error
            if fault.action == "again" and (number := self.find(batch.name)):
                return number

    def find(self, name: str) -> str:
        """The id of the batch with this name in its metadata; "" where the provider has none."""
        after: dict[str, str] = {}
        while True:
            page = _value(self._call("batches", "list", limit=100, **after))
            rows = page.get("data") or []
            for row in rows:
                if (row.get("metadata") or {}).get("potstill") == name:
                    return str(row["id"])
            if not page.get("has_more") or not rows:
                return ""
            after = {"after": rows[-1]["id"]}

    def look(self, batch: Batch) -> State | None:
        """A batch that has ended; None while it goes on."""
        value = _value(self._call("batches", "retrieve", batch_id=batch.id))
        status, counts = str(value.get("status")), value.get("request_counts") or {}
        if self._said.get(batch.name) != status:
            self._said[batch.name] = status
            done = f"{counts.get('completed', 0)} of {counts.get('total', 0)} answered"
            self.request.say(f"batch {batch.id}: {status}, {done}")
        return State(batch, value) if status in ENDED else None

    def file(self, number: str) -> bytes:
        """Download a file."""
        return self._call("files", "content", most=MOST_BYTES, file_id=number).body

    def _call(self, resource: str, method: str, **fields: Any) -> Reply:
        """Call a method that may be called again, until it succeeds.

        Raises:
            ProviderError: it is refused, or failed too often.
        """
        failed = 0
        while True:
            reply = self._send(resource, method, **fields)
            fault = _fault(reply)
            if fault is None:
                return reply
            failed += 1
            self._again(fault, failed, reply, allowed=fault.action in ("again", "wait"))

    def _send(self, resource: str, method: str, **fields: Any) -> Reply:
        if self.request.should_stop():
            raise Stopped
        return self.wire.call(resource, method, **fields)

    def _again(self, fault: Fault, failed: int, reply: Reply, *, allowed: bool) -> None:
        """Wait before another try.

        Raises:
            ProviderError: there is none.
        """
        asked = faults.retry_after(reply.headers, self.request.clock.date())
        if fault.action == "stop" and not allowed:
            raise faults.error_of(fault)
        if not allowed or failed >= self.limits.attempts or (asked or 0.0) > self.limits.patience:
            raise ProviderError(
                f"{fault.reason}: {fault.said or 'no reply'}.",
                path="teacher",
                fix="Everything answered so far is kept, and batches at the provider go on. Run the same command again.",
            )
        self.nap(backoff(failed, self.dice) if asked is None else asked)

    def nap(self, seconds: float) -> None:
        """Wait, and report now and then.

        Raises:
            Stopped: a stop came.
        """
        clock = self.request.clock
        until = clock.now() + seconds
        while not self.request.should_stop() and (left := until - clock.now()) > 0:
            with self._waiting:
                clock.wait(self._waiting, min(left, 0.5))
            self.report()
        if self.request.should_stop():
            raise Stopped


def _fault(reply: Reply) -> Fault | None:
    """What went wrong with a call; None where it succeeded."""
    if reply.fault is not None or reply.status is None:
        return reply.fault or faults.RESET
    return None if 200 <= reply.status < 300 else faults.of_status(reply.status, reply.body)


def _value(reply: Reply) -> Mapping[str, Any]:
    """What a reply says.

    Raises:
        ProviderError: it is no JSON object, so the endpoint keeps no batches.
    """
    try:
        value = json.loads(reply.body)
    except ValueError:
        value = None
    if isinstance(value, Mapping):
        return value
    raise _no_batches("is no JSON object")


def _text(reply: Reply, name: str) -> str:
    """A field of a reply; raises as `_value` where it has none."""
    text = _value(reply).get(name)
    if isinstance(text, str) and text:
        return text
    raise _no_batches(f"has no {name}")


def _no_batches(what: str) -> ProviderError:
    return ProviderError(
        f"the endpoint takes no batches: a reply {what}.",
        path="generate.engine",
        fix="Use engine: openai, which asks one by one.",
    )
