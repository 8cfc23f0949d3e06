"""Read the rows that a recipe names, and split them by what they are for."""

from __future__ import annotations

from collections.abc import Sequence
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
    if spec.heldout is not None:
        train = rows.rows
        heldout = read_files(spec.model_copy(update={"limit": None}), spec.heldout, base).rows
        _require_apart(train, heldout)
        source = f"{len(heldout)} rows from {', '.join(spec.heldout)}"
    else:
        fraction = None if spec.heldout_fraction == "auto" else float(spec.heldout_fraction)
        train, heldout = split.split_heldout(rows.rows, fraction=fraction, seed=spec.seed)
        source = f"{len(heldout)} of {len(rows.rows)} rows, split off by prompt"
    parts = with_validation(train, spec.seed)
    return Dataset(parts.train, parts.validation, tuple(heldout), rows.shape, rows.funnel, source)


def _require_apart(train: Sequence[Row], heldout: Sequence[Row]) -> None:
    taken = {row.id: row for row in train}
    shared = [row for row in heldout if row.id in taken]
    if not shared:
        return
    first = shared[0]
    if taken[first.id].prompt_text == first.prompt_text:
        raise DataError(
            f"{len(shared)} held-out rows are training rows too, first {first.id!r}.",
            path="data.heldout",
            fix="Take them out of one of the two files.",
        )
    raise DataError(
        f"{len(shared)} ids stand in training and in held-out rows, first {first.id!r} with two different "
        "prompts.",
        path="data.heldout",
        fix="Give every row an id of its own.",
    )


def rows_of_stages(recipe: Recipe, base: Path, heldout: Sequence[Row], notes: list[str]) -> dict[str, Parts]:
    """Read the rows of stages that bring their own; none of them is measured on."""
    parts = {}
    for stage in recipe.stages:
        spec = stage.rows(recipe.data)
        if spec is None:
            continue
        rows = read_files(spec, spec.train, base).rows
        kept = drop_heldout(rows, heldout)
        if len(kept) < len(rows):
            notes.append(
                f"{len(rows) - len(kept)} of {len(rows)} rows of {stage.name} have held-out prompts; "
                "they are left out."
            )
        parts[stage.name] = with_validation(kept, spec.seed)
    return parts


def read_files(spec: DataSpec, names: Sequence[str], base: Path) -> Rows:
    """Read these files as the recipe's data section says."""
    return read_rows(
        [_place(name, base) for name in names],
        format=spec.format,
        columns=spec.columns,
        on_bad_row=spec.on_bad_row,
        limit=spec.limit,
    )


def _place(name: str, base: Path) -> str:
    """A file from the recipe's folder; a name that is no file stays as it is, for a hub data set."""
    path = resolve_path(base, name)
    return str(path) if path.exists() or Path(name).suffix else name
