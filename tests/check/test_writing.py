"""What a check says that a student will write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import places
from builders.jobs import events, spec_of
from builders.written import on_policy, rows
from potstill.check import check, writing
from potstill.check.writing import Amount, amounts
from potstill.console import Console
from potstill.recipe.specs import StrategyChoice
from potstill.stages._own_text import VALIDATED
from potstill.stages.distill import Distill


def stage(strategy=None, **options):
    choice = StrategyChoice(name="on_policy", options={"max_new_tokens": 8} | (strategy or {}))
    return spec_of(Distill, strategy=choice, **{"steps": 6, "tokens_per_step": 10, **options})


def amount(examples=None, strategy=None, reckoned=0, **options) -> Amount:
    spec = stage(strategy, **options)
    return amounts([spec], examples or rows(), {}, reckoned=reckoned, seed=0)[spec.name]


@pytest.mark.parametrize(
    ("strategy", "prompts", "steps"),
    [
        ({}, 12, 6),
        ({"samples": 3}, 12, 6),
        ({"inner_epochs": 3}, 4, 2),
        ({"collect": 4, "inner_epochs": 4}, 8, 4),
        ({"collect": 4}, 16, 8),
    ],
    ids=str,
)
def test_the_plan_of_the_run_says_how_many_prompts_are_answered(tmp_path, strategy, prompts, steps):
    """Six steps of two rows; what a training then writes is that many answers, none longer than the limit."""
    reckoned = amount(strategy=strategy)
    assert (reckoned.steps, reckoned.prompts, reckoned.samples) == (
        steps,
        prompts,
        strategy.get("samples", 1),
    )
    made = on_policy(tmp_path, strategy=strategy)
    steps_made = events(made.path, "step")
    assert sum(event.get("written", 0) for event in steps_made) == prompts * strategy.get("samples", 1)
    assert sum(event.get("written_tokens", 0) for event in steps_made) <= reckoned.in_all


@pytest.mark.parametrize("strategy", [{"on_policy_fraction": 0.5}, {"replay": 4}], ids=str)
def test_steps_that_may_write_nothing_are_counted_and_named(tmp_path, strategy):
    reckoned = amount(strategy=strategy)
    written = sum(
        event.get("written", 0) for event in events(on_policy(tmp_path, strategy=strategy).path, "step")
    )
    assert written < reckoned.prompts
    assert "some steps write nothing" in reckoned.in_words(None)
    assert "some steps" not in amount().in_words(None)


def test_a_stage_with_rows_of_its_own_is_reckoned_by_these():
    one, other = stage(), stage(name="other")
    found = amounts([one, other], rows(answer=5), {"other": rows(answer=10)}, reckoned=5, seed=0)
    assert (found["distill"].prompts, found["distill"].reckoned) == (12, 5)
    assert (found["other"].prompts, found["other"].reckoned) == (6, 0)


def test_a_training_in_epochs_asks_every_prompt_as_often():
    """However long the answers are that decide how many steps an epoch has."""
    for answer in (2, 5, 9):
        assert amount(rows(answer=answer), steps=None, epochs=2.0).prompts == 12


def test_steps_of_answers_that_are_still_to_be_written_are_called_reckoned():
    waiting = [replace(row, room=20) for row in rows()]
    said = amount(waiting, reckoned=25).in_words(None)
    assert "more prompts in a step, where the teacher's answers are shorter than 25 tokens" in said
    assert "at most" not in said
    for bound in (amount(waiting, reckoned=25, steps=None, epochs=1.0), amount(waiting)):
        assert "tokens at most" in bound.in_words(None)
        assert "shorter" not in bound.in_words(None)


def test_more_steps_than_are_planned_have_as_many_prompts_as_these(monkeypatch):
    monkeypatch.setattr(writing, "PLANNED", 4)
    assert amount(steps=6).prompts == 12
    assert amount(steps=10**6).prompts == 2 * 10**6


def test_answers_that_choose_the_weights_are_counted_beside():
    one = amount(best_by="own_kl", validate_every=2, validation_rows=5)
    assert one.measured == 4 * 5
    assert one.in_all == (12 + 20) * 8
    assert amount(best_by="own_kl", validate_every=2, validation_rows=200).measured == 4 * VALIDATED


def test_the_amount_in_words_is_a_bound_with_its_factors_and_time():
    said = Amount(steps=20, prompts=60, samples=2, tokens=64).in_words(pace=0.01)
    assert said == (
        "the stage writes 7680 tokens at most, 1m 17s at this pace (60 prompts in 20 steps × 2 samples × 64 tokens)"
    )
    assert "pace" not in Amount(20, 60, 2, 64).in_words(None)
    assert "(60 prompts in 20 steps × 64 tokens)" in Amount(20, 60, 1, 64).in_words(None)


def test_stages_whose_student_writes_nothing_have_no_amount():
    offline = spec_of(Distill)
    assert amounts([offline, spec_of()], rows(), {}, reckoned=0, seed=0) == {}


def test_the_preflight_says_what_the_writing_will_take_at_the_measured_pace(tmp_path):
    """24 rows whose answers stand in a step of 12 tokens, by the plan of the run."""
    stages = (
        "[{distill: {steps: 3, tokens_per_step: 12, divergence: reverse_kl, guards: null, "
        "strategy: {on_policy: {max_new_tokens: 5, samples: 2}}}}]"
    )
    places.write(tmp_path, stages=stages)
    report = check(tmp_path / "r.yaml", console=Console(quiet=True))
    (said,) = (item.detail for item in report.items if item.name == "first rollouts of distill")
    assert "a thousand tokens of its text take" in said
    assert "at most, 0s at this pace" in said
    assert "prompts in 3 steps × 2 samples × 5 tokens" in said
