"""A user's rows, checked one by one, with counts of what was left out or changed."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from potstill.data import habits, shapes
from potstill.data.files import Record, read_files
from potstill.data.row import Row as Row
from potstill.data.row import weight_in
from potstill.data.turns import BadRow
from potstill.errors import DataError

DETECTION_ROWS = 1000  # rows by which the shape is detected
_UNWRITABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_USES = {"an answer": "response", "a context": "context"}
_HELD = ("id", "messages", "text", "tools", "extra")
_READ_LATER = ("family", "unseen")  # an evaluation groups prompts by these
_COUNTS = (
    "read", "blank", "broken", "empty", "duplicate", "kept", "repaired", "same_prompt", "loop", "refusal"
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Rows with counts of the others.

    `funnel`: records read = blank + broken + empty + duplicate + kept. Of the kept ones, `repaired` had
    characters that cannot be written, `same_prompt` answer a prompt of an earlier row, `loop` repeat the
    same words, and `refusal` begin by refusing. `shape` names the format and its columns; `unread` counts
    the rows that fill a column that nobody reads.
    """

    rows: tuple[Row, ...]
    funnel: Mapping[str, int]
    shape: str
    unread: Mapping[str, int] = field(default_factory=dict)


def read_rows(
    paths: Sequence[str],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    limit: int | None = None,
    used: Collection[str] = (),
    printed: Collection[str] = (),
) -> Rows:
    """Read the rows of files or hub data sets, without duplicates.

    Args:
        format: how a row is written, a key of `shapes.COLUMNS`; auto detects it from the first rows.
        columns: the file's column name -> the name in the format.
        on_bad_row: what to do with a broken row; empty ones are always dropped and counted.
        limit: stop after so many good rows.
        used: columns that the recipe reads by name, beside those of the format.
        printed: columns that prompts print; rows with other values there are other rows.

    Raises:
        DataError: a file or row cannot be used, no row is left, or two contents have one id, or a column that nobody reads
            is named like an answer, a context, a picture or a judgement.
    """
    columns = columns or {}
    records = read_files(paths)
    head = list(itertools.islice(records, DETECTION_ROWS))
    first = [record for record in head if record.value is not None]
    _check_columns(columns, first)
    values = [_renamed(record, columns) for record in first]
    shape = shapes.detect(values) if format == "auto" else format
    if shape is None and values:
        raise DataError(
            f"the columns {', '.join(_names(values))} are of no known format.",
            path=first[0].source,
            fix=shapes.naming(_names(values)),
        )
    shape = shape or "messages"
    collector = _Collector(
        shape, columns, strict=on_bad_row == "error", used={*used, *printed}, printed=printed
    )
    for record in itertools.chain(head, records):
        collector.add(record)
        if limit is not None and len(collector.rows) >= limit:
            break
    funnel = {name: collector.funnel[name] for name in _COUNTS}
    if not collector.rows:
        raise DataError(
            f"none of the {funnel['read']} rows can be used. {collector.first_problem}".strip(),
            path=", ".join(paths),
            fix="Repair the first of these rows.",
        )
    described = f"{shape}: {_describe(shape, values)}"
    if collector.unread:
        described += f"; not read: {', '.join(collector.unread)}"
    return Rows(tuple(collector.rows), funnel, described, dict(collector.unread))


