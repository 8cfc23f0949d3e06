"""A recipe's rows by what they are for: to train on, to choose the best weights by, to measure on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from potstill.data import split
from potstill.data.rows import Row, Rows, read_rows
from potstill.errors import DataError
from potstill.recipe.inputs import DataSpec
from potstill.recipe.recipe import Recipe, resolve_path
from potstill.recipe.stages import Finetune

VALIDATION_SHARE, VALIDATION_LEAST, VALIDATION_MOST = 0.05, 16, 200


@dataclass(frozen=True)
class Data:
    """The rows by what they are for. Validation rows choose the best weights; held-out rows are only
    ever measured on."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    heldout: tuple[Row, ...]
    shape: str
    funnel: Mapping[str, int]
    source: str
    finetune: Mapping[str, tuple[tuple[Row, ...], tuple[Row, ...]]] = field(default_factory=dict)
    """Rows that a finetune stage brings along, by its name: to train on, and to choose by."""

    @property
    def trained_on(self) -> tuple[Row, ...]:
        """Every row that any stage trains on or chooses by."""
        return sum((train + chosen for train, chosen in self.finetune.values()), self.train + self.validation)

    @property
    def everything(self) -> tuple[Row, ...]:
        return self.train + self.validation + self.heldout


def read_data(spec: DataSpec, base: Path, seed: int) -> Data:
    """Read and split the rows: held out by prompt before anything is generated, then a few for validation."""
    found = read_files(spec, spec.train, base)
    if spec.heldout is not None:
        train = found.rows
        heldout = read_files(spec.model_copy(update={"limit": None}), spec.heldout, base).rows
        taken = {row.id: row for row in train}
        if shared := [row for row in heldout if row.id in taken]:
            first = shared[0]
            same = taken[first.id].prompt_text == first.prompt_text
            raise DataError(
                f"{len(shared)} held-out rows are training rows too, first {first.id!r}."
                if same
                else f"{len(shared)} ids stand in training and in held-out rows, first {first.id!r} "
                "with two different prompts.",
                path="data.heldout",
                fix="Take them out of one of the two files." if same else "Give every row an id of its own.",
            )
        source = f"{len(heldout)} rows from {', '.join(spec.heldout)}"
    else:
        fraction = None if spec.heldout_fraction == "auto" else float(spec.heldout_fraction)
        train, heldout = split.split_heldout(found.rows, fraction=fraction, seed=seed)
        source = f"{len(heldout)} of {len(found.rows)} rows, split off by prompt"
    kept, validation = with_validation(train, seed)
    return Data(tuple(kept), tuple(validation), tuple(heldout), found.shape, found.funnel, source)


def with_validation(rows: Sequence[Row], seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Rows to train on, and a few others that choose the best weights."""
    wanted = max(VALIDATION_LEAST, round(VALIDATION_SHARE * len(rows)))
    wanted = min(wanted, VALIDATION_MOST, len(rows) // 4)
    if not wanted or len({row.prompt_text for row in rows}) < 2:
        return rows, ()
    return split.split_heldout(rows, fraction=wanted / len(rows), seed=seed + 1)


def apart(rows: Sequence[Row], heldout: Sequence[Row]) -> Sequence[Row]:
    """The rows without those whose prompts are held out.

    Raises:
        DataError: none is left.
    """
    held = {split.normal(row.prompt_text) for row in heldout if row.text is None}
    found = [row for row in rows if row.text is not None or split.normal(row.prompt_text) not in held]
    if rows and not found:
        raise DataError(
            f"all {len(rows)} rows have held-out prompts.",
            path="finetune.data",
            fix="Give rows that are not measured on.",
        )
    return found


def weights_of(rows: Sequence[Row], column: str) -> dict[str, float]:
    """The weight of each row, by its id.

    Raises:
        DataError: names a row whose weight is missing or is no number from 0 up.
    """
    weights = {}
    for row in rows:
        value = _number(row.extra.get(column))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise DataError(
                f"the weight in the column {column!r} is {value!r}, not a number from 0 up.",
                path=row.source or row.id,
                fix="Repair the row, or leave data.weight out.",
            )
        weights[row.id] = float(value)
    return weights


def _number(value: object) -> object:
    """Tables of text (csv) write numbers as words."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def finetuning(
    recipe: Recipe, base: Path, heldout: Sequence[Row], notes: list[str]
) -> dict[str, tuple[tuple[Row, ...], tuple[Row, ...]]]:
    """The rows of finetune stages that bring their own, to train on and to choose by; none is measured on."""
    found = {}
    for stage in recipe.stages:
        if not isinstance(stage, Finetune) or stage.data is None:
            continue
        own = {"train": stage.data, "format": stage.format, "columns": stage.columns, "limit": stage.limit}
        spec = recipe.data.model_copy(update=own)
        rows = read_files(spec, spec.train, base).rows
        kept = apart(rows, heldout)
        if len(kept) < len(rows):
            notes.append(
                f"{len(rows) - len(kept)} of {len(rows)} rows of {stage.name} have held-out prompts; "
                "they are left out."
            )
        train, validation = with_validation(kept, recipe.seed)
        found[stage.name] = tuple(train), tuple(validation)
    return found


def read_files(spec: DataSpec, names: Sequence[str], base: Path) -> Rows:
    """The rows of these files, read as the recipe's data section says."""
    return read_rows(
        _places(names, base),
        format=spec.format,
        columns=spec.columns,
        on_bad_row=spec.on_bad_row,
        limit=spec.limit,
    )


def _places(names: Sequence[str], base: Path) -> list[str]:
    """Files from the recipe's folder; a name that is no file stays as it is, for a hub data set."""
    places = []
    for name in names:
        path = resolve_path(base, name)
        places.append(str(path) if path.exists() or Path(name).suffix else name)
    return places
