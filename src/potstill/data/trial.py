"""Chat templates are tried before anything is rendered: they are programs, and may run for ever.

The trial happens in a process of its own, because only the system can end a program in every case.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from potstill.data import _trial
from potstill.errors import DataError, MachineError

MOST = 1_000_000  # characters that a few short turns may become
PATIENCE = 60  # seconds until a process that computes nothing is given up


def require_bounded(
    template: str,
    variables: Mapping[str, Any],
    where: str,
    *,
    inputs: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Refuse a template that needs much time, memory or text for a few short turns, or for these `inputs`.

    Args:
        variables: what the template is given beside messages and tools.
        where: the tokenizer or file that the template comes from.

    Raises:
        DataError: naming where the template comes from and the limit.
        MachineError: no process can be started.
    """
    given = {"template": template, "variables": dict(variables), "inputs": inputs}
    if excess := _excess(json.dumps(given, default=str)):
        what, of = ("chat template", "a few short turns") if inputs is None else ("template", "a few rows")
        other = ", or name another one in data.template.file" if inputs is None else ""
        raise DataError(
            f"the {what} needs more than {excess} for {of}.",
            path=where,
            fix=f"Look for its loops and repetitions{other}.",
        )


@lru_cache(maxsize=256)
def _excess(given: str) -> str:
    """The limit that the template exceeds, "" for none."""
    time, memory = f"{_trial.SECONDS} second of computing", f"{_trial.MEMORY // 2**20} MB of memory"
    try:
        done = subprocess.run(
            [sys.executable, "-P", _trial.__file__],
            input=given,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=PATIENCE,
            start_new_session=True,  # Ctrl-C in a terminal is for this process
        )
    except subprocess.TimeoutExpired:
        return time
    except OSError as error:
        raise MachineError(
            f"cannot start Python to try a chat template: {error}.", fix="Free memory or processes."
        ) from error
    if done.returncode < 0:
        return time if done.returncode == -signal.SIGXCPU else memory
    if done.returncode:
        raise MachineError(
            f"cannot try a chat template: {done.stderr.strip().rpartition(chr(10))[2]}.",
            fix=f"Run {sys.executable} -c 'import jinja2' to see why.",
        )
    result = json.loads(done.stdout)
    if result["memory"]:
        return memory
    return f"{MOST:,} characters" if result["characters"] > MOST else ""
