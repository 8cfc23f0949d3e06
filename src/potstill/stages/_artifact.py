"""How a stage's artifact comes to be: from the store when its inputs are unchanged, else built now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.console import clock
from potstill.errors import ArtifactError
from potstill.stages._context import Context
from potstill.store.artifacts import Artifact, key_of, peak_rss, write_text

Build = Callable[[Path], Mapping[str, Any]]
"""Writes into a folder and returns the facts that later readers need."""


def produce(context: Context, kind: str, name: str, inputs: Mapping[str, Any], build: Build) -> Artifact:
    """The artifact of these inputs: taken from the store, or built while no other process builds it.

    Raises:
        ArtifactError: it is not in the store and the context builds nothing.
        Interrupted: a signal arrived before it was begun.
    """
    key = key_of(kind, inputs)
    waiting = False
    while True:
        artifact = context.store.find(kind, key)
        if artifact is not None:
            context.console.say(f"{name}: unchanged, taken from {artifact.path}")
            return replace(artifact, reused=True)
        if not context.builds:
            raise ArtifactError(
                f"the stage {name} is not finished.", fix="Go on with potstill run and the run's folder."
            )
        context.stop_if_signalled()
        with context.store.alone(kind, key) as free:
            # Another run may have finished it between the look and the lock.
            if free and context.store.find(kind, key) is None:
                facts = _timed(context.store.work(kind, key), name, context, build)
                return context.store.finish(kind, key, inputs, facts)
        if not waiting and not free:
            context.console.say(f"{name}: another run makes the same; waiting for it")
            waiting = True
        time.sleep(0.0 if free else 0.5)


def _timed(folder: Path, name: str, context: Context, build: Build) -> dict[str, Any]:
    """The facts of a build with its time, that before an interruption included."""
    clock_file = folder / ".seconds"
    before = float(clock_file.read_text()) if clock_file.is_file() else 0.0
    started = time.monotonic()
    try:
        facts = build(folder)
    except BaseException:
        write_text(clock_file, str(before + time.monotonic() - started))
        raise
    clock_file.unlink(missing_ok=True)
    seconds = before + time.monotonic() - started
    context.console.say(f"{name}: done in {clock(seconds)}")
    return {"seconds": seconds, "peak_rss_bytes": peak_rss(), **facts}
