"""How the benchmarks measure, and how they say what they found.

Time: contenders run interleaved in one process (A B, B A, A B, ...), on the same tensors, after a
warm-up. CPU seconds stand next to wall clock; a round in which wall exceeds 1.3 x CPU was disturbed
and is repeated. Ratios are taken round by round. Memory: each contender alone in a process of its
own, the kernel's peak minus what was resident at the start.

Figures are ratios or counts that hold from machine to machine; absolute times are not results.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

DISTURBED = 1.3
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PACKAGES = ("torch", "transformers", "trl", "potstill")

# ── time ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Sample:
    """Seconds of one call."""

    wall: float
    cpu: float

    @property
    def disturbed(self) -> bool:
        """Whether one thread waited for the processor; meaningless for several threads."""
        return self.wall > DISTURBED * self.cpu


def clock(action: Callable[[], object]) -> Sample:
    """One call's seconds; garbage of the call before is not charged to it."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Timings:
    """The rounds that count, and how many were thrown away.

    `noisy`: every round was disturbed, so all of them were kept.
    """

    rounds: tuple[Mapping[str, Sample], ...]
    discarded: int = 0
    noisy: bool = False

    def ratios(self, ours: str, *peers: str) -> list[float]:
        """CPU seconds of `ours` over those of the fastest of `peers`, round by round."""
        return [r[ours].cpu / min(r[peer].cpu for peer in peers) for r in self.rounds]

    def seconds(self, name: str) -> dict[str, float]:
        """A contender's least and median CPU seconds, and its median wall seconds."""
        return {
            "cpu_min": round(min(r[name].cpu for r in self.rounds), 4),
            "cpu_median": round(statistics.median(r[name].cpu for r in self.rounds), 4),
            "wall_median": round(statistics.median(r[name].wall for r in self.rounds), 4),
        }


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    measure: Callable[[Callable[[], object]], Sample] = clock,
) -> Timings:
    """Time every contender once a round, in turning order; a disturbed round is tried again.

    At most 2 x `rounds` rounds are tried. If all are disturbed they are kept and said to be noisy.
    """
    for _ in range(warm_up):
        for action in contenders.values():
            action()
    kept: list[Mapping[str, Sample]] = []
    tried: list[Mapping[str, Sample]] = []
    while len(kept) < rounds and len(tried) < 2 * rounds:
        order = list(contenders)[:: 1 if len(tried) % 2 == 0 else -1]
        seconds = {name: measure(contenders[name]) for name in order}
        tried.append({name: seconds[name] for name in contenders})
        if not any(sample.disturbed for sample in seconds.values()):
            kept.append(tried[-1])
    if not kept:
        return Timings(tuple(tried), noisy=True)
    return Timings(tuple(kept), discarded=len(tried) - len(kept))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def resident(field_name: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int:
    """Resident bytes of this process now (VmRSS), or at most since `forget_peak` (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field_name}")


def forget_peak() -> int:
    """Give freed memory back, reset the kernel's peak, and return what is resident now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def peak_over(action: Callable[[], object]) -> int:
    """Most bytes that a call needed over what was resident before it."""
    before = forget_peak()
    action()
    return max(0, resident("VmHWM") - before)


def alone(script: str, task: str, *, threads: int, **options: Any) -> Any:
    """Run one task of a benchmark script in a process of its own, and return what it answers.

    Raises:
        RuntimeError: the process failed; the message ends with its last words.
    """
    command = [sys.executable, script, "--task", json.dumps({"name": task, "options": options})]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{task} {options} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Figure:
    """One measured value beside the bar it should clear; `value` is None when it could not be measured."""

    name: str
    value: float | None
    unit: str
    bar: float | None = None
    better: Literal["lower", "higher"] = "lower"
    contenders: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the bar is cleared; None without a value or a bar."""
        if self.value is None or self.bar is None:
            return None
        return self.value <= self.bar if self.better == "lower" else self.value >= self.bar


class Report:
    """Prints a table and writes one JSON line a figure, each as soon as it exists.

    `target`: a file that is replaced, "-" for stdout (the table then goes to stderr), or None.
    """

    def __init__(self, title: str, target: str | None) -> None:
        self._table = sys.stderr if target == "-" else sys.stdout
        self._target = target
        if target not in (None, "-"):
            Path(str(target)).write_text("")
        load = " ".join(f"{x:.2f}" for x in os.getloadavg())
        facts = machine()
        self.say(f"{title}: {facts['cpu']}, {facts['cores']} cores, load {load}")
        self.say(", ".join(f"{name} {version}" for name, version in versions().items()))
        self.say(f"{'figure':<34} {'value':>9} {'bar':>9}  {'':<6} contenders")

    def say(self, text: str) -> None:
        """A line beside the table."""
        print(text, file=self._table, flush=True)

    def add(self, figure: Figure) -> None:
        """One figure."""
        value = "null" if figure.value is None else f"{figure.value:.4g}"
        sign = "≤" if figure.better == "lower" else "≥"
        bar = "" if figure.bar is None else f"{sign} {figure.bar:g}"
        verdict = {None: "", True: "ok", False: "MISSED"}[figure.ok]
        self.say(f"{figure.name:<34} {value:>9} {bar:>9}  {verdict:<6} {_brief(figure.contenders)}")
        if figure.note:
            self.say(f"{'':<4}{figure.note}")
        line = {
            "name": figure.name,
            "value": figure.value,
            "unit": figure.unit,
            "bar": figure.bar,
            "ok": figure.ok,
            "contenders": dict(figure.contenders),
            "shape": dict(figure.shape),
            "versions": versions(),
            "machine": machine(),
        } | ({"note": figure.note} if figure.note else {})
        if self._target == "-":
            print(json.dumps(line), flush=True)
        elif self._target is not None:
            with Path(self._target).open("a") as file:
                file.write(json.dumps(line) + "\n")


def _brief(contenders: Mapping[str, Any]) -> str:
    """Every contender with the first thing that is known of it; the rest is in the JSON line."""
    parts = []
    for name, facts in contenders.items():
        first = next(iter(facts.values()), "") if isinstance(facts, Mapping) else facts
        shown = "/".join(map(str, first.values())) if isinstance(first, Mapping) else first
        parts.append(f"{name} {shown}")
    return "; ".join(parts)


def versions() -> dict[str, str | None]:
    """Versions of what is compared; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """The processor, its cores, and memory in GB."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            x.partition(":")[2].strip() for x in info.read_text().splitlines() if x.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory, 1), "system": platform.system()}


# ── scripts ───────────────────────────────────────────────────────────────────────────────────────


def installed(package: str) -> bool:
    """Whether a peer can be imported."""
    return importlib.util.find_spec(package) is not None


def arguments(doc: str | None, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """`--quick`, `--json`, and the hidden `--task` by which a script runs a part of itself alone."""
    parser = parser or argparse.ArgumentParser()
    parser.description = (doc or "").partition("\n")[0]
    parser.add_argument("--quick", action="store_true", help="fewer rounds: within five minutes on two cores")
    parser.add_argument("--json", metavar="FILE", help="write one JSON line a figure; - is stdout")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser.parse_args()


def answer(task: str, tasks: Mapping[str, Callable[..., Any]]) -> None:
    """Do what `alone` asked for; the answer is the last line of stdout."""
    asked = json.loads(task)
    print(json.dumps(tasks[asked["name"]](**asked["options"])), flush=True)


def use_threads(count: int) -> None:
    """Fix the number of threads of torch."""
    torch.set_num_threads(count)
