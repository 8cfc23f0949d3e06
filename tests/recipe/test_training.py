"""The options of training stages, and what they become where they are `auto`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.recipes import problems, read
from potstill.recipe.defaults import Default, Facts
from potstill.recipe.specs import StrategyChoice
from potstill.recipe.stages import StageSpec, resolve_auto
from potstill.stages.distill import Distill
from potstill.stages.finetune import Finetune

GPU = Facts(device="cuda", bf16=True, fp16=True)
CPU = Facts(device="cpu")


def resolved(facts: Facts, verb: str = "distill", **options: Any) -> dict[str, Default]:
    stage = read(*(["distill"] if verb == "control" else []), {verb: options}).stages[-1]
    _, defaults = resolve_auto(stage, facts)
    return {default.path.rpartition(".")[2]: default for default in defaults}


@given(st.floats(1e-7, 1), st.integers(1, 10**6), st.integers(1, 10**5), st.sampled_from([GPU, CPU]))
def test_settings_of_the_recipe_are_kept(rate: float, tokens: int, steps: int, facts: Facts) -> None:
    defaults = resolved(facts, learning_rate=rate, tokens_per_step=tokens, steps=steps)
    assert not {"learning_rate", "tokens_per_step", "steps", "epochs"} & defaults.keys()


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
def test_an_automatic_run_has_fifty_steps_within_the_bounds_of_a_step(tokens: int, facts: Facts) -> None:
    """Steps of 128 tokens where fifty would be smaller, and of what is usual on the machine where larger."""
    usual = 32768 if facts.accelerated else 256
    defaults = resolved(Facts(device=facts.device, train_tokens=tokens))
    per_step, epochs = defaults["tokens_per_step"].value, defaults["epochs"].value
    assert isinstance(per_step, int)
    assert isinstance(epochs, float)
    total = int(tokens * epochs)
    if total < 50 * 129:
        assert per_step == 128
    elif total >= 50 * usual:
        assert per_step == usual
    else:
        assert math.ceil(total / per_step) in (50, 51)


def test_epochs_fall_with_the_size_of_the_data() -> None:
    sizes = {0: 3, 49_999: 3, 50_000: 2, 4_999_999: 2, 5_000_000: 1, None: 1}
    assert {size: resolved(Facts("cuda", train_tokens=size))["epochs"].value for size in sizes} == sizes


@given(st.integers(1, 10**6))
def test_a_run_is_validated_about_six_times(steps: int) -> None:
    """As near as whole steps allow, and at every step of a short run."""
    every = resolved(CPU, steps=steps)["validate_every"].value
    assert isinstance(every, int)
    assert every == 1 if steps <= 6 else abs(every - steps / 6) <= 0.5


def validated(rows: int, steps: int, verb: str = "distill", **options: Any) -> tuple[int, int, float]:
    """Validations, rows of each, and their cost as a share of the training's: rows of 300 tokens, 100 scored.

    Cost is counted in tokens, for the dearest teacher: its pass is all that counts. A stage without a teacher
    trains with three passes of its student and validates with one.
    """
    sizes = {"train_tokens": 100 * rows, "row_tokens": 300 * rows}
    kept = {
        "validation_rows": min(200, max(16, rows // 20)),
        "validation_tokens": 300 * min(200, max(16, rows // 20)),
    }
    defaults = resolved(Facts("cpu", **sizes, **kept), verb, steps=steps, tokens_per_step=256, **options)
    chosen = {
        key: defaults[key].value if key in defaults else options[key]
        for key in ("validate_every", "validation_rows")
    }
    count = 1 + math.ceil(steps / chosen["validate_every"])
    trained_on = 300 * steps * 256 / 100 * (1 if verb == "distill" else 3)
    return count, chosen["validation_rows"], 300 * count * chosen["validation_rows"] / trained_on


@given(st.integers(20, 10**5), st.integers(20, 10**5), st.sampled_from(["distill", "finetune", "control"]))
def test_validations_cost_a_twentieth_of_the_training_at_most(rows: int, steps: int, verb: str) -> None:
    """Four thousand rows and 56 steps: it was seven times 200 rows against 450 rows of training."""
    count, few, cost = validated(rows, steps, verb)
    assert cost <= 0.05
    assert 2 <= count <= 7
    assert few >= 1


def test_few_rows_are_validated_less_often_and_many_as_often_as_is_of_use() -> None:
    assert [validated(4000, steps)[:2] for steps in (56, 500, 20_000)] == [(2, 3), (4, 16), (7, 200)]


def test_settings_of_validations_are_kept_and_the_other_one_follows() -> None:
    assert validated(4000, 400, validation_rows=20)[:2] == (2, 20)
    assert validated(4000, 400, validate_every=20)[:2] == (21, 2)
    count, few, cost = validated(4000, 56, validate_every=8, validation_rows=200)
    assert (count, few) == (8, 200)
    assert cost > 10


def test_a_cost_that_the_recipe_asks_for_is_said() -> None:
    facts = Facts("cpu", train_tokens=10**5, row_tokens=10**5, validation_rows=100, validation_tokens=10**4)
    said = resolved(facts, steps=100, tokens_per_step=100, validation_rows=100)["validate_every"].source
    assert (
        said == "2 validations in 100 steps, with the one before them; at most 200.0% of the training's cost"
    )


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


def test_micro_batches_follow_the_device() -> None:
    assert resolved(GPU)["micro_batch_tokens"].value == 16384
    assert resolved(CPU)["micro_batch_tokens"].value == 384
    assert resolved(Facts("cpu", bf16=True))["micro_batch_tokens"].value == 768


def test_what_only_changes_memory_and_pace_is_no_part_of_the_identity() -> None:
    base = Distill().identity()
    assert (
        Distill(micro_batch_tokens=64, checkpoint_every=3, activation_checkpointing=True).identity() == base
    )
    assert Distill(warmup=0.1).identity() != base


def test_an_option_that_came_later_leaves_the_keys_of_older_trainings() -> None:
    """These names are in the keys of stored trainings: one more, at its default too, would do them all again."""
    assert set(Distill().identity()) == {
        "learning_rate", "tokens_per_step", "schedule", "warmup", "weight_decay", "betas", "max_grad_norm", "precision",
        "validate_every", "best_by", "patience", "packing", "export_dtype", "normalize",
    }  # fmt: skip
    assert Distill(freeze_head=True).identity() == Distill().identity() | {"freeze_head": True}


def test_a_student_is_exported_as_its_teacher_is_stored_unless_the_recipe_says_otherwise() -> None:
    assert resolved(CPU)["export_dtype"].value == "float32"
    assert resolved(Facts("cpu", teacher_format="bfloat16"))["export_dtype"].value == "bfloat16"
    told = resolved(Facts("cpu", teacher_format="bfloat16"), export_dtype="float32")
    assert "export_dtype" not in told
    assert Distill(export_dtype="bfloat16").identity() != Distill().identity()


OWN_TEXT = {"on_policy": {"collect": 4, "inner_epochs": 4}}


def test_steps_count_every_pass_over_their_rows() -> None:
    """Thirty steps of rows, each trained on four times: a validation each twentieth of the 120 steps."""
    facts = Facts("cpu", train_tokens=3000)
    plain = resolved(facts, epochs=1, tokens_per_step=100)
    passes = resolved(facts, epochs=1, tokens_per_step=100, strategy=OWN_TEXT)
    assert (plain["validate_every"].value, passes["validate_every"].value) == (5, 20)


def test_a_student_that_learns_from_its_own_text_keeps_its_last_weights() -> None:
    assert resolved(CPU)["best_by"].value == "loss"
    assert resolved(CPU, strategy=OWN_TEXT)["best_by"].value == "last"
    assert resolved(CPU, strategy=OWN_TEXT, patience=2)["best_by"].value == "loss"
    assert "best_by" not in resolved(CPU, strategy=OWN_TEXT, best_by="own_kl", patience=2)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"best_by": "last", "patience": 2}, "patience"),
        ({"best_by": "own_kl"}, "best_by"),
    ],
)
def test_a_choice_of_the_best_weights_that_compares_nothing_is_refused(options: Any, key: str) -> None:
    assert list(problems({"distill": options})) == [f"stages.distill.{key}"]
