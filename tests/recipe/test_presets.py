"""Methods and automatic values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.recipes import read
from potstill.recipe.defaults import Default, Facts
from potstill.recipe.methods import METHODS
from potstill.recipe.recipe import dump_yaml, expand, parse_recipe
from potstill.recipe.specs import StrategyChoice
from potstill.recipe.stages import StageSpec, resolve_auto, stage_types
from potstill.recipe.yaml import load_yaml
from potstill.stages.distill import Distill
from potstill.stages.evaluate import Evaluate
from potstill.stages.finetune import Finetune
from potstill.stages.generate import Generate

GPU = Facts(device="cuda", bf16=True, fp16=True)
CPU = Facts(device="cpu")


def resolved(facts: Facts, verb: str = "distill", **options: Any) -> dict[str, Default]:
    stage = read(*(["distill"] if verb == "control" else []), {verb: options}).stages[-1]
    _, defaults = resolve_auto(stage, facts)
    return {default.path.rpartition(".")[2]: default for default in defaults}


def test_methods_expand_to_their_stages_and_name_their_source() -> None:
    expanded = {name: expand(read(method=name)).stages for name in METHODS}
    verbs = {name: [stage.verb for stage in stages] for name, stages in expanded.items()}
    assert verbs == {
        "kd": ["generate", "distill", "evaluate"],
        "seqkd": ["generate", "finetune", "evaluate"],
        "sft": ["finetune", "evaluate"],
    }
    assert "1503.02531" in METHODS["kd"].source
    assert "1606.07947" in METHODS["seqkd"].source
    kd = expanded["kd"][1]
    assert isinstance(kd, Distill)
    assert kd.divergence.name == "forward_kl"


@pytest.mark.parametrize("method", METHODS)
def test_an_expanded_recipe_is_a_valid_recipe_without_a_method(method: str) -> None:
    recipe = expand(read(method=method))
    assert recipe.method is None
    assert parse_recipe(load_yaml(dump_yaml(recipe), "r.yaml")) == recipe


def test_stages_of_the_recipe_are_kept() -> None:
    recipe = read("distill")
    assert expand(recipe) is recipe


@given(
    st.sampled_from(sorted(stage_types())),
    st.builds(
        Facts,
        device=st.sampled_from(["cpu", "cuda", "mps"]),
        bf16=st.booleans(),
        fp16=st.booleans(),
        student_kind=st.sampled_from(["full", "cut", "adapter"]),
        parameters=st.none() | st.integers(1, 10**12),
        rows=st.none() | st.integers(0, 10**6),
        train_tokens=st.none() | st.integers(0, 10**12),
        context=st.integers(1, 10**6),
    ),
)
def test_nothing_is_left_automatic_and_the_result_is_a_valid_stage(verb: str, facts: Facts) -> None:
    stage, defaults = resolve_auto(stage_types()[verb](), facts)  # type: ignore[call-arg]
    content = stage.model_dump()
    assert "auto" not in [value for key, value in content.items() if key != "format"]
    assert type(stage).model_validate(content | _plugins(stage)) == stage
    assert all(default.source and default.path.startswith(f"stages.{verb}.") for default in defaults)
    assert {default.path.rpartition(".")[2]: default.value for default in defaults}.items() <= content.items()
    assert resolve_auto(stage, facts) == (stage, ())


def _plugins(stage: StageSpec) -> dict[str, Any]:
    return {key: getattr(stage, key) for key in ("divergence", "strategy") if hasattr(stage, key)}


@given(st.floats(1e-7, 1), st.integers(1, 10**6), st.integers(1, 10**5), st.sampled_from([GPU, CPU]))
def test_settings_of_the_recipe_are_kept(rate: float, tokens: int, steps: int, facts: Facts) -> None:
    found = resolved(facts, learning_rate=rate, tokens_per_step=tokens, steps=steps)
    assert not {"learning_rate", "tokens_per_step", "steps", "epochs"} & set(found)


def test_learning_rates_differ_by_orders_of_magnitude_and_say_why() -> None:
    def rate(stage: StageSpec, **facts: Any) -> tuple[float, str]:
        _, defaults = resolve_auto(stage, Facts(device="cuda", bf16=True, **facts))
        (default,) = (default for default in defaults if default.path.endswith("learning_rate"))
        assert isinstance(default.value, float)
        return default.value, default.source

    big = 7_000_000_000
    assert rate(Distill(), parameters=big)[0] == 1e-5
    assert rate(Distill())[0] == 1e-5
    assert rate(Finetune(), parameters=big)[0] == 1e-5
    value, source = rate(Distill(), parameters=135_000_000)
    assert value == 1e-4
    assert "chosen" in source
    assert rate(Distill(), student_kind="adapter", parameters=big)[0] == 1e-4
    assert rate(Distill(), student_kind="cut", parameters=99_000_000)[0] == 5e-4
    own_text = Distill(strategy=StrategyChoice(name="builders.outside.strategy:first_rows"))
    for kind in ("full", "cut", "adapter"):
        value, source = rate(own_text, student_kind=kind, parameters=99_000_000)
        assert (value, source) == (3e-6, "text that the student wrote changes with every step")


@given(st.integers(0, 10**9), st.sampled_from([GPU, CPU]))
def test_an_automatic_run_has_fifty_steps_unless_steps_would_be_tiny(tokens: int, facts: Facts) -> None:
    found = resolved(Facts(device=facts.device, train_tokens=tokens))
    per_step, epochs = found["tokens_per_step"].value, found["epochs"].value
    assert isinstance(per_step, int)
    assert isinstance(epochs, float)
    assert 128 <= per_step <= (32768 if facts.accelerated else 256)
    assert per_step == 128 or tokens * epochs / per_step >= 50


def test_epochs_fall_with_the_size_of_the_data() -> None:
    sizes = {0: 3, 49_999: 3, 50_000: 2, 4_999_999: 2, 5_000_000: 1, None: 1}
    assert {size: resolved(Facts("cuda", train_tokens=size))["epochs"].value for size in sizes} == sizes


@given(st.integers(20, 10**6))
def test_a_run_is_validated_about_six_times_and_saved_about_ten(steps: int) -> None:
    found = resolved(CPU, steps=steps)
    every, save = found["validate_every"].value, found["checkpoint_every"].value
    assert isinstance(every, int)
    assert isinstance(save, int)
    assert 5 <= steps // every <= 7
    assert 9 <= steps // save <= 13 or steps < 40


@pytest.mark.parametrize(
    ("facts", "precision"),
    [
        (Facts("cuda", bf16=True, fp16=True), "bfloat16"),
        (Facts("cuda", fp16=True), "float16"),
        (Facts("cuda"), "float32"),
        (Facts("cpu", bf16=True), "bfloat16"),
        (Facts("cpu", fp16=True), "float32"),
        (Facts("mps", bf16=True, fp16=True), "float32"),
    ],
)
def test_precision_follows_what_is_fast_and_safe(facts: Facts, precision: str) -> None:
    assert resolved(facts)["precision"].value == precision


def test_micro_batches_and_texts_follow_the_device() -> None:
    assert resolved(GPU)["micro_batch_tokens"].value == 16384
    assert resolved(CPU)["micro_batch_tokens"].value == 384
    assert resolve_auto(Generate(), Facts("cpu", rows=5))[0].batch_rows == 5
    assert resolve_auto(Evaluate(), Facts("cpu", context=64))[0].max_new_tokens == 32
