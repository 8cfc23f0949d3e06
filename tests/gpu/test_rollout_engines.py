"""Rollouts by the real vLLM, on a machine that has it and a GPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from builders.jobs import Memory, events
from builders.tiny import tiny_model
from builders.written import on_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or importlib.util.find_spec("vllm") is None,
        reason="needs a CUDA device and vllm",
    ),
]


def test_vllm_writes_with_the_weights_of_each_step(tmp_path):
    """Each push is compared with the student before its text is used; greedy text is the student's own."""
    models = {"model": tiny_model(hidden=128), "teacher": Memory(tiny_model(seed=1, hidden=128))}
    greedy = {"sampling_temperature": 0.0}
    local = on_policy(tmp_path / "local", strategy=greedy, learning_rate=0.01, **models)
    models["model"] = tiny_model(hidden=128)
    strategy = {**greedy, "engine": "vllm", "gpu_memory": 0.2}
    made = on_policy(tmp_path / "vllm", strategy=strategy, learning_rate=0.01, **models)
    losses = [[event["loss"] for event in events(one.path, "step")] for one in (local, made)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
