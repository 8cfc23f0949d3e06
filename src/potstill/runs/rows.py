"""Read the rows that a recipe names, and split them by what they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.data import split
from potstill.data.dataset import Dataset, Parts, drop_heldout, with_validation
from potstill.data.mix import GENERATED, Plan
from potstill.data.rows import Row, Rows, read_rows
from potstill.errors import DataError, RecipeError
from potstill.recipe.inputs import DataSpec
from potstill.recipe.recipe import Recipe, resolve_path


@dataclass(frozen=True)
class Columns:
    """The columns that the recipe reads by name beside those of a format: `read`, and those that prompts print."""

    read: Collection[str] = ()
    printed: Collection[str] = ()


NO_COLUMNS = Columns()


def read_data(spec: DataSpec, base: Path, notes: list[str], columns: Columns = NO_COLUMNS) -> Dataset:
    """Read and split the rows: held out by prompt before anything is generated, then a few for validation."""
    rows = read_files(spec, spec.train, base, notes, columns)
    unread = Counter(rows.unread)
    if spec.heldout is not None:
        train = rows.rows
        measured = read_files(spec.model_copy(update={"limit": None}), spec.heldout, base, notes, columns)
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
        parts.train,
        parts.validation,
        tuple(heldout),
        rows.shape,
        rows.funnel,
        source,
        unread=unread,
        columns=spec.columns,
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


def rows_of_stages(
    recipe: Recipe, base: Path, heldout: Sequence[Row], notes: list[str], columns: Columns = NO_COLUMNS
) -> dict[str, Parts]:
    """Read the rows of stages that bring their own; none of them is measured on."""
    parts = {}
    for stage in recipe.stages:
        spec = stage.rows(recipe.data)
        if spec is None:
            continue
        read = read_files(spec, spec.train, base, notes, columns)
        rows = read.rows
        kept = drop_heldout(rows, heldout)
        if len(kept) < len(rows):
            notes.append(
                f"{len(rows) - len(kept)} of {len(rows)} rows of {stage.name} have held-out prompts; "
                "they are left out."
            )
        parts[stage.name] = replace(with_validation(kept, spec.seed), unread=read.unread)
    return parts


def rows_of_mix(
    spec: DataSpec, base: Path, data: Dataset, notes: list[str], columns: Columns = NO_COLUMNS
) -> Dataset:
    """Read the files that are mixed with the rows of `train`; none of their rows is measured on."""
    taken, mixed, unread = {row.id for row in data.everything}, {}, Counter(data.unread)
    for part in spec.mix or ():
        if part.source == GENERATED:
            continue
        own = spec.model_copy(update={"format": part.format, "columns": part.columns, "limit": None})
        read = read_files(own, [part.source], base, notes, columns)
        unread.update(read.unread)
        kept = drop_heldout(read.rows, data.heldout, "data.mix")
        if len(kept) < len(read.rows):
            notes.append(
                f"{len(read.rows) - len(kept)} of {len(read.rows)} rows of {part.source} have held-out prompts; "
                "they are left out."
            )
        apart = drop_heldout(kept, data.validation, "data.mix")
        if len(apart) < len(kept):
            notes.append(
                f"{len(kept) - len(apart)} of {len(kept)} rows of {part.source} have prompts of rows that choose the best "
                "weights; they are left out."
            )
        rows = (replace(row, id=f"{row.id}@{part.source}") if row.id in taken else row for row in apart)
        mixed[part.source] = tuple(rows)
        taken |= {row.id for row in mixed[part.source]}
    if spec.mix and GENERATED not in {part.source for part in spec.mix}:
        notes.append(
            f"mix: only real data is trained on; what the teacher writes is not, since no source is {GENERATED}."
        )
    return replace(data, mixed=mixed, unread=unread)


def mix_of(spec: DataSpec) -> Plan | None:
    """The shares of a recipe's sources; None where it mixes nothing."""
    if spec.mix is None:
        return None
    shares = tuple((part.source, part.share) for part in spec.mix)
    return Plan(shares, spec.mix_by, spec.mix_total, spec.seed)


def require_mixable(recipe: Recipe) -> None:
    """Refuse a mix with the teacher's answers where a stage trains or captures before they are written, or nobody writes
    any."""
    mix = mix_of(recipe.data)
    if mix is None or not mix.generated:
        return
    written = False
    for stage in recipe.stages:
        written = written or "text" in stage.needs
        reads = stage.trains or "live" in stage.needs
        if reads and not written and stage.rows(recipe.data) is None:
            raise RecipeError(
                f"{stage.name} {'trains on' if stage.trains else 'reads'} {GENERATED}, and no stage before it lets the "
                "teacher write.",
                path="data.mix",
                fix=f"Put a generate stage before it, or leave {GENERATED} out.",
            )


def columns_of_stages(recipe: Recipe) -> list[str]:
    """The columns that stages read by name."""
    verifiers = [getattr(stage, "verifier", None) for stage in recipe.stages]
    columns = [verifier.option_named("COLUMN") for verifier in verifiers if verifier is not None]
    further = [column for stage in recipe.stages for column in stage.further_columns]
    return [*(column for column in columns if column is not None), *further]


def read_files(
    spec: DataSpec, names: Sequence[str], base: Path, notes: list[str], columns: Columns = NO_COLUMNS
) -> Rows:
    """Read these files as the recipe's data section says, and note what of them is left out."""
    rows = read_rows(
        [_place(name, base) for name in names],
        format=spec.format,
        columns=spec.columns,
        on_bad_row=spec.on_bad_row,
        limit=spec.limit,
        used=[*([] if spec.weight is None else [spec.weight]), *columns.read],
        printed=columns.printed,
    )
    why = {reason: rows.funnel[reason] for reason in ("duplicate", "empty", "broken")}
    if left_out := sum(why.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in why.items() if count)
        notes.append(f"{', '.join(names)}: {left_out} of {rows.funnel['read']} rows are left out: {reasons}.")
    return rows


def _place(name: str, base: Path) -> str:
    """A file or FOLDER:SPLIT from the recipe's folder; a name that is neither stays, for a hub data set."""
    try:
        path = resolve_path(base, name)
        here = path.exists() or resolve_path(base, name.rpartition(":")[0] or name).is_dir()
    except (OSError, RuntimeError):  # no path at all; reading says so
        return name
    return str(path) if here or path.suffix else name
