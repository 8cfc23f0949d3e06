"""The estimator of an on-policy stage, enumerated: each setting is in the class that it says."""

from __future__ import annotations

import pytest
import torch

from builders import places
from builders.recipes import read
from builders.tiny import tiny_model
from potstill.check import check, estimator
from potstill.check.estimator import proof
from potstill.check.world import World, world_of
from potstill.console import Console


@pytest.fixture(scope="module")
def world() -> World:
    generator = torch.Generator().manual_seed(3)
    return World(*(torch.randn(6, 5, dtype=torch.float64, generator=generator) for _ in range(2)))


def stage(strategy=None, **options):
    recipe = read({"distill": {"strategy": {"on_policy": strategy or {}}, "steps": 2, **options}})
    return recipe.stages[0]


RETURNS = {"divergence": "reverse_kl", "divergence_weight": 0.0}


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ({}, RETURNS | {"policy_gradient": {}}),
        ({}, RETURNS | {"policy_gradient": {"baseline": 0.7}}),
        ({}, RETURNS | {"policy_gradient": {"clip": 0.2}}),
        ({}, {"divergence": "reverse_kl", "policy_gradient": {"counts_from": "next"}}),
        ({"teacher_share": 0.2}, RETURNS | {"policy_gradient": {"importance": "cumulative"}}),
        (
            {"teacher_share": 0.2},
            {"divergence": "reverse_kl", "policy_gradient": {"importance": "cumulative"}},
        ),
    ],
)
def test_settings_without_corrections_are_unbiased(world, strategy, options):
    passed, said = proof(stage(strategy, **options), world)
    assert passed, said
    assert "unbiased" in said
    assert "biased by" not in said


@pytest.mark.parametrize(
    ("strategy", "gradient", "options", "reason"),
    [
        ({}, {"discount": 0.95}, RETURNS, "discount 0.95"),
        ({}, {"length_normalized": True}, RETURNS, "length_normalized"),
        ({}, {"whiten": True}, RETURNS, "whiten"),
        ({}, {"reward_clip": 0.1}, RETURNS, "reward_clip"),
        ({}, {"counts_from": "this"}, {"divergence": "reverse_kl"}, "own reward"),
        ({"teacher_share": 0.3}, {}, RETURNS, "importance per_token"),
        ({"teacher_share": 0.3}, {"importance": "none"}, RETURNS, "importance none"),
        ({}, {}, {"divergence": "forward_kl"}, "forward_kl"),
    ],
)
def test_a_biased_setting_says_why_and_how_far_it_is(world, strategy, gradient, options, reason):
    passed, said = proof(stage(strategy, policy_gradient=gradient, **options), world)
    assert passed, said
    assert "biased by" in said
    assert reason in said
    got, whole = (
        world.expected(
            estimator.objective_of(stage(strategy, policy_gradient=gradient, **options)).terms(0, 2),
            strategy.get("teacher_share", 0.0),
        ),
        world.whole_answers(),
    )
    assert float((got - whole).norm() / whole.norm()) > 1e-3  # it is biased indeed


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ({}, {"divergence": "forward_kl"}),
        ({}, {"divergence": "reverse_kl"}),
        ({}, {"divergence": {"jsd": {"beta": 0.9}}, "temperature": 2.0}),
        ({"teacher_share": 0.3}, {"divergence": {"skew_kl": {"alpha": 0.1}}}),
        ({}, RETURNS | {"policy_gradient": {"discount": 0.0}}),
        ({}, RETURNS | {"policy_gradient": {"discount": 0.0, "weight": 0.5, "reward_scale": 2.0}}),
    ],
)
def test_a_divergence_on_the_students_text_is_the_gradient_at_each_token(world, strategy, options):
    passed, said = proof(stage(strategy, **options), world)
    assert passed, said
    assert "at each token" in said


@pytest.mark.parametrize(
    ("strategy", "gradient", "reason"),
    [
        ({}, {"whiten": True}, "whiten"),
        ({}, {"reward_clip": 0.1}, "reward_clip"),
        ({}, {"length_normalized": True}, "length_normalized"),
        ({"teacher_share": 0.3}, {"importance": "none"}, "importance none"),
        ({"teacher_share": 0.3}, {"clip": 0.2}, "clip"),
    ],
)
def test_a_correction_of_the_sampled_token_is_named_and_the_plain_one_proven(
    world, strategy, gradient, reason
):
    passed, said = proof(stage(strategy, policy_gradient={"discount": 0.0, **gradient}, **RETURNS), world)
    assert passed, said
    assert f"biased by {reason}" in said
    assert "at each token" in said


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ({}, {"divergence": "adaptive_kl"}),
        ({}, {"divergence": "taid"}),
        ({"teacher_share": 0.3}, {"divergence": "entropy_gated_kl"}),
        ({}, {"divergence": "forward_kl", "token_weights": "entropy"}),
        ({}, {"divergence": "reverse_kl", "token_weights": "position", "temperature": 2.0}),
        ({"teacher_share": 0.3}, RETURNS | {"policy_gradient": {"discount": 0.0}}),
        (
            {"teacher_share": 0.3},
            RETURNS | {"policy_gradient": {"discount": 0.0, "importance": "cumulative", "baseline": 0.5}},
        ),
    ],
)
def test_weights_that_are_held_still_are_part_of_the_gradient_at_each_token(world, strategy, options):
    passed, said = proof(stage(strategy, **options), world)
    assert passed, said
    assert "biased" not in said


