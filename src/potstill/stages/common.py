"""What every stage shares: its world, and how its artifact comes to be."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from potstill.console import Console, clock
from potstill.errors import ArtifactError, Interrupted
from potstill.models import loading
from potstill.store.artifacts import Artifact, Store, key_of, write_text

VERSIONS = {"generate": 1, "student": 1, "train": 1, "evaluate": 1}
"""Raised when a stage's output changes its meaning, so that old artifacts are not taken for new ones."""


@dataclass(frozen=True)
class World:
    """Where a stage works. `stop_signal` returns the number of a received signal, 0 before one came; without
    `builds` every artifact must be in the store."""

    store: Store
    console: Console
    device: torch.device
    seed: int
    stop_signal: Callable[[], int] = lambda: 0
    reused: list[str] = field(default_factory=list)
    builds: bool = True

    def stop_if_asked(self) -> None:
        """Raise once a signal has arrived; what is on disk lets the stage go on later.

        Raises:
            Interrupted: a signal arrived.
        """
        if number := self.stop_signal():
            raise Interrupted(
                "stopped by a signal; everything finished so far is kept.", signal_number=number
            )


@dataclass(frozen=True)
class ModelRef:
    """A model that a stage may load: where it is and what it is."""

    source: loading.Source
    fingerprint: str
    dtype: torch.dtype

    def load(self, device: torch.device) -> loading.Loaded:
        return loading.load(self.source, dtype=self.dtype, device=device)


def produce(
    world: World, stage: str, name: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]
) -> Artifact:
    """The stage's artifact: from the store when its inputs are unchanged, else built now.

    `build(folder)` writes into the folder and returns the facts that later readers need.
    """
    everything = {"version": VERSIONS[stage], **inputs}
    key = key_of(stage, everything)
    waiting = False
    while True:
        found = world.store.find(stage, key)
        if found is not None:
            world.reused.append(name)
            world.console.say(f"{name}: unchanged, taken from {found.path}")
            return found
        if not world.builds:
            raise ArtifactError(
                f"the stage {name} is not finished.", fix="Go on with potstill run and the run's folder."
            )
        world.stop_if_asked()
        with world.store.alone(stage, key) as free:
            # Another run may have finished it between the look and the lock.
            if free and world.store.find(stage, key) is None:
                facts = _built(world.store.work(stage, key), name, world, build)
                return world.store.finish(stage, key, everything, facts)
        if not waiting and not free:
            world.console.say(f"{name}: another run makes the same; waiting for it")
            waiting = True
        time.sleep(0.0 if free else 0.5)


def _built(
    folder: Path, name: str, world: World, build: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
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
    world.console.say(f"{name}: done in {clock(seconds)}")
    return {"seconds": seconds, "peak_rss_bytes": peak_rss(), **facts}


def peak_rss() -> int:
    """The most memory this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON object more at the end of a file."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(value, ensure_ascii=True) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of a file; half a last line (a killed writer's) is left out."""
    if not path.is_file():
        return []
    return list(_complete_lines(path.read_bytes().split(b"\n")))


def _complete_lines(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines) - 1 and any(rest.strip() for rest in lines[number + 1 :]):
                raise


def write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """All lines at once, atomically."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=True) + "\n" for value in values))
