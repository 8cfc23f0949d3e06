"""The verbs of what runs keep on disk: `potstill store`, `potstill cache`, and `potstill capture` of a part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from potstill.cli_output import Commands, Json, print_result
from potstill.console import Console

store = typer.Typer(
    cls=Commands, no_args_is_help=True, help="List what runs keep on disk, and free what no run refers to."
)
Runs = Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or a run in it.")]


@store.command("ls")
def store_ls(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """List every artifact: what it is, its size, its age and the runs that refer to it."""
    from potstill.runs import storage

    usage = storage.listing(runs)
    print_result(as_json, storage.listing_dict(usage), storage.listing_text(usage))


@store.command("gc")
def store_gc(
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; without this it is only listed.")] = False,
    as_json: Json = False,
) -> None:
    """Free what no run folder refers to: delete a run's folder first, then this frees its artifacts."""
    from potstill.runs import storage

    freed = storage.free(runs, really=yes)
    print_result(as_json, freed.as_dict(), freed.text())


cache = typer.Typer(
    cls=Commands, no_args_is_help=True, help="List, check and free caches of teacher signals, or import one."
)
CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="A capture's folder, or a cache.")]


@cache.command("ls")
def cache_ls(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """List every capture: what it holds, its size, its age and the runs that refer to it."""
    from potstill.runs import storage

    usage = storage.listing(runs, storage.SIGNALS)
    print_result(as_json, storage.listing_dict(usage), storage.listing_text(usage))


@cache.command("gc")
def cache_gc(
    runs: Runs = Path("runs"),
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete them; without this they are only listed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Free the captures that no run folder refers to, finished or not."""
    from potstill.runs import storage

    freed = storage.free(runs, really=yes, only=storage.SIGNALS)
    print_result(as_json, freed.as_dict(), freed.text())


@cache.command("stats")
def cache_stats(place: CacheFolder, as_json: Json = False) -> None:
    """Say what a cache holds: kind, setting, rows, tokens, bytes, and what was measured of it."""
    from potstill.runs import caches

    values = caches.stats(place)
    print_result(as_json, values, caches.stats_text(values))


@cache.command("verify")
def cache_verify(
    place: CacheFolder,
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="MODEL", help="Ask this teacher about the probe rows again."),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="FORMAT", help="Load the teacher in float32, bfloat16 or float16."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare every byte of a cache with its checksums, and a live teacher with what is stored.

    Exits 4 where something is damaged, or where the teacher is another one."""
    from potstill.runs import caches

    verified = caches.verify(place, teacher, dtype)
    print_result(as_json, verified.as_dict(), verified.text())
    if not verified.passed:
        raise typer.Exit(4)


@cache.command("import")
def cache_import(
    rows: Annotated[
        Path,
        typer.Argument(metavar="ROWS", help="JSON lines or Parquet: ids, top-k ids and log-probabilities."),
    ],
    to: Annotated[Path, typer.Argument(metavar="CACHE", help="The folder to write; it must be new.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="MODEL", help="Whose ids these are: a hub id or a folder.")
    ],
    teacher: Annotated[str, typer.Option(metavar="NAME", help="Whose log-probabilities these are.")],
    as_json: Json = False,
) -> None:
    """Make a cache of somebody else's top-k rows, once ids and positions are proven to fit.

    Rows that do not fit are named in rejected.jsonl; the folder is used as `teacher: {cache: FOLDER}`."""
    from potstill.runs import importing

    done = importing.import_rows(rows, to, tokenizer=tokenizer, teacher=teacher)
    print_result(as_json, done.as_dict(), done.text())


def capture_part(
    recipe: Path, overrides: Sequence[str], shard: str | None, repair: bool, as_json: bool
) -> None:
    """Write a share of a recipe's capture, or repair it.

    Raises:
        BadParameter: both are asked for.
    """
    from potstill.runs import shares

    if shard is None:
        damage, said = shares.repair(recipe, overrides, Console(quiet=as_json))
        print_result(as_json, {"damage": damage, "next": said}, "\n".join([*damage, said]))
        return
    if repair:
        raise typer.BadParameter("a repair reads the whole cache: leave --shard out.")
    share = shares.read_share(shard)
    said = shares.capture_share(recipe, overrides, share, Console(quiet=as_json))
    print_result(as_json, {"share": share[0] + 1, "of": share[1], "next": said}, said)
