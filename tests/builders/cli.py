"""Running the command line from tests."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from potstill.cli import main


@dataclass
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


@cache
def _alone() -> tuple[str, ...]:
    """A prefix that takes the network away, () where the system does not allow it."""
    prefix = ("unshare", "--map-root-user", "--net")
    allowed = (
        shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    )
    return prefix if allowed else ()


def process(*arguments: str, cwd: Path) -> Done:
    """Run the command line as a user does, in a process of its own, without a network where that is possible."""
    done = subprocess.run(
        [*_alone(), sys.executable, "-m", "potstill", *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def potstill(*arguments: str, cwd: Path) -> Done:
    """The same in this process, which has imported torch already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
