"""Tables as files, with columns of types that no row expects."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """Rows as CSV; lists and objects as JSON text, as data tools write them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name) for name in names]
        writer.writerow([json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in cells])
    return out.getvalue().encode("utf-8", "surrogatepass")


def _union(n: int) -> pa.Array:
    types, offsets = pa.array([0, 1] * (n // 2), pa.int8()), pa.array([i // 2 for i in range(n)], pa.int32())
    return pa.UnionArray.from_dense(types, offsets, [pa.array(["w9"] * n), pa.array([1] * n)])


ODD_COLUMNS: dict[str, Callable[[int], Any]] = {
    "bytes": lambda n: pa.array([b"\xff\xfe"] * n),
    "dates": lambda n: pa.array([datetime.date(2020, 1, 1)] * n),
    "late dates": lambda n: pa.array([10**8] * n, pa.int32()).cast(pa.date32()),
    "late times": lambda n: pa.array([2**62] * n).cast(pa.timestamp("us", "UTC")),
    "nanoseconds": lambda n: pa.array([1] * n).cast(pa.timestamp("ns")),
    "unknown zone": lambda n: pa.array([1] * n).cast(pa.timestamp("s", "Nowhere/At_all")),
    "durations": lambda n: pa.array([2**62] * n).cast(pa.duration("s")),
    "decimals": lambda n: pa.array([decimal.Decimal("1.5")] * n),
    "dictionary": lambda n: pa.array(["w9"] * n).dictionary_encode(),
    "map": lambda n: pa.array([[("a", 1), ("a", 2)]] * n, pa.map_(pa.string(), pa.int64())),
    "same names": lambda n: pa.StructArray.from_arrays([pa.array([1] * n), pa.array(["w9"] * n)], ["role", "role"]),
    "nulls": lambda n: pa.nulls(n),
    "floats": lambda n: pa.array([float("nan")] * n),
    "large text": lambda n: pa.array(["w9"] * n, pa.large_string()),
    "text views": lambda n: pa.array(["w9"] * n, pa.string_view()),
    "lists of lists": lambda n: pa.array([[["w9"]]] * n),
    "lists of nulls": lambda n: pa.array([[None]] * n),
    "fixed lists": lambda n: pa.array([["w9", "w8"]] * n, pa.list_(pa.string(), 2)),
    "runs": lambda n: pa.RunEndEncodedArray.from_arrays(pa.array([n], pa.int32()), pa.array(["w9"])),
    "union": _union,
    "broken text": lambda n: pa.Array.from_buffers(pa.string(), n, [None, pa.py_buffer(bytes(4 * (n + 1))), None]),
    "no UTF-8": lambda n: pa.array([b"\xff\xfe"] * n).cast(pa.binary()).view(pa.string()),
}  # fmt: skip


def write(path: Path, rows: Any, whole: Any, dice: random.Random | None) -> str:
    """Write rows as Parquet, Arrow or a saved data set; those that no table holds as the `whole` ones with an odd column."""
    what = ""
    try:
        table = pa.Table.from_pylist(rows)
    except Exception:  # whatever pyarrow says of the mutation
        table = pa.Table.from_pylist(whole)
        what = "no table holds this; "
    if dice and (what or dice.random() < 0.3) and table.num_rows == len(whole):
        name, kind = dice.choice([*table.column_names, "extra", "id"]), dice.choice(list(ODD_COLUMNS))
        try:
            column = ODD_COLUMNS[kind](len(whole))
            table = (
                table.set_column(table.column_names.index(name), name, column)
                if name in table.column_names
                else table.append_column(name, column)
            )
            what += f"{name} holds {kind}; "
        except (pa.ArrowException, ValueError, TypeError) as error:
            what += f"{kind} cannot be made ({error}); "
    try:
        _write(path, table)
    except Exception as error:
        table = pa.Table.from_pylist(whole)
        _write(path, table)
        what += f"cannot be written ({error}); "
    return what


def _write(path: Path, table: pa.Table) -> None:
    if path.name == "saved":
        import datasets

        datasets.Dataset(table).save_to_disk(str(path))
    elif path.suffix == ".parquet":
        pq.write_table(table, path, write_page_checksum=True)
    else:
        sink = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
        with path.open("wb") as handle, sink(handle, table.schema) as writer:
            writer.write_table(table)
