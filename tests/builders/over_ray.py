"""Code over Ray itself, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_over_ray(code: str, place: Path) -> None:
    """Run code with a place as its argument, on a cluster of this machine; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)],
        capture_output=True,
        text=True,
        timeout=500,
        # A machine that others fill is no reason to end its workers, nor to let them wait for hours.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",
        },
    )
    assert done.returncode == 0, done.stderr
