"""Processes that are killed at random moments of their work."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["builders.asking", "openai", "httpx2"])  # once for all of them


def start_and_kill(
    work: Callable[..., Any],
    args: tuple[Any, ...],
    progress: Callable[[], int],
    most: int,
    dice: random.Random,
) -> None:
    """Start a process, and kill it once `progress` has grown by up to `most`, or some milliseconds later."""
    process = PROCESSES.Process(target=work, args=args)
    until = progress() + dice.randrange(1, max(2, most))
    process.start()
    while process.is_alive() and progress() < until:
        process.join(0.002)
    process.join(dice.uniform(0, 0.02))
    assert process.exitcode is None, "it was finished before it could be killed"
    process.kill()
    process.join()
    process.close()
