"""Rows of columnar files: Parquet and Arrow, checked in full before a value is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from potstill.errors import DataError


def rows_of(path: Path, kind: str) -> Iterator[Any]:
    """Read the rows of a table, without the nulls that columnar storage filled in.

    Raises:
        DataError: the file is damaged, or holds a value that Python cannot.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as handle:
            batches: Iterable[Any]
            if kind == ".parquet":
                batches = pq.ParquetFile(handle, page_checksum_verification=True).iter_batches(1024)
            elif handle.peek(6).startswith(b"ARROW1"):
                file = pa.ipc.open_file(handle)
                batches = map(file.get_batch, range(file.num_record_batches))
            else:
                batches = pa.ipc.open_stream(handle)
            for batch in batches:
                # A damaged batch that is read without this check ends the process.
                batch.validate(full=True)
                yield from map(without_nulls, batch.to_pylist())
    except MemoryError:
        raise
    # pyarrow passes on whatever its readers and Python's types raise, SystemError too.
    except Exception as error:
        raise DataError(
            f"is not a readable {kind[1:].title()} file: {reason(error)}.",
            path=str(path),
            fix="Check the file, or write it again.",
        ) from error


def without_nulls(value: Any) -> Any:
    """Remove null fields: columnar storage fills in every field that any other row has."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def reason(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
