"""Methods and the stages that they stand for."""

from __future__ import annotations

from typing import get_args

import pytest

from builders.recipes import read
from potstill.recipe.methods import METHODS
from potstill.recipe.recipe import Recipe, dump_yaml, expand, parse_recipe
from potstill.recipe.self_teaching import PrivilegedSpec, SelfTeacherSpec
from potstill.recipe.yaml import load_yaml
from potstill.stages.distill import Distill

ON_POLICY = ("gkd", "minillm", "distillm", "distillm2", "opd", "speculative_kd")


@pytest.mark.parametrize("method", ON_POLICY)
def test_an_on_policy_method_warms_the_student_up_before_it_writes(method: str) -> None:
    _, warm_up, stage, _ = expand(read(method=method)).stages
    assert isinstance(warm_up, Distill)
    assert isinstance(stage, Distill)
    assert not warm_up.strategy.student_writes
    assert stage.strategy.student_writes
    assert stage.name == "distill"
    assert stage.guards is not None
    assert "warm-up" in METHODS[method].source


def test_methods_expand_to_their_stages_and_name_their_source() -> None:
    expanded = {name: expand(read(method=name)).stages for name in METHODS}
    verbs = {name: [stage.verb for stage in stages] for name, stages in expanded.items()}
    assert verbs == {
        "kd": ["generate", "distill", "evaluate"],
        "seqkd": ["generate", "finetune", "evaluate"],
        "sft": ["finetune", "evaluate"],
        "self_distill": ["distill", "evaluate"],
        **{key: ["generate", "distill", "distill", "evaluate"] for key in ON_POLICY},
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


def test_a_student_that_teaches_itself_needs_no_other_answers_than_those_of_its_rows() -> None:
    (stage, _) = expand(read(method="self_distill")).stages
    assert isinstance(stage, Distill)
    assert (stage.self_teacher, stage.privileged) == (SelfTeacherSpec(rate=0.01), PrivilegedSpec())
    assert (stage.divergence.name, stage.strategy.name) == ("reverse_kl", "on_policy")
    assert "2601.19897" in METHODS["self_distill"].source


def test_a_recipe_with_stages_is_expanded_to_itself() -> None:
    recipe = read("distill")
    assert expand(recipe) is recipe


def test_every_method_that_a_recipe_may_name_has_stages() -> None:
    (methods, _) = get_args(Recipe.model_fields["method"].annotation)
    assert get_args(methods) == tuple(METHODS)
