"""What the GPU benchmark does with failures and with time; no test here times anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from builders import scripts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    folder = str(scripts.ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield scripts.load("benchmarks/gpu.py")
    finally:
        sys.path.remove(folder)


def fail() -> dict[str, object]:
    raise ValueError("the device is gone")


def test_a_contender_that_fails_says_why_and_where_and_the_next_one_runs(gpu):
    clock = gpu.Clock(CPU, 60.0)
    clock.each({"first": fail, "second": lambda: {"ms": 1.0}})
    assert clock.found["first"]["error"] == "ValueError: the device is gone"
    assert "test_gpu.py:" in clock.found["first"]["at"]
    assert clock.found["second"] == {"ms": 1.0}


def test_contenders_without_time_are_named(gpu):
    clock = gpu.Clock(CPU, -1.0)
    clock.each({"late": fail})
    assert clock.found == {"late": "no time was left"}


def test_a_workload_that_is_ended_keeps_what_it_has(gpu):
    clock = gpu.Clock(CPU, 60.0)

    def endless() -> dict[str, object]:
        clock.add("first", {"ms": 1.0})
        raise gpu.OutOfTime

    assert gpu.bounded(endless, clock, 60.0) == {"first": {"ms": 1.0}, "stopped": "after 60 s"}
