"""How the verbs print their results."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from potstill.console import Lasting, visible
from potstill.errors import MachineError
from potstill.runs.status import machine_error

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress stays silent.")]


class Commands(TyperGroup):
    """A group of commands whose help has the whole first sentence of each, wrapped; Typer cuts it off."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(1000)) for name in self.list_commands(ctx)]
            )


def terminal_width() -> int | None:
    """The columns of the terminal that reads the output; None where a file or a program does."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_result(as_json: bool, value: Any, text: str = "") -> None:
    """Print a command's result: JSON for programs, else words.

    Raises:
        MachineError: the output cannot be written.
    """
    words = json.dumps(value, indent=2, ensure_ascii=True, default=str) if as_json else visible(text)
    try:
        print(words, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten(error) from error


def unwritten(error: OSError) -> MachineError:
    """A result that cannot be written, in words; what is buffered of it goes nowhere."""
    Lasting(sys.stdout).flush()
    reason = machine_error(error)
    return MachineError(f"the output cannot be written: {error}.", fix=reason.fix if reason else "")
