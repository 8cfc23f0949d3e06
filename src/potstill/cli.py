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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from potstill import __version__
from potstill.console import Console
from potstill.errors import Interrupted, PotstillError
from potstill.runs.status import machine_error, read_status

if TYPE_CHECKING:
    from potstill.runs.run import RunResult

_UsageError: Any = typer.BadParameter.__base__  # Typer has no other public name for it

app = typer.Typer(
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
    _run(recipe, overrides, as_json)


def _stage(verb: str) -> None:
    @app.command(verb, help=f"Stop after the last {verb} stage.")
    def command(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
        _run(recipe, overrides, as_json, until=verb)


for _verb in ("generate", "distill", "finetune", "evaluate"):
    _stage(_verb)


def _run(recipe: Path, overrides: list[str] | None, as_json: bool, until: str | None = None) -> None:
    from potstill.runs.run import run as run_recipe

    result = run_recipe(recipe, overrides or (), until=until, console=Console(quiet=as_json))
    _print_result(result, as_json, result.outputs)


def _print_result(result: RunResult, as_json: bool, outputs: Mapping[str, Path]) -> None:
    lines = [result.verdict, *(f"{label:8} {path}" for label, path in outputs.items())]
    _print(as_json, {"path": str(result.path), "summary": result.summary}, "\n".join(lines))


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
    _print(as_json, report.as_dict(), report.text())
    if not report.passed:
        raise typer.Exit(4)


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """Write a run's report and summary again; there is no page where nothing was evaluated."""
    from potstill.runs.run import rebuild_report

    result = rebuild_report(run_folder)
    outputs = {name: result.outputs[name] for name in ("report", "summary") if name in result.outputs}
    _print_result(result, as_json, outputs)


@app.command()
def status(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")],
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
    _print(as_json, asdict(current), current.text())


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
    _print(as_json, {"path": str(path)}, f"wrote {path}; next: potstill check {shlex.quote(str(path))}")


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="The same: the schema is JSON.")] = False,
) -> None:
    """Print the JSON schema of recipes."""
    from potstill.recipe.recipe import json_schema

    _print(True, json_schema())


def _print(as_json: bool, value: Any, text: str = "") -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True, default=str) if as_json else text)


class _WarningLines(logging.Handler):
    """Prints what the library logs as warnings on stderr."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        Console().warn(record.getMessage())


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with the code of its outcome (see `potstill.errors`)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a C locale must not turn a dash into a crash
            stream.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("potstill")
    if not logger.handlers:
        logger.addHandler(_WarningLines())
    try:
        code = _exit_code(sys.argv[1:] if arguments is None else arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError as error:
        code = 128 + signal.SIGPIPE if _discard_unread_output() else _report_bug(error)
    sys.exit(code)


def _exit_code(arguments: list[str]) -> int:
    """Run a command, print what stopped it, and return the exit code.

    Calls Typer's command, not its `main`, which would itself end the process on an interrupt and a broken pipe.

    Raises:
        BrokenPipeError: the reader of the output has gone, or another pipe broke.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context("potstill", list(arguments)) as context:
            command.invoke(context)
        return 0
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        reason = _reason(error)
        if reason is None:
            return _report_bug(error)
        if "--json" in arguments:
            _print(True, {"error": reason.as_dict()})
        print(f"error: {reason}", file=sys.stderr)
        return reason.exit_code


def _reason(error: BaseException) -> PotstillError | None:
    """The error in words; None for a bug."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted.", fix="Run the same command again.", signal_number=signal.SIGINT)
    return error if isinstance(error, PotstillError) else machine_error(error)


def _report_bug(error: BaseException) -> int:
    traceback.print_exception(error)
    print(
        f"error: this is a bug in potstill {__version__}; please report it with the lines above.",
        file=sys.stderr,
    )
    return 1


def _discard_unread_output() -> bool:
    """Redirect output whose reader has gone to /dev/null; false when no reader has gone."""
    pipes = select.poll()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(io.UnsupportedOperation):
            pipes.register(stream.fileno(), 0)
    closed = [descriptor for descriptor, event in pipes.poll(0) if event & select.POLLERR]
    for descriptor in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(closed)
