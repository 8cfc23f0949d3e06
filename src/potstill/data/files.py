"""Records of files: JSON lines, JSON, CSV, Parquet, Arrow, and data sets on the hub.

A record is a dict, a blank line, or a problem; nothing is dropped here. `read_files` opens one file at a
time and streams its lines.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from potstill.data import folders, tables
from potstill.data.tables import reason
from potstill.errors import DataError
from potstill.models import hub

_TYPE_NAMES: dict[type, str] = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text",
    list: "a list", tuple: "a list", dict: "an object",
}  # fmt: skip
_PLACE = re.compile(r"(:\d+|, row \d+)$")
_CHECK_PATH = (
    "Check the path; in a recipe it begins at the recipe's folder, else in the folder that you are in."
)
_DEEPEST = 100  # lists and objects within one another
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+){0,2}")


@dataclass(frozen=True)
class Record:
    """One row of a file. Without a value it is blank, or `problem` says what is wrong."""

    source: str  # file:line
    value: dict[str, Any] | None = None
    problem: str = ""

    @property
    def file(self) -> str:
        """The file alone."""
        return _PLACE.sub("", self.source)

    @property
    def blank(self) -> bool:
        return self.value is None and not self.problem


def read_files(paths: Sequence[str], *, keep_nan: bool = False) -> Iterator[Record]:
    """Read every record of every file, in order.

    A folder means the data files in it, FOLDER:SPLIT those of one split. A name without a file is a data set on the
    hub: NAME, NAME:SUBSET or NAME:SUBSET:SPLIT.

    Args:
        keep_nan: NaN and infinities of JSON stay what they are; else they are null, as tables write what is missing.

    Raises:
        DataError: a file is missing, unreadable or without any row.
    """
    for name in paths:
        try:
            files = _expand(name)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"is no path: {reason(error)}.", path=name[:200], fix="Check the path."
            ) from error
        for path in files:
            empty = True
            for record in _hub(name) if path is None else _file(path, keep_nan):
                empty &= record.blank
                yield record
            if empty:
                raise DataError("has no rows.", path=str(path or name), fix="Check how the file was written.")


def _expand(name: str) -> list[Path | None]:
    """List the files that a name means; [None] for a data set on the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return list(folders.files_of(path, name, tuple(_READERS)))
    folder, _, split = name.rpartition(":")
    if folder and split and Path(folder).expanduser().is_dir() and not path.exists():
        return list(folders.files_of(Path(folder).expanduser(), name, tuple(_READERS), split))
    if path.exists():
        return [path]
    if _kind(path) in _READERS or (path.parent.is_dir() and str(path.parent) != "."):
        raise DataError("no such file.", path=name, fix=_CHECK_PATH)
    if not _HUB_NAME.fullmatch(name):
        raise DataError("is neither a file nor the name of a data set.", path=name, fix="Check the path.")
    return [None]


def _kind(path: Path) -> str:
    return folders.kind(path)


def _file(path: Path, keep_nan: bool) -> Iterator[Record]:
    reader = _READERS.get(_kind(path))
    if not path.is_file():
        raise DataError("is no regular file.", path=str(path), fix="Write the rows to a file.")
    if reader is None:
        raise DataError(
            "has a file type that potstill does not read.",
            path=str(path),
            value=path.suffix,
            fix=folders.reads(_READERS),
        )
    try:
        yield from _json(path, keep_nan) if reader is _json else reader(path)
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise DataError(f"cannot be read: {error}", path=str(path), fix="Check the file.") from error


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file's bytes, decompressed and without a byte-order mark."""
    opener: Callable[..., IO[bytes]] = gzip.open if path.suffix == ".gz" else open  # type: ignore[assignment]
    with opener(path, "rb") as handle:
        start = handle.read(3)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError("is encoded as UTF-16.", path=str(path), fix="Save it as UTF-8.")
        handle.seek(len(codecs.BOM_UTF8) if start == codecs.BOM_UTF8 else 0)
        yield handle


def parse_json(text: str, *, keep_nan: bool = False) -> Any:
    """Parse JSON; NaN and infinities become null, since tables write missing values so, or stay what they are.

    Raises:
        ValueError: the text is not JSON; says where.
    """
    try:
        value = json.loads(text, parse_constant=float if keep_nan else lambda _: None)
    except RecursionError:
        value = None
    else:
        if text.count("[") + text.count("{") <= _DEEPEST or not _deep(value):
            return value
    raise ValueError("it is nested too deeply")


