"""A user's rows, checked one by one, with a count of everything that was left out or changed."""

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

from potstill.data import chat, flaws, shapes
from potstill.data.files import Record, read_files
from potstill.data.shapes import BadRow
from potstill.errors import DataError

LOOKED_AT = 1000  # rows from which the shape is told
SHOWN = 10  # rejected rows that are remembered by message
_UNWRITABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_SKIP = "Repair the row, or set on_bad_row: skip."


@dataclass(frozen=True)
class Row:
    """One row: a conversation, or plain text.

    `id` is the file's own, else a hash of the content, so it does not move when rows do.
    `extra` holds the columns potstill does not read; `source` is file:line.
    """

    id: str
    messages: chat.Messages = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def prompt(self) -> chat.Messages:
        """What a model is asked: the conversation without a final assistant turn."""
        return chat.question(self.messages)

    @property
    def prompt_text(self) -> str:
        """The words before the assistant's first turn (all of a text row): what tells prompts apart."""
        if self.text is not None:
            return self.text
        return "\n".join(message["content"] for message in chat.opening(self.messages))


@dataclass(frozen=True)
class Rows:
    """Rows and what became of the others.

    `funnel`: records read = blank + broken + empty + duplicate + kept. Of the kept ones, `repaired` had
    characters that cannot be written, `same_prompt` answer a prompt that an earlier row answers, `loop` say
    the same words over and over, and `refusal` begin by refusing.
    `rejected` quotes the first broken and empty rows; `shape` says how rows were understood.
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
    """The rows of files or hub data sets, duplicates dropped.

    Args:
        format: how a row is written, a key of `shapes.REQUIRED`; auto looks at the first rows.
        columns: own column name -> the name that the format wants.
        on_bad_row: what to do with a broken row; empty ones are always dropped and counted.
        limit: stop after so many good rows.

    Raises:
        DataError: a file or row cannot be used, no row is left, or one id stands for two contents.
    """
    columns = dict(columns or {})
    records = read_files(paths)
    head = list(itertools.islice(records, LOOKED_AT))
    _check_columns(columns, head)
    seen = [_renamed(record.value, columns) for record in head if record.value is not None]
    shape = format if format != "auto" else shapes.detect(seen)
    if shape is None and seen:
        raise _unknown_shape(seen, head)
    shape = shape or "messages"
    collector = _Collector(on_bad_row)
    for record in itertools.chain(head, records):
        collector.add(record, shape, columns)
        if limit is not None and len(collector.rows) >= limit:
            break
    return collector.result(f"{shape}: {_describe(shape, seen)}", ", ".join(paths))


class _Collector:
    """Rows so far, and the ids and contents already seen."""

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
            if self._strict and not bad.empty:
                raise DataError(str(bad), path=record.source, fix=_SKIP) from None
            self.funnel["empty" if bad.empty else "broken"] += 1
            if len(self.rejected) < SHOWN:
                self.rejected.append(f"{record.source}: {bad}")
            return
        digest = _digest([content.messages, content.text, content.tools])
        row_id = _own_id(value) or digest
        known, source = self._content_of.setdefault(row_id, (digest, record.source))
        if known != digest:
            raise DataError(
                f"the id {row_id!r} stands for another row in {source}.",
                path=record.source,
                fix="Make ids unique, or remove the id column; ids are then made from the content.",
            )
        if digest in self._contents:
            self.funnel["duplicate"] += 1
            return
        self._contents.add(digest)
        row = Row(row_id, content.messages, content.text, content.tools, content.extra or {}, record.source)
        prompt = _digest(row.prompt_text)
        self.funnel["same_prompt"] += prompt in self._prompts
        self.funnel["repaired"] += repaired
        said = [m["content"] for m in row.messages if m["role"] == "assistant"]
        self.funnel["loop"] += any(flaws.loops(text) for text in said)
        self.funnel["refusal"] += any(flaws.refuses(text) for text in said)
        self._prompts.add(prompt)
        self.rows.append(row)

    def result(self, shape: str, names: str) -> Rows:
        self.funnel["kept"] = len(self.rows)
        dropped = ("read", "blank", "broken", "empty", "duplicate")
        keys = (*dropped, "kept", "repaired", "same_prompt", "loop", "refusal")
        if not self.rows:
            raise DataError(
                f"none of the {self.funnel['read']} rows can be used. {' '.join(self.rejected[:1])}".strip(),
                path=names,
                fix="Look at the first of them.",
            )
        return Rows(tuple(self.rows), {k: self.funnel[k] for k in keys}, shape, tuple(self.rejected))


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _own_id(value: Mapping[str, Any]) -> str:
    own = value.get("id")
    return str(own) if isinstance(own, str | int) and not isinstance(own, bool) else ""


def _renamed(value: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under the names that potstill reads; a mapped column wins over one that has the name already."""
    mapped = {columns[name]: item for name, item in value.items() if name in columns}
    return {name: item for name, item in value.items() if name not in columns} | mapped


def _writable(value: Any) -> tuple[Any, bool]:
    """The value with U+FFFD for characters that JSON or UTF-8 cannot carry, and whether there were any."""
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
    for own, wanted in columns.items():
        if wanted not in shapes.KNOWN:
            raise DataError(
                f"{wanted!r} is no column that potstill reads.",
                path=f"data.columns.{own}",
                fix=f"Known are {', '.join(sorted(shapes.KNOWN))}.",
            )
        if present and own not in present:
            near = difflib.get_close_matches(own, present, 1)
            raise DataError(
                f"no row has the column {own!r}" + (f"; did you mean {near[0]!r}?" if near else "."),
                path=f"data.columns.{own}",
                fix=f"The rows have {', '.join(present)}.",
            )


def _names(values: Iterator[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for value in values for name in value))


def _unknown_shape(seen: Sequence[dict[str, Any]], head: Sequence[Record]) -> DataError:
    source = next(record.source for record in head if record.value is not None)
    return DataError(
        f"the columns {', '.join(_names(iter(seen)))} are of no known format.",
        path=source,
        fix="Name them in data.columns, for example {question: prompt, answer: response}.",
    )


def _describe(shape: str, seen: Sequence[Mapping[str, Any]]) -> str:
    """The columns in use, with how many of the first rows have them."""
    counts = {name: sum(row.get(name) is not None for row in seen) for name in shapes.columns_of(shape)}
    return " + ".join(
        name if count == len(seen) else f"{name} (in {count} of {len(seen)})"
        for name, count in counts.items()
        if count
    )
