"""A provider of batch files: takes files and batches, and plays a script over what comes back."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any

from builders.endpoint import HANG_UP, Act, Endpoint, Sent, answer, error, serving

Rows = list[dict[str, Any]]


def shuffled(output: Rows, errors: Rows) -> tuple[Rows, Rows]:
    random.Random(0).shuffle(output)
    return output, errors


@dataclass
class Provider:
    """Files and batches on a server.

    Args:
        script: what a request in a batch is answered with, as for single requests.
        shape: changes the rows of output file and error file; shuffles them when not given.
        ends: how batches end, one after the other; `completed` for the rest.
        errors: why the ones that fail do.
        faults: acts to play in place of calls, or behind them (`after`), by the words `POST /files` and the like.
    """

    script: Callable[[Sent, int], Act] = lambda sent, times: answer(f"so {sent.prompt}")
    shape: Callable[[Rows, Rows], tuple[Rows, Rows]] = shuffled
    ends: list[str] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    faults: dict[str, list[Act]] = field(default_factory=dict)
    after: dict[str, list[Act]] = field(default_factory=dict)
    answered: Counter[str] = field(default_factory=Counter)
    calls: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)

    def play(self, method: str, path: str, headers: Any, body: bytes) -> Act:
        path = path.removeprefix("/v1")
        kind = f"{method} /{path.split('?')[0].split('/')[1]}"
        self.calls.append(f"{method} {path}")
        if self.faults.get(kind):
            return self.faults[kind].pop(0)
        act = self._act(kind, path, headers, body)
        return self.after[kind].pop(0) if self.after.get(kind) else act

    def _act(self, kind: str, path: str, headers: Any, body: bytes) -> Act:
        if kind == "POST /files":
            return _json({"id": self._keep(_upload(headers, body)), "object": "file"})
        if kind == "GET /files":
            return Act(body=self.files[path.split("/")[2]])
        if kind == "POST /batches":
            return self._create(json.loads(body))
        if path.startswith("/batches?") or path == "/batches":
            return self._list(path)
        return _json(self._look(path.split("/")[2]))

    def _keep(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def _create(self, wanted: dict[str, Any]) -> Act:
        if wanted["input_file_id"] not in self.files:
            return error(400, "invalid_request", f"cannot find file {wanted['input_file_id']}")
        assert wanted["completion_window"] == "24h"
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {**wanted, "id": name, "object": "batch", "status": "validating"}
        return _json(self.batches[name])

    def _list(self, path: str) -> Act:
        """Pages of two, the newest first."""
        names = [*self.batches][::-1]
        after = re.search("after=([^&]+)", path)
        start = names.index(after[1]) + 1 if after else 0
        page = [self.batches[name] for name in names[start : start + 2]]
        return _json({"object": "list", "data": page, "has_more": start + 2 < len(names)})

    def _look(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress":
            self._end(batch)
        return batch

    def _end(self, batch: dict[str, Any]) -> None:
        batch["status"] = self.ends.pop(0) if self.ends else "completed"
        if batch["status"] == "failed":
            batch["errors"] = {"object": "list", "data": self.errors}
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        half = len(lines) // 2 if batch["status"] == "expired" else len(lines)
        rows = [self._row(line, batch["endpoint"]) for line in lines[:half]]
        late = [
            {"custom_id": line["custom_id"], "response": None, "error": {"code": "batch_expired"}}
            for line in lines[half:]
        ]
        good = [row for row in rows if row["response"]["status_code"] == 200]
        output, errors = self.shape(good, [row for row in rows if row not in good] + late)
        for kind, some in (("output_file_id", output), ("error_file_id", errors)):
            if some:
                batch[kind] = self._keep(b"".join(json.dumps(row).encode() + b"\n" for row in some))
        batch["request_counts"] = {"total": len(lines), "completed": len(output), "failed": len(errors)}

    def _row(self, line: dict[str, Any], endpoint: str) -> dict[str, Any]:
        assert (line["method"], line["url"]) == ("POST", endpoint)
        sent = Sent(line["url"], {}, line["body"])
        act = self.script(sent, self.answered[sent.prompt])
        self.answered[sent.prompt] += 1
        body = json.loads(act.body)
        response = {"status_code": act.status, "request_id": f"r-{sent.prompt}", "body": body}
        return {
            "id": f"row-{sent.prompt}",
            "custom_id": line["custom_id"],
            "response": response,
            "error": None,
        }


def _json(value: Any) -> Act:
    return Act(body=json.dumps(value).encode())


def _upload(headers: Any, body: bytes) -> bytes:
    """The file of a multipart body; its purpose must be batch."""
    kind = next(value for name, value in headers.items() if name.lower() == "content-type")
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    parts = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
    assert parts["purpose"].get_payload(decode=True) == b"batch"
    return parts["file"].get_payload(decode=True)


@contextmanager
def providing(provider: Provider | None = None) -> Iterator[tuple[Provider, Endpoint]]:
    """A provider that answers single requests too."""
    provider = provider or Provider()
    with serving(more=provider.play) as endpoint:
        yield provider, endpoint


LOST = HANG_UP
