"""The files of a batch: requests as a provider takes them, and answers that come back in any order."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from potstill.generate.batches import Batch
from potstill.generate.faults import Fault

URLS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
EXPIRED = Fault("again", "the batch ended before it was answered")
NOT_SENT = Fault("again", "the batch could not send it")
NO_ROW = Fault("again", "the batch's files have no row for it", billed=True)


def content(bodies: Mapping[str, str], api: str) -> bytes:
    """The file of requests that is uploaded, one a line; `bodies` is JSON text by key."""
    head = json.dumps({"method": "POST", "url": URLS[api]})[1:-1]
    lines = [f'{{"custom_id": "{key}", {head}, "body": {body}}}\n' for key, body in bodies.items()]
    return "".join(lines).encode()


BUSY = {"token_limit_exceeded", "rate_limit_exceeded"}  # a batch that fails so can be sent later


@dataclass(frozen=True)
class Row:
    """What a file says of one request: a status with the reply's body, or a fault."""

    body: bytes = b""
    status: int | None = None
    request_id: str = ""
    fault: Fault | None = None


@dataclass
class Joined:
    """The rows of a batch's files by key, and what does not fit: keys named twice, keys that nobody sent, and
    how many lines cannot be read."""

    rows: dict[str, Row] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    broken: int = 0

    @property
    def problem(self) -> str:
        """What does not fit in words; "" where everything does."""
        counts = {
            "name {} requests twice": len(self.twice),
            "name {} requests that were not sent": len(self.unknown),
            "hold {} lines that are no row": self.broken,
        }
        return ", ".join(words.format(count) for words, count in counts.items() if count)


def join(files: Iterable[bytes], keys: Collection[str]) -> Joined:
    """Put the rows of a batch's files to the requests that they answer, whatever their order.

    Of two rows for one request the first that succeeded counts, and the key is named in `twice`.
    """
    joined = Joined()
    for line in (line for file in files for line in file.split(b"\n") if line.strip()):
        try:
            value = json.loads(line.decode("utf-8", "surrogatepass"))
            key, row = value["custom_id"], _row(value)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            joined.broken += 1
            continue
        if key not in keys:
            joined.unknown.add(str(key))
        elif key in joined.rows:
            joined.twice.add(key)
            if joined.rows[key].status != 200 and row.status == 200:
                joined.rows[key] = row
        else:
            joined.rows[key] = row
    return joined


def _row(value: Mapping[str, Any]) -> Row:
    response, error = value.get("response"), value.get("error")
    if response is not None and response.get("status_code") is not None:
        body = json.dumps(response.get("body")).encode()
        return Row(body, int(response["status_code"]), str(response.get("request_id") or ""))
    code = str((error or {}).get("code") or "")
    fault = EXPIRED if code in ("batch_expired", "batch_cancelled") else NOT_SENT
    return Row(json.dumps(value).encode(), fault=fault)


@dataclass(frozen=True)
class State:
    """A batch that has ended, as the provider describes it."""

    batch: Batch
    value: Mapping[str, Any]

    @property
    def _errors(self) -> list[Mapping[str, Any]]:
        return list((self.value.get("errors") or {}).get("data") or [])

    @property
    def words(self) -> str:
        """Why it failed, as the provider says it."""
        said = [f"{error.get('code')}: {error.get('message')}" for error in self._errors]
        return "; ".join(said[:3]) or "the provider does not say why"

    @property
    def fatal(self) -> bool:
        """Whether it failed, and would again."""
        busy = any(error.get("code") in BUSY for error in self._errors)
        return self.value.get("status") == "failed" and not busy

    def without(self) -> Fault:
        """What it means that a request has no row."""
        if self.value.get("status") == "completed":
            return NO_ROW
        return EXPIRED if self.value.get("status") != "failed" else NOT_SENT
