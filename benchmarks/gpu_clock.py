"""How the GPU benchmark measures: events of the device, its memory, and a bound on the time of a workload.

Without a GPU everything runs on the CPU by the wall clock, which tells whether it runs and nothing else.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Result = dict[str, Any]
SWEPT = 256 * 2**20  # bytes that are written between two calls: more than the device's cache holds


class OutOfTime(BaseException):
    """A workload has taken its time; no `except Exception` on the way takes it for a failure."""


@dataclass
class Clock:
    """Times calls on a device for at most `seconds`, and keeps what a workload has found so far.

    `rate` is what the device's bf16 products reach, in 1e12 operations a second, where it was measured.
    """

    device: torch.device
    seconds: float
    rate: float | None = None
    rounds: int = 5
    found: Result = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    _swept: Tensor | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def spent(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self.began > self.seconds

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def events(
        self,
        action: Callable[[], object],
        *,
        before: Callable[[], object] = lambda: None,
        rounds: int | None = None,
    ) -> Result:
        """Milliseconds of a call between two events of the device: the median of several, after a warm-up."""
        times = []
        for turn in range((rounds or self.rounds) + 1):
            before()
            self._sweep()
            taken = self._one(action)
            if turn:
                times.append(taken)
        return {"ms": round(statistics.median(times), 4), "least_ms": round(min(times), 4)}

    def wall(self, action: Callable[[], object]) -> float:
        """Seconds of one call, until the device has done everything."""
        self.wait()
        began = time.perf_counter()
        action()
        self.wait()
        return time.perf_counter() - began

    def peak(self, action: Callable[[], object]) -> int:
        """Most bytes of the device that a call allocated over what was allocated before it; 0 on a CPU."""
        if not self.on_gpu:
            action()
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        base = torch.cuda.memory_allocated(self.device)
        action()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - base

    def add(self, name: str, result: Any) -> None:
        """Keep a result, and say it on stderr at once: nothing is lost when the process ends early."""
        self.found[name] = result
        seconds = time.monotonic() - self.began
        print(f"[{seconds:6.1f} s] {name}: {json.dumps(result)}", file=sys.stderr, flush=True)

    def each(self, contenders: Mapping[str, Callable[[], Result]]) -> None:
        """Measure one after the other while there is time."""
        for name, contender in contenders.items():
            self.add(name, "no time was left" if self.spent() else attempt(contender))
            release()

    def _one(self, action: Callable[[], object]) -> float:
        if not self.on_gpu:
            return self.wall(action) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()
        end.record()
        self.wait()
        return float(start.elapsed_time(end))

    def _sweep(self) -> None:
        if self.on_gpu:
            if self._swept is None:
                self._swept = torch.empty(SWEPT, dtype=torch.uint8, device=self.device)
            self._swept.zero_()
            self.wait()


def attempt(action: Callable[[], Result]) -> Result:
    """What a measurement answers, or why it failed: the others go on."""
    try:
        return action()
    except Exception as error:  # whatever a peer or a device raises is a result here
        failed = _described(error)
    release()  # only now: the error held the frames, and they the tensors
    return failed


def _described(error: Exception) -> Result:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return {"error": f"{type(error).__name__}: {error}"[:600], "at": f"{where.filename}:{where.lineno}"}


def release() -> None:
    """Give back what nobody holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
