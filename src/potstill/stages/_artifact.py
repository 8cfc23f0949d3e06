"""How a stage's artifact comes to be: from the store when its inputs are unchanged, else built now."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.console import clock
from potstill.devices import ranks
from potstill.errors import ArtifactError
from potstill.stages._context import Context
from potstill.store.artifacts import MANIFEST, Artifact, key_of
from potstill.store.disk import discard, peak_rss, set_aside, write_text
from potstill.store.folder import MADE

Build = Callable[[Path], Mapping[str, Any]]
"""Writes into a folder and returns the facts that later readers need."""


def produce(
    context: Context,
    kind: str,
    name: str,
    inputs: Mapping[str, Any],
    build: Build,
    *,
    together: bool = False,
    goes_on: Collection[str] = (),
) -> Artifact:
    """The artifact of these inputs: taken from the store, or built while no other run builds it.

    A damaged one is named, moved aside and built again. Of a run's processes the first one builds it, or all
    of them `together`, in the same folder. A build that was interrupted finds its files again, and the folders
    that it `goes_on` with.

    Raises:
        Interrupted: a signal arrived before it was begun.
    """
    key = key_of(kind, inputs)
    if len(set(ranks.gather(key))) > 1:
        raise ArtifactError(
            f"{name}: the processes of this run do not read the same inputs.",
            fix="Give every machine the same recipe, data, models and versions of libraries.",
        )
    if not ranks.first():
        return _follow(build)
    build = _led(build) if together else build
    artifact = _produce(context, kind, name, key, inputs, build, goes_on)
    context.memo.setdefault(MADE, []).append(artifact.path.name)
    context.announce(
        {MADE: context.memo[MADE]}
    )  # before its stage ends, and a run that fails refers to it too
    ranks.broadcast(artifact)
    return artifact


def _led(build: Build) -> Build:
    """A build that the other processes begin as well."""

    def together(folder: Path) -> Mapping[str, Any]:
        ranks.broadcast(folder)
        return build(folder)

    return together


def _follow(build: Build) -> Artifact:
    """Build with the first process wherever it says so, until it has the artifact."""
    order: Path | Artifact = ranks.broadcast()
    while not isinstance(order, Artifact):
        build(order)
        order = ranks.broadcast()
    return order


def _produce(
    context: Context,
    kind: str,
    name: str,
    key: str,
    inputs: Mapping[str, Any],
    build: Build,
    goes_on: Collection[str],
) -> Artifact:
    waiting = False
    while True:
        artifact, damage = _find(context, kind, key)
        if artifact is not None:
            context.console.say(f"{name}: unchanged, taken from {artifact.path}")
            return replace(artifact, reused=True)
        context.stop_if_signalled()
        with context.store.alone(kind, key) as free:
            # Another run may have finished it between the look and the lock.
            artifact, damage = _find(context, kind, key)
            if free and artifact is None:
                if damage is not None:
                    aside = set_aside(context.store.place(kind, key))
                    context.console.warn(f"{name}: {damage.message} It is moved to {aside} and made again.")
                elif (artifact := context.store.finished(kind, key)) is not None:
                    return artifact
                facts = _timed(context.store.work(kind, key), name, context, build, goes_on)
                return context.store.finish(kind, key, inputs, facts)
        if not waiting and not free:
            context.console.say(f"{name}: another run makes the same; waiting for it")
            waiting = True
        time.sleep(0.0 if free else 0.5)


def _find(context: Context, kind: str, key: str) -> tuple[Artifact | None, ArtifactError | None]:
    """The artifact, and what is wrong with it where it is damaged."""
    try:
        return context.store.find(kind, key), None
    except ArtifactError as damage:
        return None, damage


def _timed(
    folder: Path, name: str, context: Context, build: Build, goes_on: Collection[str]
) -> dict[str, Any]:
    """The facts of a build with its time, that before an interruption included."""
    for leftover in folder.iterdir():
        # What a build goes on with is a file, hidden or named; another folder is the output of one that was
        # killed over it.
        output = leftover.is_dir() and not leftover.name.startswith(".") and leftover.name not in goes_on
        if leftover.name == MANIFEST or output:
            discard(leftover)
    clock_file = folder / ".seconds"
    before = _seconds(clock_file)
    started = time.monotonic()
    try:
        facts = build(folder)
    except BaseException:
        write_text(clock_file, str(before + time.monotonic() - started))
        raise
    seconds = before + time.monotonic() - started
    context.console.say(f"{name}: done in {clock(seconds)}")
    return {"seconds": seconds, "peak_rss_bytes": peak_rss(), **facts}


def _seconds(file: Path) -> float:
    try:
        return max(0.0, float(file.read_text()))
    except (FileNotFoundError, ValueError):
        return 0.0  # how long it took before is no part of any result
