"""What asks a run to stop: an interrupt, a termination, a terminal that closes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from builders import places

RUN = """
import signal, sys
from potstill.runs import setup
from potstill.cli import main

number, ignored = int(sys.argv[1]), sys.argv[2] == "ignored"
signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)  # whatever started the tests
read = setup.set_up
setup.set_up = lambda *given: signal.raise_signal(number) or read(*given)
main(["run", "r.yaml"])
"""


def raised(place, number: int, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, str(int(number)), how], cwd=place, capture_output=True, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_run_that_can_go_on(tmp_path, number):
    places.write(tmp_path, stages="[{distill: {steps: 1}}]")
    done = raised(tmp_path, number, "heard")
    assert done.returncode == 128 + number, done.stderr
    assert "Continue with: potstill run runs/r" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP])
def test_a_signal_that_was_ignored_from_the_start_stays_ignored(tmp_path, number):
    """As SIGHUP is under nohup."""
    places.write(tmp_path, stages="[{distill: {steps: 1}}]")
    done = raised(tmp_path, number, "ignored")
    assert done.returncode == 0, done.stderr
