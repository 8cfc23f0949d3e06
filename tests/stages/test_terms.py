"""The terms that a recipe's options make, and what a training with them logs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from builders.jobs import Memory, events, student, trained
from builders.tiny import EOS, tiny_model
from potstill.errors import RecipeError, SignalError
from potstill.objectives.by_origin import ByOrigin
from potstill.objectives.policy_gradient import PolicyGradient
from potstill.objectives.preference import Preference
from potstill.objectives.terms import reads_drawn, weighted
from potstill.objectives.token import TokenLoss
from potstill.stages._objective import objective_of, require_signal
from potstill.stages._terms import Beside
from potstill.stages.distill import Distill
from potstill.types import Example

WRITES = "builders.outside.written:twice"
FROZEN = Beside(before=object(), special_ids=(0, 1), decode=str)


def stage(**options: Any) -> Distill:
    strategy = options.pop("strategy", WRITES)
    return Distill.model_validate({"strategy": strategy, "steps": 4, **options})


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
METHODS: dict[str, dict[str, Any]] = {
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


@pytest.mark.parametrize("method", METHODS)
def test_a_student_that_writes_itself_comes_nearer_to_its_teacher(tmp_path, method):
    options = METHODS[method] | {"steps": 8, "learning_rate": 3e-3}
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
    options = METHODS["opd"] | {"strategy": {"on_policy": SHORT}, "steps": 1, "learning_rate": 1e-9}
    _, (step,), _ = job(tmp_path, start, tiny_model(seed=1), **options)
    assert step["policy_gradient"] == pytest.approx(step["sampled_reverse_kl"], rel=1e-5)
    assert caplog.text.count("dropout is off") == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_student_that_writes_itself_and_equals_its_teacher_stays(tmp_path, method):
    """F4, through the strategy that writes: no loss and no gradient in the first step."""
    same = tiny_model(seed=1)
    _, steps, validations = job(tmp_path, same, tiny_model(seed=1), **METHODS[method])
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
