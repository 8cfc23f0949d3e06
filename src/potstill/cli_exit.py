"""How a command ends: what stopped it in words, and the exit code of its outcome."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
from contextlib import redirect_stderr
from typing import Any, TextIO, cast

import typer

from potstill import __version__
from potstill.cli_output import print_result, unwritten
from potstill.console import Lasting, WarningLines, discard_unread_output, visible
from potstill.devices import jobs
from potstill.errors import Interrupted, PotstillError, RecipeError
from potstill.runs.status import machine_error

_UsageError: Any = typer.BadParameter.__base__  # Typer has no other public name for it


def exit_with(app: typer.Typer, arguments: list[str]) -> None:
    """Run a command and exit with the code of its outcome (see `potstill.errors`)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a C locale must not turn a dash into a crash
            stream.reconfigure(errors="backslashreplace")
    if jobs.number():  # the first process of a job speaks for all
        sys.stdout = cast("TextIO", io.StringIO())
    logger = logging.getLogger("potstill")
    if not logger.handlers:
        logger.addHandler(WarningLines(logging.WARNING))
    errors = Lasting(sys.stderr)
    with redirect_stderr(cast("TextIO", errors)):  # for the bars of libraries too
        code = _flushed_code(app, arguments)
    code = 128 + signal.SIGPIPE if code and errors.unread else code
    if jobs.processes() is not None:
        # On a busy machine torch may abort while the interpreter of one of several processes goes down.
        for stream in (sys.stdout, sys.stderr):
            Lasting(stream).flush()
        os._exit(code)
    sys.exit(code)


def _flushed_code(app: typer.Typer, arguments: list[str]) -> int:
    """Run a command, write its output, and return the exit code of both."""
    try:
        code = _exit_code(app, arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        return 128 + signal.SIGPIPE if discard_unread_output() else _report_bug(error)
    except OSError as error:
        return _report(unwritten(error), False)


def _exit_code(app: typer.Typer, arguments: list[str]) -> int:
    """Run a command, print what stopped it, and return the exit code; a BrokenPipeError goes on to the caller."""
    command, as_json = typer.main.get_command(app), "--json" in arguments
    try:
        # Not `command.main`, which would itself end the process on an interrupt and a broken pipe.
        with command.make_context("potstill", list(arguments)) as context:
            command.invoke(context)
        return 0
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        if as_json:
            path = error.ctx.command_path if error.ctx else "potstill"
            mistyped = RecipeError(error.format_message(), fix=f"`{path} -h` says what it takes.")
            print_result(True, {"error": mistyped.as_dict()})
        text = io.StringIO()
        error.show(file=text)
        print(visible(text.getvalue()), end="", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        fix = "Run the same command again."
        return _report(Interrupted("interrupted.", fix=fix, signal_number=signal.SIGINT), as_json)
    except PotstillError as error:
        return _report(error, as_json)
    except Exception as error:
        from potstill.recipe import plugins

        if (reason := machine_error(error)) is not None:
            return _report(reason, as_json)
        if (theirs := plugins.fault(error)) is not None:
            _print_traceback(error)
            return _report(theirs, as_json)
        return _report_bug(error)


def _report(error: PotstillError, as_json: bool, *, echo: bool = False) -> int:
    if jobs.LAUNCHED in os.environ:
        jobs.leave_reason(error, echo=echo)
        return error.exit_code
    if as_json:
        print_result(True, {"error": error.as_dict()})
    print(f"error: {visible(str(error))}", file=sys.stderr)
    return error.exit_code


def _print_traceback(error: BaseException) -> None:
    print(visible("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _report_bug(error: BaseException) -> int:
    if (echo := jobs.echo(error)) is not None:
        return _report(echo, False, echo=True)
    _print_traceback(error)
    text = f"this is a bug in potstill {__version__}; please report it with the lines above."
    print(f"error: {text}", file=sys.stderr)
    return 1
