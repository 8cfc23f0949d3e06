"""A user's rows, checked one by one, with counts of what was left out or changed."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.data import chat, habits, shapes
from potstill.data.files import Record, read_files
from potstill.data.shapes import BadRow
from potstill.errors import DataError

DETECTION_ROWS = 1000  # rows by which the shape is detected
QUOTED = 10  # rejected rows whose message is kept
_UNWRITABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_SKIP = "Repair the row, or set on_bad_row: skip."


@dataclass(frozen=True)
class Row:
    """One row: a conversation, or plain text.

    `id` comes from the file, else it is a hash of the content, so that it does not depend on the order of
    rows. `extra` holds the columns that potstill does not read; `source` is file:line.
    """

    id: str
    messages: chat.Messages = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def where(self) -> str:
        """The place to name in messages: file:line, else the id."""
        return self.source or self.id

    @property
    def prompt(self) -> chat.Messages:
        """What a model answers: the conversation without a final assistant turn."""
        return chat.prompt(self.messages)

    @property
    def prompt_text(self) -> str:
        """The text before the assistant's first turn (all of a text row), by which prompts are compared."""
        if self.text is not None:
            return self.text
        return "\n".join(message["content"] for message in chat.opening(self.messages))


@dataclass(frozen=True)
class Rows:
    """Rows with counts of the others.

    `funnel`: records read = blank + broken + empty + duplicate + kept. Of the kept ones, `repaired` had
    characters that cannot be written, `same_prompt` answer a prompt of an earlier row, `loop` repeat the
    same words, and `refusal` begin by refusing.
    `rejected` quotes the first broken and empty rows; `shape` names the format and its columns.
    """

    rows: tuple[Row, ...]
    funnel: Mapping[str, int]
    shape: str
    rejected: tuple[str, ...] = ()


def read_rows(
    paths: Sequence[str],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    limit: int | None = None,
) -> Rows:
    """Read the rows of files or hub data sets, without duplicates.

    Args:
        format: how a row is written, a key of `shapes.REQUIRED`; auto detects it from the first rows.
        columns: the file's column name -> the name in the format.
        on_bad_row: what to do with a broken row; empty ones are always dropped and counted.
        limit: stop after so many good rows.

    Raises:
        DataError: a file or row cannot be used, no row is left, or two contents have one id.
    """
    columns = dict(columns or {})
    records = read_files(paths)
    head = list(itertools.islice(records, DETECTION_ROWS))
    _check_columns(columns, head)
    first = [_renamed(record.value, columns) for record in head if record.value is not None]
    shape = format if format != "auto" else shapes.detect(first)
    if shape is None and first:
        raise _unknown_shape(first, head)
    shape = shape or "messages"
    collector = _Collector(on_bad_row)
    for record in itertools.chain(head, records):
        collector.add(record, shape, columns)
        if limit is not None and len(collector.rows) >= limit:
            break
    return collector.result(f"{shape}: {_describe(shape, first)}", ", ".join(paths))