class _Collector:
    """The rows read so far, with their ids, contents and prompts."""

    def __init__(
        self,
        shape: str,
        columns: Mapping[str, str],
        strict: bool,
        used: Collection[str],
        printed: Collection[str],
    ) -> None:
        self.rows: list[Row] = []
        self.funnel: Counter[str] = Counter()
        self.first_problem = ""
        self._shape = shape
        self._columns = columns
        self._strict = strict
        self._named = sorted(used)
        self._printed = sorted(printed)
        self._used = {*used, *_READ_LATER}
        self.unread: Counter[str] = Counter()  # rows that fill a column that nobody reads, in their order
        self._first_of: dict[str, tuple[str, Record]] = {}  # id -> content, first row
        self._contents: set[str] = set()
        self._prompts: set[str] = set()

    def add(self, record: Record) -> None:
        self.funnel["read"] += 1
        if record.blank:
            self.funnel["blank"] += 1
            return
        try:
            if record.problem:
                raise BadRow(record.problem)
            read = shapes.convert(self._shape, _renamed(record, self._columns), record.source)
        except BadRow as bad:
            self._reject(record, bad)
            return
        row = replace(read, **{name: _writable(getattr(read, name)) for name in _HELD})
        repaired = row != read
        self._note_unread(row)
        printed = {name: row.extra.get(name) for name in self._printed}
        content = _digest([row.messages, row.text, row.tools, *([printed] if printed else [])])
        row = replace(row, id=row.id or content)
        row = self._with_own_id(row, content, record)
        if content in self._contents:
            self.funnel["duplicate"] += 1
            return
        prompt = _digest(row.prompt_text)
        answers = [message["content"] for message in row.messages if message["role"] == "assistant"]
        self.funnel["kept"] += 1
        self.funnel["repaired"] += repaired
        self.funnel["same_prompt"] += prompt in self._prompts
        self.funnel["loop"] += any(map(habits.loops, answers))
        self.funnel["refusal"] += any(map(habits.refuses, answers))
        self._contents.add(content)
        self._prompts.add(prompt)
        self.rows.append(row)

    def _reject(self, record: Record, bad: BadRow) -> None:
        if self._strict and not bad.empty:
            fix = "Repair the row, or set on_bad_row: skip."
            raise DataError(str(bad), path=record.source, fix=fix) from None
        self.funnel["empty" if bad.empty else "broken"] += 1
        self.first_problem = self.first_problem or f"{record.source}: {bad}"

    def _with_own_id(self, row: Row, content: str, record: Record) -> Row:
        """The row; ids may begin again in each file, and a second row of an id then gets one of its own."""
        first_content, first = self._first_of.setdefault(row.id, (content, record))
        if first_content == content:
            return row
        if first.file != record.file:
            own = replace(row, id=f"{row.id}@{content}")
            self._first_of.setdefault(own.id, (content, record))
            return own
        raise DataError(
            f"the id {row.id!r} stands for another row in {first.source}.",
            path=row.source,
            fix="Make ids unique within the file, or leave the column out in the recipe: "
            "data.columns: {id: unused}; ids are then made from the content.",
        )

    def _note_unread(self, row: Row) -> None:
        """Keep the names of columns that nobody reads, and refuse those whose name says that they matter."""
        for name, meaning in shapes.unread(row, self._used).items():
            if meaning:
                raise self._unread_error(row, name, meaning)
            self.unread[name] += 1

    def _unread_error(self, row: Row, name: str, meaning: str) -> DataError:
        use = _USES.get(meaning)
        ways = [f"data.columns: {{{name}: {shapes.UNUSED}}} to leave it out"]
        if use in shapes.COLUMNS[self._shape]:
            ways.insert(0, f"data.columns: {{{name}: {use}}} to read it")
        elif meaning == "a judgement" and weight_in(row.extra[name]) is not None:
            ways.insert(0, f"data.weight: {name} to weigh rows by it")
        lost = ", ".join(one for one in self._named if one not in row.extra)
        return DataError(
            f"the column {name!r} is not read, and its name says that it holds {meaning}"
            + (f"; the recipe names {lost}, which this row does not have." if lost else "."),
            path=row.source,
            fix=f"Write {', or '.join(ways)}.",
        )


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _renamed(record: Record, columns: Mapping[str, str]) -> dict[str, Any]:
    """Rename columns; a mapped column replaces one that has the name already."""
    value = record.value or {}
    mapped = {columns[name]: item for name, item in value.items() if name in columns}
    return {name: item for name, item in value.items() if name not in columns} | mapped


def _writable(value: Any) -> Any:
    """Replace characters that JSON or UTF-8 cannot hold by U+FFFD."""
    if isinstance(value, str):
        return _UNWRITABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_writable(key): _writable(item) for key, item in value.items()}
    return type(value)(_writable(item) for item in value) if isinstance(value, list | tuple) else value


def _check_columns(columns: Mapping[str, str], records: Sequence[Record]) -> None:
    present = _names(record.value or {} for record in records)
    for name, target in columns.items():
        if target not in shapes.ALL_COLUMNS:
            raise DataError(
                f"{target!r} is no column that potstill reads.",
                path=f"data.columns.{name}",
                fix=f"It reads {', '.join(sorted(shapes.ALL_COLUMNS))}.",
            )
        if present and name not in present:
            near = difflib.get_close_matches(name, present, 1)
            raise DataError(
                f"no row has the column {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."),
                path=f"data.columns.{name}",
                fix=f"The rows have {', '.join(present)}.",
            )


def _names(values: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(values)))


def _describe(shape: str, values: Sequence[Mapping[str, Any]]) -> str:
    """List the columns in use, with the number of first rows that have them."""
    counts = {name: sum(row.get(name) is not None for row in values) for name in shapes.COLUMNS[shape]}
    return " + ".join(
        name if count == len(values) else f"{name} (in {count} of {len(values)})"
        for name, count in counts.items()
        if count
    )
