"""Read the rows that a recipe names, and split them by what they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from potstill.data import split
from potstill.data.dataset import Dataset, Parts, drop_heldout, with_validation
from potstill.data.rows import Row, Rows, read_rows
from potstill.errors import DataError
from potstill.recipe.inputs import DataSpec
from potstill.recipe.recipe import Recipe, resolve_path


def read_data(spec: DataSpec, base: Path) -> Dataset:
    """Read and split the rows: held out by prompt before anything is generated, then a few for validation."""
    rows = read_files(spec, spec.train, base)
    unread = Counter(rows.unread)
    if spec.heldout is not None:
        train = rows.rows
        measured = read_files(spec.model_copy(update={"limit": None}), spec.heldout, base)
        unread.update(measured.unread)
        heldout = _apart(train, measured.rows)
        source = f"{len(heldout)} rows from {', '.join(spec.heldout)}"
    else:
        fraction = None if spec.heldout_fraction == "auto" else float(spec.heldout_fraction)
        train, heldout = split.split_heldout(rows.rows, fraction=fraction, seed=spec.seed)
        share = len(heldout) / len(rows.rows)
        source = f"{len(heldout)} of {len(rows.rows)} rows ({share:.0%}), split off by prompt"
    parts = with_validation(train, spec.seed)
    return Dataset(
        parts.train, parts.validation, tuple(heldout), rows.shape, rows.funnel, source, unread=unread
    )


def _apart(train: Sequence[Row], heldout: Sequence[Row]) -> tuple[Row, ...]:
    """The held-out rows; ids may begin again in each file, and a held-out row then gets one of its own.

    Raises:
        DataError: a held-out row is a training row too.
    """
    taken = {row.id: row for row in train}
    shared = {row.id for row in heldout if row.id in taken}
    same = [row for row in heldout if row.id in shared and taken[row.id].prompt_text == row.prompt_text]
    if same:
        raise DataError(
            f"{len(same)} held-out rows are training rows too, first {same[0].id!r}.",
            path="data.heldout",
            fix="Take them out of one of the two files.",
        )
    return tuple(replace(row, id=f"{row.id}@heldout") if row.id in shared else row for row in heldout)


def rows_of_stages(recipe: Recipe, base: Path, heldout: Sequence[Row], notes: list[str]) -> dict[str, Parts]:
    """Read the rows of stages that bring their own; none of them is measured on."""
    parts = {}
    for stage in recipe.stages:
        spec = stage.rows(recipe.data)
        if spec is None:
            continue
        read = read_files(spec, spec.train, base)
        rows = read.rows
        kept = drop_heldout(rows, heldout)
        if len(kept) < len(rows):
            notes.append(
                f"{len(rows) - len(kept)} of {len(rows)} rows of {stage.name} have held-out prompts; "
                "they are left out."
            )
        parts[stage.name] = replace(with_validation(kept, spec.seed), unread=read.unread)
    return parts


def read_files(spec: DataSpec, names: Sequence[str], base: Path) -> Rows:
    """Read these files as the recipe's data section says."""
    return read_rows(
        [_place(name, base) for name in names],
        format=spec.format,
        columns=spec.columns,
        on_bad_row=spec.on_bad_row,
        limit=spec.limit,
        used=() if spec.weight is None else (spec.weight,),
    )


def _place(name: str, base: Path) -> str:
    """A file or FOLDER:SPLIT from the recipe's folder; a name that is neither stays, for a hub data set."""
    try:
        path = resolve_path(base, name)
        here = path.exists() or resolve_path(base, name.rpartition(":")[0] or name).is_dir()
    except (OSError, RuntimeError):  # no path at all; reading says so
        return name
    return str(path) if here or path.suffix else name
