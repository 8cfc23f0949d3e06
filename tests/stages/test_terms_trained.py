"""What a training with terms on the student's own text logs, and where it leads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from builders.jobs import Memory, events, student, trained
from builders.terms import stage
from builders.tiny import EOS, tiny_model
from potstill.recipe.methods import METHODS, stages_of
from potstill.types import Example


def rows(count: int = 4) -> list[Example]:
    ids = torch.randint(4, 128, (count, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example(f"r{i}", (*row, EOS), (False,) * 3 + (True,) * 6) for i, row in enumerate(ids)]


def job(folder, start, teacher, **options: Any):
    spec = stage(**options)
    wanted = {name: getattr(spec, name) for name in options} | {"strategy": spec.strategy}
    made = trained(folder, student(folder / "s", start), Memory(teacher), rows(), **wanted)
    return made, events(made.path, "step"), events(made.path, "validation")


def test_a_training_with_every_term_logs_each_of_them(tmp_path):
    _, steps, validations = job(
        tmp_path,
        tiny_model(seed=0),
        tiny_model(seed=1),
        divergence="reverse_kl",
        support=None,
        learning_rate=1e-2,
        policy_gradient={"whiten": True, "reward": "builders.outside.reward:brevity", "clip": 0.2},
        supervised={"divergence": "forward_kl", "ce_weight": 0.5},
        reference={},
        preference={},
        own_means=True,
    )
    assert {
        "divergence", "supervised_divergence", "supervised_cross_entropy", "policy_gradient",
        "sampled_reverse_kl", "clipped", "reference_divergence", "preference", "preferred",
    } <= set(steps[0])  # fmt: skip
    assert steps[0]["reference_divergence"] == pytest.approx(0.0, abs=1e-6)
    assert steps[1]["reference_divergence"] > 1e-4
    assert steps[0]["sampled_reverse_kl"] == pytest.approx(-0.5)
    assert {"loss", "forward_kl", "cross_entropy", "divergence"} <= set(validations[0])
    # Validation rows are no text of the student's: the supervised term measures them.
    assert validations[0]["loss"] == pytest.approx(
        0.5 * validations[0]["divergence"] + 0.5 * validations[0]["cross_entropy"], rel=1e-5
    )


def test_divergences_of_a_student_that_equals_its_teacher_stay_at_nothing(tmp_path):
    _, steps, validations = job(
        tmp_path,
        tiny_model(seed=1),
        tiny_model(seed=1),
        divergence="reverse_kl",
        support={"top_k": 5},
        supervised={"divergence": "skew_kl"},
        reference={"divergence": "forward_kl"},
    )
    for event in (*steps, *validations):
        assert event["loss"] == pytest.approx(0.0, abs=1e-6)
    assert steps[0]["grad_norm"] < 1e-5


SHORT = {"max_new_tokens": 8}
WAYS: dict[str, dict[str, Any]] = {
    "minillm": {
        "strategy": {"on_policy": {"teacher_share": 0.2, "collect": 2, "inner_epochs": 2, **SHORT}},
        "divergence": "reverse_kl",
        "policy_gradient": {"length_normalized": True, "whiten": True, "clip": 0.2, "reward_clip": 100},
    },
    "opd": {
        "strategy": {"on_policy": {"samples": 16, **SHORT}},  # a sampled token says little
        "divergence_weight": 0.0,
        "policy_gradient": {"discount": 0.0},
        "reference": {"weight": 0.1},
    },
    "top ids": {
        "strategy": {"on_policy": {"top_p": 0.9, **SHORT}},
        "divergence": "reverse_kl",
        "support": {"top_k": 8},
    },
    "distillm2": {
        "strategy": {"on_policy": {"keep_rows": True, **SHORT}},
        "divergence": "skew_reverse_kl",
        "supervised": {"divergence": "skew_kl"},
        "own_means": True,
    },
    "half": {
        "strategy": {"on_policy": {"on_policy_fraction": 0.5, **SHORT}},
        "divergence": "skew_reverse_kl",
        "supervised": {"divergence": "skew_kl"},
        "policy_gradient": {},
    },
}


@pytest.mark.parametrize("method", WAYS)
def test_a_student_that_writes_itself_comes_nearer_to_its_teacher(tmp_path, method):
    options = WAYS[method] | {"steps": 8, "learning_rate": 3e-3}
    _, steps, validations = job(tmp_path, tiny_model(seed=0), tiny_model(seed=1), **options)
    assert len(steps) == 8
    assert any(event["on_policy"] for event in steps)
    assert min(event["forward_kl"] for event in validations[1:]) < validations[0]["forward_kl"]


def test_pairs_of_a_step_are_the_rows_answer_and_the_students(tmp_path):
    """Equal models prefer neither: the loss of each pair is log 2."""
    options = {"strategy": {"on_policy": {"keep_rows": True, **SHORT}}, "preference": {"beta": 0.1}}
    _, steps, _ = job(tmp_path, tiny_model(seed=1), tiny_model(seed=1), **options)
    assert steps[0]["preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0]["tokens"] == 24 + steps[0]["rollout_tokens"]


def test_a_term_whose_weight_rises_from_nothing_trains_to_the_end(tmp_path):
    gradient = {"weight": {"linear": {"from": 0, "to": 1}}}
    options = {
        "strategy": {"on_policy": SHORT},
        "divergence": "reverse_kl",
        "policy_gradient": gradient,
        "steps": 2,
    }
    _, steps, _ = job(tmp_path, tiny_model(seed=0), tiny_model(seed=1), **options)
    assert ["policy_gradient" in event for event in steps] == [False, True]


def test_dropout_does_not_come_between_a_drawn_token_and_its_gradient(tmp_path, caplog):
    """With a ratio of 1 the loss of a token is its own log q / p."""
    start = tiny_model(seed=0, attention_dropout=0.5)
    options = WAYS["opd"] | {"strategy": {"on_policy": SHORT}, "steps": 1, "learning_rate": 1e-9}
    _, (step,), _ = job(tmp_path, start, tiny_model(seed=1), **options)
    assert step["policy_gradient"] == pytest.approx(step["sampled_reverse_kl"], rel=1e-5)
    assert caplog.text.count("dropout is off") == 1


# Cross-entropy on a text does not vanish, and a teacher that reads more than its student does not equal it.
NEVER_EQUAL = {"seqkd", "sft", "self_distill"}


def published(method: str) -> dict[str, Any]:
    """The last distill stage of a method, short and without hard labels; a share that would rise is 1."""
    *_, options = (stage["distill"] for stage in stages_of(method) if "distill" in stage)
    if "strategy" in options:
        options["strategy"]["on_policy"] |= SHORT
        if options["strategy"]["on_policy"].get("adaptive"):
            options["strategy"]["on_policy"] |= {"on_policy_fraction": 1.0, "adaptive": 0.0}
    if "supervised" in options:
        options["supervised"]["ce_weight"] = 0.0
    return {"strategy": "offline"} | options


EQUAL = WAYS | {f"{name} as published": published(name) for name in METHODS if name not in NEVER_EQUAL}


@pytest.mark.parametrize("method", EQUAL)
def test_a_student_that_writes_itself_and_equals_its_teacher_stays(tmp_path, method):
    """F4, through the strategy that writes: no loss and no gradient in the first step."""
    same = tiny_model(seed=1)
    _, steps, validations = job(tmp_path, same, tiny_model(seed=1), **EQUAL[method])
    if method.endswith("as published") and "offline" not in str(EQUAL[method]["strategy"]):
        assert steps[0]["on_policy"] == 1.0
    assert steps[0]["loss"] == pytest.approx(0.0, abs=1e-5)
    assert steps[0]["grad_norm"] < 1e-4
    assert validations[-1]["forward_kl"] == pytest.approx(0.0, abs=1e-5)


def test_two_terms_make_two_artifacts_and_the_same_one_is_kept(tmp_path):
    start, teacher = tiny_model(seed=0), tiny_model(seed=1)
    made, _, _ = job(tmp_path, start, teacher, supervised={}, reference={})
    again, _, _ = job(tmp_path, start, teacher, supervised={}, reference={})
    other, _, _ = job(tmp_path, start, teacher, supervised={}, reference={"weight": 0.2})
    assert again.key == made.key
    assert other.key != made.key
