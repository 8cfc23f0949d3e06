"""Engines write what the student would, with the weights that it has at that step."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from safetensors.torch import load_file

from builders import rollout_engine
from builders.jobs import Memory, context, events, spec_of, student
from builders.recipes import read
from builders.tiny import save_tiny, tiny_model
from builders.written import on_policy
from potstill.devices import ranks
from potstill.errors import MachineError, ModelError, RecipeError
from potstill.generate.pushed import Wanted
from potstill.generate.sampling import Sampling
from potstill.recipe.specs import StrategyChoice
from potstill.stages import _strategy
from potstill.stages._module import Run
from potstill.stages._objective import objective_of
from potstill.stages._training_rows import TrainingRows
from potstill.stages.distill import Distill

GREEDY = {"sampling_temperature": 0.0}


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", rollout_engine.module())
    return rollout_engine.made


def assert_equal(one, other):
    """The same steps and weights, bit for bit."""
    keys = ("loss", "tokens", "rollout_tokens", "grad_norm")
    steps = [[{k: e[k] for k in keys} for e in events(made.path, "step")] for made in (one, other)]
    assert steps[0] == steps[1]
    weights = [load_file(made.path / "student/model.safetensors") for made in (one, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_vllm_writes_with_the_weights_of_each_step(tmp_path, vllm):
    """Greedy text: six steps as with the student's own, and each had its own weights."""
    local = on_policy(tmp_path / "local", strategy=GREEDY, learning_rate=0.05)
    made = on_policy(tmp_path / "vllm", strategy={**GREEDY, "engine": "vllm"}, learning_rate=0.05)
    assert_equal(local, made)
    (engine,) = vllm
    assert not engine.awake
    assert not list(made.path.glob(".weights*"))


def test_a_server_writes_with_the_weights_of_each_step(tmp_path):
    local = on_policy(tmp_path / "local", strategy=GREEDY, learning_rate=0.05)
    with rollout_engine.served(save_tiny(tmp_path / "other", seed=9)) as server:
        strategy = {**GREEDY, "engine": "served", "server": server.address}
        assert_equal(local, on_policy(tmp_path / "served", strategy=strategy, learning_rate=0.05))
        assert server.weights.reloads == 6


def test_a_server_gets_a_head_that_is_not_trained_too(tmp_path):
    how = {"learning_rate": 0.05, "freeze_head": True, "steps": 3}
    local = on_policy(tmp_path / "local", strategy=GREEDY, **how)
    with rollout_engine.served(save_tiny(tmp_path / "other", seed=9)) as server:
        strategy = {**GREEDY, "engine": "served", "server": server.address}
        assert_equal(local, on_policy(tmp_path / "served", strategy=strategy, **how))


def test_weights_are_saved_once_for_steps_that_are_written_by_one_student(tmp_path, monkeypatch):
    with rollout_engine.served(save_tiny(tmp_path / "other", seed=9)) as server:
        strategy = {"engine": "served", "server": server.address, "collect": 3}
        on_policy(tmp_path / "s", strategy=strategy)
        assert server.weights.reloads == 2


@pytest.mark.parametrize("engine", ["vllm", "served"])
def test_an_engine_with_other_weights_is_noticed_before_its_text_is_used(tmp_path, vllm, monkeypatch, engine):
    reload = rollout_engine.Weights.reload_weights

    def deaf(self, weights_path):
        self.deaf = True
        reload(self, weights_path)

    monkeypatch.setattr(rollout_engine.Weights, "reload_weights", deaf)
    with rollout_engine.served(save_tiny(tmp_path / "other", seed=9)) as server:
        extra = {"server": server.address} if engine == "served" else {}
        with pytest.raises(ModelError, match="does not write with the weights of version 0"):
            on_policy(tmp_path / "s", strategy={"engine": engine, **extra})


def test_a_server_that_takes_no_weights_is_refused(tmp_path):
    with rollout_engine.served(save_tiny(tmp_path / "other"), takes=False) as server:
        strategy = {"engine": "served", "server": server.address}
        with pytest.raises(RecipeError, match="takes no weights: 404") as refused:
            on_policy(tmp_path / "s", strategy=strategy)
    assert "VLLM_SERVER_DEV_MODE=1" in refused.value.fix
    with pytest.raises(RecipeError, match="cannot be asked"):
        on_policy(tmp_path / "t", strategy={"engine": "served", "server": server.address})


def test_a_vllm_that_takes_no_weights_or_is_not_there_is_named(tmp_path, vllm, monkeypatch):
    def older(self):
        return None

    monkeypatch.setattr(rollout_engine.Weights, "reload_weights", older)
    with pytest.raises(MachineError, match="this version of vLLM takes no weights"):
        on_policy(tmp_path / "old", strategy={"engine": "vllm"})
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MachineError, match="cannot be imported"):
        on_policy(tmp_path / "none", strategy={"engine": "vllm"})


def test_an_engine_that_is_not_installed_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    spec = read({"distill": {"strategy": {"on_policy": {"engine": "vllm"}}}}).stages[0]
    with pytest.raises(MachineError, match="vllm cannot be imported"):
        _strategy.try_strategy(spec)


def test_vllm_is_refused_in_one_of_several_processes(tmp_path, monkeypatch):
    spec = spec_of(Distill, strategy=StrategyChoice(name="on_policy", options={"engine": "vllm"}))
    teacher, objective = Memory(tiny_model()), objective_of(spec)
    start = student(tmp_path / "s", tiny_model())
    run = Run(spec, start, TrainingRows((), ()), objective, teacher, 1, context(tmp_path, teacher))
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(RecipeError, match="one of 2 processes") as refused:
        _strategy.writer_of(run, objective, torch.nn.Linear(1, 1), teacher, tmp_path)
    assert refused.value.path == "stages.distill.strategy.on_policy.engine"


def test_every_setting_of_a_text_is_stated_and_samples_differ_by_their_seed():
    wanted = Wanted([(1, 2), (1, 3)], Sampling(5, 0.7, 0.9, 40), [11, 12], 2, {2}, 6, width=8, unused=(4,))
    asked = list(wanted.asked())
    assert [(index, sample) for index, sample, _ in asked] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({settings["seed"] for *_, settings in asked}) == 4
    first = {key: value for key, value in asked[0][2].items() if key != "seed"}
    assert first == {
        "n": 1, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "max_tokens": 5, "stop_token_ids": [2],
        "ignore_eos": True, "logit_bias": {4: -100.0, 6: -100.0, 7: -100.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "reason", "message"),
    [
        ([5, 4], "stop", "the id 4, which stands for no token"),
        ([5, 6], "stop", "the id 6"),
        ([5], "abort", "'abort'"),
    ],
)
def test_what_no_sound_engine_writes_is_refused(ids, reason, message):
    wanted = Wanted([(1, 2)], Sampling(5), [0], 1, {2}, 6, width=8, unused=(4,))
    with pytest.raises(ModelError, match=message):
        wanted.completion(0, 0, ids, reason)
    assert wanted.completion(0, 0, [5, 2], "stop").finish == "stop"
    assert wanted.completion(0, 0, [5] * 5, "length").finish == "length"
