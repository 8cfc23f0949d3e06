"""The verbs. Nothing else: each one calls a function that programs can call too."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional, TextIO

import typer
from typer.core import TyperGroup

from potstill import __version__
from potstill.console import Console
from potstill.errors import Interrupted, PotstillError
from potstill.runs.status import machine_error, read_status


class _HungUp(Exception):
    """A pipe broke."""


@contextmanager
def _told_to_main() -> Iterator[None]:
    """An interrupt and a broken pipe, on which Typer would end the process by itself, go on to `main`."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            "interrupted.", fix="Run the same command again.", signal_number=signal.SIGINT
        ) from error
    except BrokenPipeError as error:
        raise _HungUp from error


class _Commands(TyperGroup):
    def make_context(self, *args: Any, **settings: Any) -> Any:
        with _told_to_main():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        with _told_to_main():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distil large language models: teacher in, proven smaller student out.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, or the folder of an earlier run.")
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads this at run time)
    typer.Argument(
        metavar="[key.path=value ...]", help="Values that replace the recipe's: distill.epochs=2."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress stays silent.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"potstill {__version__}")
        raise typer.Exit()


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run all stages; finished ones are skipped.

    A stage is finished when it was made from unchanged inputs. Run the same command again after an
    interruption and it goes on where it stopped."""
    _run(recipe, overrides, as_json, None)


def _stage(verb: str, text: str) -> Callable[..., None]:
    def command(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
        _run(recipe, overrides, as_json, verb)

    command.__doc__ = text
    return app.command(verb)(command)


_stage("generate", "Stop after the last generate stage.")
_stage("distill", "Stop after the last distill stage.")
_stage("finetune", "Stop after the last finetune stage.")
_stage("evaluate", "Stop after the last evaluate stage.")


def _run(recipe: Path, overrides: list[str] | None, as_json: bool, until: str | None) -> None:
    from potstill.runs.run import run as run_recipe

    result = run_recipe(recipe, overrides or (), until=until, console=Console(quiet=as_json))
    if as_json:
        _print_json({"path": str(result.path), "summary": result.summary})
    else:
        print(result.verdict)
        for label, path in result.outputs.items():
            print(f"{label:8} {path}")


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Load no weights: skip the proofs.")] = False,
    as_json: Json = False,
) -> None:
    """Read everything, train nothing.

    Prints every default with its source, the held-out split and three rendered rows, and proves on the
    recipe's own models what a run relies on: gradients, masks, accumulation, saving. Exits 4 on failure.
    """
    from potstill.check import check as check_recipe

    report = check_recipe(recipe, overrides or (), proofs=not quick, console=Console(quiet=as_json))
    if as_json:
        _print_json(report.as_dict())
    else:
        print(report.text())
    if not report.passed:
        raise typer.Exit(4)


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """Write a run's report and summary again; there is no page where nothing was evaluated."""
    from potstill.runs.run import rebuild_report

    result = rebuild_report(run_folder)
    if as_json:
        _print_json({"path": str(result.path), "summary": result.summary})
    else:
        print(result.verdict)
        for name in ("report", "summary"):
            if name in result.outputs:
                print(f"{name:<8} {result.outputs[name]}")


@app.command()
def status(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")],
    wait: Annotated[bool, typer.Option("--wait", help="Return when the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Say where a run stands.

    Of a failed run also why: with --json as `error`, the object that the run itself prints.
    """
    found = read_status(run_folder)
    while wait and found.state == "running":
        time.sleep(2)
        found = read_status(run_folder)
    if as_json:
        _print_json(asdict(found))
    else:
        print(found.text())


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
    if as_json:
        _print_json({"path": str(path)})
    else:
        print(f"wrote {path}; next: potstill check {shlex.quote(str(path))}")


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="The same: the schema is JSON.")] = False,
) -> None:
    """Print the JSON schema of recipes."""
    from potstill.recipe.recipe import json_schema

    _print_json(json_schema())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True, default=str))


class _Said(logging.Handler):
    """What the library logs, as warnings on stderr."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        Console().warn(record.getMessage())


def main(arguments: list[str] | None = None) -> None:
    """Run a command and turn every outcome into an exit code (see `potstill.errors`); 141, as for other
    programs, when the reader of its output has gone."""
    try:
        try:
            _command(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (BrokenPipeError, _HungUp):
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not gone:
            _bug()
        for stream in gone:  # what is left in its buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _has_no_reader(stream: TextIO | None) -> bool:
    if stream is None:
        return False
    pipe = select.poll()
    try:
        pipe.register(stream.fileno(), 0)
    except io.UnsupportedOperation:
        return False
    return any(event & select.POLLERR for _, event in pipe.poll(0))


def _command(arguments: list[str] | None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a C locale must not turn a dash into a crash
            stream.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("potstill")
    if not logger.handlers:
        logger.addHandler(_Said())
    try:
        app(arguments, prog_name="potstill")  # exits by itself; wrong usage with 2
    except PotstillError as error:
        if as_json:
            _print_json({"error": error.as_dict()})
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (BrokenPipeError, _HungUp):
        raise
    except Exception as error:
        told = machine_error(error)
        if told is None:
            _bug()
        if as_json:
            _print_json({"error": told.as_dict()})
        print(f"error: {told}", file=sys.stderr)
        sys.exit(told.exit_code)


def _bug() -> NoReturn:
    traceback.print_exc()
    print(
        f"error: this is a bug in potstill {__version__}; please report it with the lines above.",
        file=sys.stderr,
    )
    sys.exit(1)
