"""How the verbs print their results."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from potstill.console import Lasting, visible
from potstill.errors import MachineError
from potstill.runs.status import machine_error

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress stays silent.")]


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
