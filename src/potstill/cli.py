"""The verbs. Nothing else: each one calls a function that programs can call too.

Help opens without torch and pydantic, so commands import what they need when they run.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from potstill import __version__
from potstill.cli_exit import exit_with
from potstill.cli_output import Commands, Json, print_result, terminal_width
from potstill.cli_store import cache, capture_part, store
from potstill.console import Console, typed
from potstill.errors import RecipeError
from potstill.recipe.verbs import verbs
from potstill.runs.status import read_status

if TYPE_CHECKING:
    from potstill.runs.run import RunResult


class _Commands(Commands):
    """The commands; a stage that is typed as one is answered with what runs it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in verbs() and args[0] not in self.commands:
            if "--status" in args:
                run = [arg for arg in args[1:] if not arg.startswith("-")] or ["RUN"]
                raise RecipeError(f"a run's state is shown by `{shlex.join(['potstill', 'status', *run])}`.")
            instead = shlex.join(["potstill", "run", "--until", *(args if args[1:] else [args[0], "RECIPE"])])
            raise RecipeError(f"{args[0]} is a stage, not a command: type `{instead}`.")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distil large language models: teacher in, proven smaller student out.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(store, name="store")
app.add_typer(cache, name="cache")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or the folder of a run.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
_override = typer.Argument(metavar="key.path=value", help="Values to set: distill.epochs=2.")
Overrides = Annotated[Optional[list[str]], _override]  # noqa: UP045  (typer reads this at run time)
_until = typer.Option(metavar="STAGE", help="Stop after the last stage of this name or verb: distill.")
Until = Annotated[Optional[str], _until]  # noqa: UP045
_yes = typer.Option("--yes", help="Agree to what a served teacher costs; without it, you are asked.")
Yes = Annotated[bool, _yes]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print_result(False, None, f"potstill {__version__}")
        raise typer.Exit()


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Until = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Run all stages; finished ones are skipped.

    A stage is finished when it was made from unchanged inputs. Run the same command again after an
    interruption and it goes on where it stopped."""
    from potstill.runs.hints import next_commands
    from potstill.runs.many import launched
    from potstill.runs.run import run as run_recipe

    options = [*(["--until", until] if until else []), *["--yes"] * yes, *["--json"] * as_json]
    if launched(recipe, overrides or (), ["run", str(recipe), *(overrides or ()), *options]):
        return
    result = run_recipe(recipe, overrides or (), until=until, console=Console(quiet=as_json), yes=yes)
    steps = (result.summary.get("train") or {}).get("steps")
    commands = [] if as_json else next_commands(recipe, overrides or (), result.outputs, steps)
    _print_result(result, as_json, result.outputs, commands)


def _print_result(
    result: RunResult, as_json: bool, outputs: Mapping[str, Path], commands: Sequence[str] = ()
) -> None:
    from potstill.runs.hints import words_of

    lines = [
        result.verdict,
        *words_of(result.verdict),
        *(f"{label:8} {path}" for label, path in outputs.items()),
    ]
    lines += ["", "next:", *commands] if commands else []
    print_result(as_json, {"path": str(result.path), "summary": result.summary}, "\n".join(lines))


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Load no weights: skip the proofs.")] = False,
    as_json: Json = False,
) -> None:
    """Read everything, train nothing.

    Prints every setting with its value and source, the held-out split and three rendered rows, and proves on the
    recipe's own models what a run relies on: gradients, masks, accumulation, saving. Exits 4 on failure.
    """
    from potstill.check import check as check_recipe

    report = check_recipe(recipe, overrides or (), proofs=not quick, console=Console(quiet=as_json))
    print_result(as_json, report.as_dict(), report.text(terminal_width()))
    if not report.passed:
        raise typer.Exit(4)


@app.command()
def capture(
    recipe: RecipeFile,
    overrides: Overrides = None,
    shard: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="I/N", help="Write this share of the cache beside other runs: 2/3."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Read every byte of the cache, and ask for damaged blocks again."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the stages up to the recipe's capture; write a share of its cache with --shard, mend it with --repair.

    Shares are written side by side, on machines that see the same folder of runs. When all are done,
    `potstill run` finishes the cache and goes on."""
    if shard is None and not repair:
        run(recipe, overrides, until="capture", as_json=as_json)
    else:
        capture_part(recipe, overrides or (), shard, repair, as_json)


@app.command()
def report(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs.")],
    to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="STEM", help="Of several runs: write STEM.html, STEM.csv and STEM.md."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's report and summary again, or compare several runs.

    There is no page where nothing was evaluated. Several runs are compared in comparison.html, .csv and .md
    beside the first: those whose recipes differ in the seed alone are one column, with mean and interval, and
    every other column has its difference from the first on the same prompts."""
    if len(run_folders) > 1:
        from potstill.report import compare, compare_files

        comparison = compare.compare(run_folders)
        written = compare_files.write(comparison, to or run_folders[0].resolve().parent / compare_files.NAME)
        lines = [*comparison.sentences(), *(f"{kind:8} {path}" for kind, path in written.items())]
        print_result(as_json, comparison.as_dict() | {"outputs": written}, "\n".join(lines))
        return
    if to is not None:
        raise RecipeError("--to is for several runs.", fix="A single run's report stands in its folder.")
    from potstill.runs.run import rebuild_report

    result = rebuild_report(run_folders[0])
    outputs = {name: result.outputs[name] for name in ("report", "summary") if name in result.outputs}
    _print_result(result, as_json, outputs)


@app.command()
def status(
    run_folder: RunFolder,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Say where a run stands.

    Of a failed run also why: with --json as `error`, the object that the run itself prints.
    """
    current = read_status(run_folder)
    while wait and current.state == "running":
        time.sleep(2)
        current = read_status(run_folder)
    print_result(as_json, asdict(current), current.text())


@app.command()
def init(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE")] = Path("recipe.yaml"),
    teacher: Annotated[str, typer.Option(help="The teacher.")] = "HuggingFaceTB/SmolLM2-360M-Instruct",
    student: Annotated[str, typer.Option(help="The student.")] = "HuggingFaceTB/SmolLM2-135M-Instruct",
    train: Annotated[str, typer.Option(help="The training rows.")] = "prompts.jsonl",
    as_json: Json = False,
) -> None:
    """Write a commented recipe to start from."""
    from potstill.recipe.starter import write_recipe

    path = write_recipe(recipe, teacher=teacher, student=student, train=train)
    print_result(
        as_json, {"path": str(path)}, f"wrote {path}; next: {typed()} check {shlex.quote(str(path))}"
    )


@app.command()
def explain(
    path: Annotated[str, typer.Argument(metavar="KEY", help="A path such as distill.temperature.")] = "",
    as_json: Json = False,
) -> None:
    """Say what a key of a recipe takes, its default and an example.

    Also of a section (data, distill), a plug-in (divergences.jsd) or, without a key, of all that there is."""
    from potstill.recipe.reference import explain as entry_of

    entry = entry_of(path)
    print_result(as_json, entry.as_dict(), entry.text(terminal_width()))


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="The same: the schema is JSON.")] = True,
) -> None:
    """Print the JSON schema of recipes."""
    from potstill.recipe.recipe import json_schema

    print_result(as_json, json_schema())


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with the code of its outcome (see `potstill.errors`)."""
    exit_with(app, sys.argv[1:] if arguments is None else arguments)
