"""The terms that a recipe's options make, and what a training with them logs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from builders.terms import WRITES, stage
from potstill.errors import RecipeError, SignalError
from potstill.objectives.by_origin import ByOrigin
from potstill.objectives.policy_gradient import PolicyGradient
from potstill.objectives.preference import Preference
from potstill.objectives.terms import reads_drawn, weighted
from potstill.objectives.token import TokenLoss
from potstill.stages._objective import objective_of, require_signal
from potstill.stages._terms import Beside

FROZEN = Beside(before=object(), special_ids=(0, 1), decode=str)


def terms(step: int = 0, **options: Any) -> list[tuple[float, Any]]:
    objective = replace(objective_of(stage(**options)), beside=FROZEN)
    return list(weighted(objective.terms(step, 4)))


def names(**options: Any) -> list[tuple[float, str]]:
    return [(weight, term.name) for weight, term in terms(**options)]


def test_without_terms_the_objective_is_the_token_loss_alone():
    objective = objective_of(stage())
    assert isinstance(objective.terms(0, 4), TokenLoss)
    assert objective.identity == objective_of(stage(strategy="offline")).identity


def test_minillm_is_three_terms_and_its_returns_begin_at_the_next_token():
    made = terms(
        divergence="reverse_kl",
        policy_gradient={"length_normalized": True, "clip": 0.2, "reward_clip": 100},
        supervised={"ce_weight": 1.0},
        strategy={WRITES: {"teacher_share": 0.2}},
    )
    (_, exact), (_, other), (_, gradient) = made
    assert isinstance(exact, ByOrigin)
    assert (exact.of_student, exact.importance, exact.teacher_share) == (True, "per_token", 0.2)
    assert (other.of_student, other.term.ce_weight, other.name) == (False, 1.0, "supervised_forward_kl")
    assert gradient.term == PolicyGradient(
        following=True, length_normalized=True, clip=0.2, reward_clip=100, teacher_share=0.2
    )


@pytest.mark.parametrize(
    ("options", "following"),
    [
        ({"divergence": "reverse_kl"}, True),
        ({"divergence": "forward_kl"}, False),
        ({"divergence": "reverse_kl", "divergence_weight": 0.0}, False),
    ],
)
def test_a_return_begins_at_the_next_token_only_beside_the_exact_term(options, following):
    made = terms(policy_gradient={}, **options)
    assert made[-1][1].term.following is following


def test_a_divergence_without_weight_is_left_out_and_still_validates():
    assert names(divergence_weight=0.0, policy_gradient={"discount": 0.0}) == [(1.0, "policy_gradient")]
    objective = objective_of(stage(divergence_weight=0.0, policy_gradient={}))
    assert objective.validated(4).name == "forward_kl"


def test_weights_may_move_and_none_leaves_a_step_without_terms():
    moving = {"linear": {"from": 1, "to": 0}}
    options = {"divergence": "skew_reverse_kl", "supervised": {"divergence": "skew_kl", "weight": moving}}
    assert names(**options) == [(1.0, "skew_reverse_kl"), (1.0, "supervised_skew_kl")]
    assert names(step=3, **options) == [(1.0, "skew_reverse_kl")]
    only = terms(step=3, divergence_weight=moving, support={"top_k": 4})
    assert [weight for weight, _ in only] == [0.0]


def test_a_skew_may_move_over_the_stage():
    curriculum = {"skew_reverse_kl": {"alpha": {"linear": {"from": 0.1, "to": 0.5}}}}
    first, last = (terms(step=at, divergence=curriculum, supervised={})[0][1].term for at in (0, 3))
    assert first.divergence.options["alpha"] == pytest.approx(0.1)
    assert last.divergence.options["alpha"] == pytest.approx(0.5)


def test_a_support_leaves_special_tokens_out_unless_told():
    ((_, loss),) = terms(divergence="reverse_kl", support={"top_k": 8})
    assert (loss.top.k, loss.top.left_out) == (8, (0, 1))
    ((_, loss),) = terms(divergence="reverse_kl", support={"top_k": 8, "mask_special": False})
    assert loss.top.left_out == ()


def test_own_means_reach_every_term():
    made = terms(supervised={}, reference={}, policy_gradient={}, own_means=True)
    assert [term.own_mean for _, term in made] == [True] * 4


def test_terms_say_what_they_read_of_the_drawing():
    assert reads_drawn(terms(policy_gradient={}))
    assert reads_drawn(terms(preference={}))
    assert isinstance(terms(preference={"beta": 0.3})[-1][1], Preference)
    assert not reads_drawn(terms(supervised={}, reference={}))


@pytest.mark.parametrize("ends", [(0, 1), (1, 0)])
def test_drawn_tokens_are_scored_where_any_step_reads_them(ends):
    moving = {"linear": {"from": ends[0], "to": ends[1]}}
    for options in ({"policy_gradient": {"weight": moving}}, {"preference": {"weight": moving}}):
        assert objective_of(stage(**options)).reads_drawn(4)
    assert not objective_of(stage(supervised={"weight": moving})).reads_drawn(4)


def test_weights_of_a_mixture_are_read_from_the_drawing():
    mixed = {WRITES: {"teacher_share": 0.2}}
    off = {"policy_gradient": {"weight": 0.0}, "divergence": "reverse_kl"}
    assert reads_drawn(terms(strategy=mixed, **off))
    none = {"weight": 0.0, "importance": "none"}
    assert not reads_drawn(terms(strategy=mixed, **off | {"policy_gradient": none}))
    assert not reads_drawn(terms(**off))


def test_every_option_of_a_term_tells_two_objectives_apart():
    ways: list[dict[str, Any]] = [
        {},
        {"divergence_weight": 0.5},
        {"support": {"top_k": 8}},
        {"support": {"top_k": 8, "mask_special": False}},
        {"policy_gradient": {}},
        {"policy_gradient": {"baseline": 1.0}},
        {"policy_gradient": {"reward": "builders.outside.reward:brevity"}},
        {"supervised": {}},
        {"supervised": {"divergence": {"skew_kl": {"alpha": 0.2}}}},
        {"supervised": {}, "own_means": True},
        {"reference": {}},
        {"reference": {"divergence": "forward_kl"}},
        {"preference": {"beta": 0.5}},
    ]
    identities = [str(objective_of(stage(**options)).identity) for options in ways]
    assert len(set(identities)) == len(ways)


@pytest.mark.parametrize("term", ["policy_gradient", "supervised", "reference", "preference"])
def test_a_term_on_the_students_text_is_refused_where_it_writes_none(term):
    with pytest.raises(RecipeError, match="no text of the student's") as raised:
        objective_of(stage(strategy="offline", **{term: {}}))
    assert raised.value.path == f"stages.distill.{term}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence_weight": 0.0}, "nothing to minimise"),
        ({"divergence_weight": {"linear": {"from": 1, "to": -1}}}, "at 0 or above"),
        ({"policy_gradient": {"weight": {"linear": {"from": 1, "to": -1}}}}, "at 0 or above"),
        ({"policy_gradient": {}, "token_weights": "entropy"}, "one term's weights"),
        ({"supervised": {}, "ce_weight": 0.5}, "student's own text alone"),
        ({"policy_gradient": {"counts_from": "next", "discount": 0.0}}, "leaves nothing"),
        ({"policy_gradient": {"discount": 0.0}, "divergence": "reverse_kl"}, "leaves nothing"),
        ({"policy_gradient": {}, "strategy": {WRITES: {"proposals": 25}}}, "no mixture wrote it"),
        ({"policy_gradient": {"clip": 1.0}}, "policy_gradient"),
        ({"policy_gradient": {"reward": "brevity"}}, "reward"),
        ({"support": {"top_k": 0}}, "top_k"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        stage(**options)


def test_pairs_are_refused_where_a_step_has_one_side_alone():
    with pytest.raises(RecipeError, match="has no pairs") as raised:
        objective_of(stage(strategy="on_policy", preference={}))
    assert "keep_rows: true" in raised.value.fix
    objective_of(stage(strategy={"on_policy": {"keep_rows": True}}, preference={}))


def test_pairs_are_refused_where_the_students_answers_are_of_earlier_steps():
    with pytest.raises(RecipeError, match="earlier steps") as raised:
        objective_of(stage(strategy={"on_policy": {"keep_rows": True, "replay": 8}}, preference={}))
    assert "replay" in raised.value.fix


@pytest.mark.parametrize("strategy", [{}, {"replay": 8}, {"collect": 2}])
def test_a_loss_on_rows_is_refused_where_no_step_holds_any(strategy):
    with pytest.raises(RecipeError, match="no text to read") as raised:
        objective_of(stage(strategy={"on_policy": strategy}, supervised={}))
    assert raised.value.path == "stages.distill.supervised"
    assert "keep_rows: true" in raised.value.fix
    for other in ({"keep_rows": True}, {"on_policy_fraction": 0.5}):
        objective_of(stage(strategy={"on_policy": other}, supervised={}))


def test_a_reward_that_does_not_exist_is_refused_before_training():
    with pytest.raises(RecipeError, match="has no function brief"):
        objective_of(stage(policy_gradient={"reward": "builders.outside.reward:brief"}))


@pytest.mark.parametrize(
    ("options", "provides", "path"),
    [
        ({"support": {}, "divergence": "logit_mse"}, {"dense"}, "support"),
        ({"support": {}}, {"topk"}, "support"),
        ({"policy_gradient": {}}, {"topk"}, "policy_gradient"),
        ({"preference": {}}, {"topk"}, "preference"),
        ({"supervised": {"divergence": "logit_mse"}}, {"topk"}, "supervised.divergence"),
    ],
)
def test_a_teacher_that_cannot_serve_a_term_is_refused(options, provides, path):
    objective = objective_of(stage(**options))
    with pytest.raises(SignalError) as raised:
        require_signal(objective, "distill", frozenset(provides))
    assert raised.value.path == f"stages.distill.{path}"