def test_a_support_of_few_ids_is_named(world):
    passed, said = proof(stage({}, divergence="reverse_kl", support={"top_k": 3}), world)
    assert passed, said
    assert "biased by support of 3 ids" in said


@pytest.mark.parametrize(
    ("strategy", "options", "reason"),
    [
        ({"sampling_temperature": 0.5}, {}, "sampling_temperature 0.5"),
        ({"top_p": 0.9}, {}, "top_p 0.9"),
        ({"top_k": 20}, {}, "top_k 20"),
        ({"proposals": 5}, {"policy_gradient": {"importance": "none"}}, "proposals 5"),
        ({"inner_epochs": 4}, {}, "inner_epochs 4"),
        ({"collect": 2}, {}, "collect 2"),
        ({"replay": 8}, {}, "replay 8"),
        ({}, {"normalize": "sequence_mean"}, "normalize sequence_mean"),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_text_that_is_not_the_students_distribution_is_never_called_unbiased(
    world, strategy, options, reason, tokens
):
    options = {"divergence": "reverse_kl", "policy_gradient": {}} | options
    if tokens:
        del options["policy_gradient"]
    passed, said = proof(stage(strategy, **options), world)
    assert passed, said
    assert said.startswith(f"biased by {reason}")
    assert f"not counting {reason}" in said


def test_rows_and_pairs_beside_the_text_play_no_part(world):
    options = {"divergence": "reverse_kl", "policy_gradient": {}, "supervised": {}, "preference": {}}
    passed, said = proof(stage({"keep_rows": True}, **options), world)
    assert passed, said
    assert "unbiased" in said


def test_a_gradient_of_the_wrong_sign_fails(world, monkeypatch):
    monkeypatch.setattr(World, "expected", lambda self, terms, share: -self.whole_answers())
    assert not proof(stage({}, **RETURNS, policy_gradient={}), world)[0]
    assert not proof(stage({}, divergence="reverse_kl"), world)[0]


def test_a_world_holds_both_models_distributions_of_the_likeliest_ids():
    student, teacher = tiny_model(seed=1), tiny_model(seed=2)
    prompt = torch.tensor([[1, 20, 30]])
    world = world_of(student, teacher, prompt, 128)
    probabilities = [model(prompt).logits[0, -1].double().softmax(-1) for model in (student, teacher)]
    ids = (probabilities[0] + probabilities[1]).topk(5).indices
    wanted = student(prompt).logits[0, -1][ids].double()
    torch.testing.assert_close(world.student[5], wanted, rtol=1e-5, atol=1e-5)
    after = teacher(torch.cat([prompt, ids[2].view(1, 1)], 1)).logits[0, -1][ids].double()
    torch.testing.assert_close(world.teacher[2], after, rtol=1e-4, atol=1e-4)


def items(place, stages):
    places.write(place, stages=stages)
    report = check(place / "r.yaml", console=Console(quiet=True))
    return {item.name: item for item in report.items}


def test_equal_models_leave_nothing_to_measure():
    """A relative distance from a gradient of 0 is no proof of anything."""
    table = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    passed, said = proof(stage({}), World(table, table + 3))
    assert passed
    assert "the same" in said


def test_the_preflight_names_the_estimator_and_a_cold_student(tmp_path):
    stage = "{distill: {steps: 2, divergence: reverse_kl, strategy: {on_policy: {max_new_tokens: 8}}}}"
    said = items(tmp_path, f"[{stage}]")
    assert said["estimator of distill"].passed
    assert "at each token" in said["estimator of distill"].detail
    assert said["first rollouts of distill"].passed
    assert "warm_up" in said["first rollouts of distill"].detail  # the way out
    assert all(item.passed for item in said.values())


def test_a_recipe_that_trains_on_rows_alone_has_no_such_items(tmp_path):
    assert not [
        name
        for name in items(tmp_path, "[{distill: {steps: 2}}]")
        if "rollouts" in name or "estimator" in name
    ]