def _deep(value: Any) -> bool:
    """Whether lists and objects stand in one another more than `_DEEPEST` times."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for inner in level for item in _items(inner)]
    return bool(level)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _json(path: Path, keep_nan: bool = False) -> Iterator[Record]:
    with _open(path) as handle:
        start = handle.read(4096).lstrip()[:1]
    if start != b"[" and _kind(path) != ".json":
        yield from _json_lines(path, keep_nan)
        return
    with _open(path) as handle:
        text = handle.read().decode("utf-8")
    if not text.strip():
        return
    try:
        value = parse_json(text, keep_nan=keep_nan)
    except ValueError as error:
        if start == b"{" and str(error).startswith("Extra data"):
            yield from _json_lines(path, keep_nan)
            return
        raise DataError(f"is not valid JSON: {error}.", path=str(path), fix="Repair the file.") from error
    # {"data": [rows]} is how some tools wrap a list.
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        (value,) = value.values()
    yield from _numbered(str(path), value if isinstance(value, list) else [value])


def _json_lines(path: Path, keep_nan: bool) -> Iterator[Record]:
    with _open(path) as handle:
        # Bytes are split at line feeds only: text may hold U+2028 and similar separators.
        for number, line in enumerate(handle, 1):
            source = f"{path}:{number}"
            if not line.strip():
                yield Record(source)
                continue
            try:
                yield _record(source, parse_json(line.rstrip(b"\r\n").decode("utf-8"), keep_nan=keep_nan))
            except UnicodeDecodeError as error:
                yield Record(source, problem=f"the line is not UTF-8 at byte {error.start}.")
            except ValueError as error:
                yield Record(source, problem=f"the line is not valid JSON: {_fault(error)}.")


def _record(source: str, value: Any) -> Record:
    if isinstance(value, dict):
        return Record(source, value)
    return Record(source, problem=f"a row must be an object with named fields, not {describe(value)}.")


def _fault(error: ValueError) -> str:
    """What is wrong with a line and where; the JSON module counts the line itself as a first one."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)


def describe(value: object) -> str:
    """Name a value's type in JSON's terms."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def _csv(path: Path) -> Iterator[Record]:
    # The limit is the module's, not the reader's; answers are longer than its default of 128 KiB.
    csv.field_size_limit(2**31 - 1)
    with _open(path) as handle, io.TextIOWrapper(handle, encoding="utf-8", newline="") as text:
        reader = csv.DictReader(text, delimiter="\t" if _kind(path) == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                source = f"{path}:{reader.line_num}"
                if None in row:
                    yield Record(source, problem="the line has more fields than the header.")
                else:
                    # CSV cannot tell an empty text from a missing one.
                    yield Record(source, {name: value or None for name, value in row.items()})
        except csv.Error as error:
            yield Record(f"{path}:{reader.line_num}", problem=f"the line is not valid CSV: {error}.")


def _table(path: Path) -> Iterator[Record]:
    yield from _numbered(str(path), tables.rows_of(path, _kind(path)))


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        yield _record(f"{name}, row {number}", row)


def _hub(name: str) -> Iterator[Record]:
    import datasets

    dataset_name, subset, split = (*name.split(":"), "", "")[:3]
    unreachable = ""
    try:
        with hub.within_reach() as unreachable:
            dataset = datasets.load_dataset(dataset_name, subset or None, split=split or None)
    # datasets passes on whatever its network, file and script layers raise.
    except Exception as error:
        why = f"the hub cannot be reached ({unreachable})" if unreachable else reason(error)
        if datasets.config.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set"
        raise DataError(
            f"is no file here, and the hub's data set cannot be loaded: {why}.",
            path=name,
            fix="Name a file that exists, or a data set this machine can reach as NAME:SUBSET:SPLIT.",
        ) from error
    if isinstance(dataset, dict):
        if "train" not in dataset and len(dataset) != 1:
            raise DataError(
                f"has the splits {', '.join(dataset)}.",
                path=name,
                fix="Write NAME:SUBSET:SPLIT to choose one.",
            )
        dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
    try:
        yield from _numbered(name, map(tables.without_nulls, map(dict, dataset)))
    except MemoryError:
        raise
    except Exception as error:
        fix = "Load it again, or save its rows to a file."
        raise DataError(f"has a row that cannot be read: {reason(error)}.", path=name, fix=fix) from error


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _table,
    ".arrow": _table,
}