class _Collector:
    """The rows read so far, with their ids, contents and prompts."""

    def __init__(self, on_bad_row: str) -> None:
        self.rows: list[Row] = []
        self.funnel: Counter[str] = Counter()
        self.rejected: list[str] = []
        self._strict = on_bad_row == "error"
        self._content_of: dict[str, tuple[str, str]] = {}  # id -> content, source
        self._contents: set[str] = set()
        self._prompts: set[str] = set()

    def add(self, record: Record, shape: str, columns: Mapping[str, str]) -> None:
        self.funnel["read"] += 1
        if record.blank:
            self.funnel["blank"] += 1
            return
        try:
            if record.value is None:
                raise BadRow(record.problem)
            value, repaired = _writable(_renamed(record.value, columns))
            content = shapes.convert(shape, value)
        except BadRow as bad:
            self._reject(record, bad)
            return
        digest = _digest([content.messages, content.text, content.tools])
        row_id = _id_of(value) or digest
        self._require_one_content(row_id, digest, record.source)
        if digest in self._contents:
            self.funnel["duplicate"] += 1
            return
        self._contents.add(digest)
        row = Row(row_id, content.messages, content.text, content.tools, content.extra or {}, record.source)
        prompt = _digest(row.prompt_text)
        self.funnel["same_prompt"] += prompt in self._prompts
        self.funnel["repaired"] += repaired
        answers = [m["content"] for m in row.messages if m["role"] == "assistant"]
        self.funnel["loop"] += any(habits.loops(text) for text in answers)
        self.funnel["refusal"] += any(habits.refuses(text) for text in answers)
        self._prompts.add(prompt)
        self.rows.append(row)

    def _reject(self, record: Record, bad: BadRow) -> None:
        if self._strict and not bad.empty:
            raise DataError(str(bad), path=record.source, fix=_SKIP) from None
        self.funnel["empty" if bad.empty else "broken"] += 1
        if len(self.rejected) < QUOTED:
            self.rejected.append(f"{record.source}: {bad}")

    def _require_one_content(self, row_id: str, digest: str, source: str) -> None:
        first_digest, first_source = self._content_of.setdefault(row_id, (digest, source))
        if first_digest != digest:
            raise DataError(
                f"the id {row_id!r} stands for another row in {first_source}.",
                path=source,
                fix="Make ids unique, or remove the id column; ids are then made from the content.",
            )

    def result(self, shape: str, names: str) -> Rows:
        self.funnel["kept"] = len(self.rows)
        dropped = ("read", "blank", "broken", "empty", "duplicate")
        keys = (*dropped, "kept", "repaired", "same_prompt", "loop", "refusal")
        if not self.rows:
            raise DataError(
                f"none of the {self.funnel['read']} rows can be used. {' '.join(self.rejected[:1])}".strip(),
                path=names,
                fix="Repair the first of these rows.",
            )
        return Rows(tuple(self.rows), {k: self.funnel[k] for k in keys}, shape, tuple(self.rejected))


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _id_of(value: Mapping[str, Any]) -> str:
    row_id = value.get("id")
    return str(row_id) if isinstance(row_id, str | int) and not isinstance(row_id, bool) else ""


def _renamed(value: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Rename columns; a mapped column replaces one that has the name already."""
    mapped = {columns[name]: item for name, item in value.items() if name in columns}
    return {name: item for name, item in value.items() if name not in columns} | mapped


def _writable(value: Any) -> tuple[Any, bool]:
    """Replace characters that JSON or UTF-8 cannot hold by U+FFFD; also returns whether there were any."""
    changed = False

    def walk(item: Any) -> Any:
        nonlocal changed
        if isinstance(item, str):
            item, count = _UNWRITABLE.subn("\ufffd", item)
            changed |= count > 0
        elif isinstance(item, dict):
            return {walk(key): walk(part) for key, part in item.items()}
        elif isinstance(item, list):
            return [walk(part) for part in item]
        return item

    return walk(value), changed


def _check_columns(columns: Mapping[str, str], head: Sequence[Record]) -> None:
    present = _names(record.value for record in head if record.value is not None)
    for name, target in columns.items():
        if target not in shapes.KNOWN:
            raise DataError(
                f"{target!r} is no column that potstill reads.",
                path=f"data.columns.{name}",
                fix=f"It reads {', '.join(sorted(shapes.KNOWN))}.",
            )
        if present and name not in present:
            near = difflib.get_close_matches(name, present, 1)
            raise DataError(
                f"no row has the column {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."),
                path=f"data.columns.{name}",
                fix=f"The rows have {', '.join(present)}.",
            )


def _names(values: Iterator[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for value in values for name in value))


def _unknown_shape(values: Sequence[dict[str, Any]], head: Sequence[Record]) -> DataError:
    source = next(record.source for record in head if record.value is not None)
    return DataError(
        f"the columns {', '.join(_names(iter(values)))} are of no known format.",
        path=source,
        fix="Name them in data.columns, for example {question: prompt, answer: response}.",
    )


def _describe(shape: str, values: Sequence[Mapping[str, Any]]) -> str:
    """List the columns in use, with the number of first rows that have them."""
    counts = {name: sum(row.get(name) is not None for row in values) for name in shapes.columns_of(shape)}
    return " + ".join(
        name if count == len(values) else f"{name} (in {count} of {len(values)})"
        for name, count in counts.items()
        if count
    )
