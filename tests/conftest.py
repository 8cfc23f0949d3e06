"""Every test is seeded, runs on one thread, reaches no network, and checks the shapes that signatures state."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As in an activated environment, so that commands in messages are named `potstill`.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from beartype import beartype
from hypothesis import settings
from jaxtyping import Float, jaxtyped
from torch import Tensor

from potstill import divergences


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # The same examples every time, however slow the machine is.
    settings.register_profile("seeded", derandomize=True, deadline=None, database=None)
    settings.load_profile("seeded")
    # A shell starts background work with some signals ignored; the tests mean the usual ones.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in divergences.names():
        _with_shapes(importlib.import_module(f"potstill.divergences.{name}"))


def _with_shapes(module: object) -> None:
    """A divergence takes two [N, K] and gives [N]; its partial is [N, K]."""
    pairs = {"student_lp": Float[Tensor, "n k"], "teacher_lp": Float[Tensor, "n k"]}
    results = {
        "value": Float[Tensor, " n"],
        "value_and_partial": tuple[Float[Tensor, " n"], Float[Tensor, "n k"]],
    }
    for name, result in results.items():
        function = getattr(module, name, None)
        if function is not None and not hasattr(function, "__wrapped__"):  # else it calls the other one
            function.__annotations__ |= pairs | {"return": result}
            setattr(module, name, jaxtyped(typechecker=beartype)(function))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
