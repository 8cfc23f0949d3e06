"""Guards: what they let pass, what gives an alarm, what stops a training, and that a resume changes nothing."""

from __future__ import annotations

import json
import math

import pytest

from potstill.errors import TrainingStopped
from potstill.recipe.guards import Guards as Limits
from potstill.train.guards import GUARDS, Guards

HEALTHY = {"repetition": 0.02, "truncated": 0.1, "rollout_length": 40.0, "entropy_ratio": 0.9, "overlap": 0.8}
SICK = {"repetition": 0.7, "truncated": 0.99, "rollout_length": 400.0, "entropy_ratio": 0.02, "overlap": 0.05}


def guards(window=3, **limits) -> Guards:
    return Guards(Limits(window=window, **limits), "polish")


def state_after(guards: Guards, *steps):
    state: dict = {}
    for figures in steps:
        state = guards.after(state, figures)
    return state


def healthy_then(guards: Guards, **changed):
    return state_after(guards, *[HEALTHY] * 3, *[HEALTHY | changed] * 3)


def test_a_healthy_training_gives_no_alarm():
    judge = guards()
    state = state_after(judge, *[HEALTHY] * 10)
    assert judge.stop(state) is None
    assert judge.alarms(state)[1] == []


@pytest.mark.parametrize("name", GUARDS)
def test_each_guard_stops_a_training_whose_figure_is_beyond_its_limit(name):
    judge, figure = guards(), GUARDS[name].figure
    found = judge.stop(healthy_then(judge, **{figure: SICK[figure]}))
    assert found is not None
    assert found.guard == name
    assert not found.cold


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_that_is_off_stops_nothing(name):
    figure = GUARDS[name].figure
    judge = guards(**{name: None})
    assert judge.stop(healthy_then(judge, **{figure: SICK[figure]})) is None


@pytest.mark.parametrize("name", GUARDS)
def test_no_guard_acts_before_its_window_is_full(name):
    judge, figure = guards(window=4), GUARDS[name].figure
    assert judge.stop(state_after(judge, *[HEALTHY | {figure: SICK[figure]}] * 3)) is None


def test_one_bad_step_does_not_stop_a_training():
    judge = guards()
    state = state_after(judge, *[HEALTHY] * 5, HEALTHY | {"repetition": 1.0}, HEALTHY)
    assert judge.stop(state) is None


@pytest.mark.parametrize(("value", "expected"), [(0.24, []), (0.26, ["repetition"])])
def test_an_alarm_comes_at_half_of_an_upper_limit(value, expected):
    judge = guards()
    _, found = judge.alarms(healthy_then(judge, repetition=value))
    assert [finding.guard for finding in found] == expected


@pytest.mark.parametrize(("value", "expected"), [(0.41, []), (0.39, ["overlap"])])
def test_an_alarm_comes_at_twice_a_lower_limit(value, expected):
    judge = guards()
    _, found = judge.alarms(healthy_then(judge, overlap=value))
    assert [finding.guard for finding in found] == expected


def test_an_alarm_is_given_once_and_names_the_switch():
    judge = guards()
    state, found = judge.alarms(healthy_then(judge, repetition=0.4))
    assert "polish.guards.repetition: null" in judge.warning(found[0])
    assert judge.alarms(judge.after(state, HEALTHY | {"repetition": 0.4}))[1] == []


def test_a_stop_says_what_was_seen_and_what_to_change():
    judge = guards()
    found = judge.stop(healthy_then(judge, repetition=0.75))
    assert found is not None
    error = judge.stopped(found, 37)
    assert isinstance(error, TrainingStopped)
    assert error.exit_code == 6
    assert "step 37" in error.message
    assert "75%" in error.message
    assert "polish.guards.repetition=null" in error.fix


def test_a_student_that_was_sick_from_the_start_is_called_cold():
    judge = guards()
    found = judge.stop(state_after(judge, *[HEALTHY | {"overlap": 0.05}] * 4))
    assert found is not None
    assert found.cold
    assert "cold" in found.advice
    assert "`distill`" in found.advice


def test_truncation_counts_only_what_the_rows_do_not_have_themselves():
    rows = [128] * 90 + [20] * 10  # nine of ten answers fill the limit
    judge = Guards(Limits(window=1), "polish", answer_tokens=rows, most=128)
    assert judge.stop(judge.after({}, {"truncated": 0.95})) is None
    assert judge.stop(judge.after({}, {"truncated": 1.0})) is not None


def test_length_is_compared_with_the_longer_of_start_and_rows():
    judge = Guards(Limits(window=1), "polish", answer_tokens=[100, 100])
    state = judge.after({}, {"rollout_length": 10.0})
    assert judge.stop(judge.after(state, {"rollout_length": 390.0})) is None
    assert judge.stop(judge.after(state, {"rollout_length": 410.0})) is not None


def test_steps_that_measured_nothing_count_for_no_window():
    judge = guards()
    state = state_after(judge, *[{"repetition": 0.9}, {}, {"overlap": 0.9}] * 2)
    assert judge.stop(state) is None
    assert judge.stop(judge.after(state, {"repetition": 0.9})) is not None


def test_the_state_survives_json_and_decides_the_same():
    judge = guards()
    whole = state_after(judge, *[HEALTHY] * 3, *[HEALTHY | {"repetition": 0.9}] * 2)
    again = json.loads(json.dumps(state_after(judge, *[HEALTHY] * 3, HEALTHY | {"repetition": 0.9})))
    assert judge.after(again, HEALTHY | {"repetition": 0.9}) == whole
    assert judge.stop(whole) == judge.stop(judge.after(again, HEALTHY | {"repetition": 0.9}))


@pytest.mark.parametrize("name", GUARDS)
def test_a_shorter_window_judges_the_checkpoint_of_a_longer_one_by_its_last_steps(name):
    figure = GUARDS[name].figure
    state = state_after(guards(window=20), *[HEALTHY] * 2, *[HEALTHY | {figure: SICK[figure]}] * 3)
    found = guards(window=3).stop(state)
    if name == "length":  # it is compared with the first full window, and that is this one
        assert found is None
    else:
        assert found is not None
        assert found.guard == name
        assert found.steps == 3
        assert found.value == pytest.approx(SICK[figure])


def test_a_mean_is_exactly_that_of_the_window():
    judge = guards(window=4)
    state = state_after(judge, *[{"repetition": r} for r in (1.0, 0.6, 0.6, 0.6, 0.6)])
    found = judge.stop(state)
    assert found is not None
    assert math.isclose(found.value, 0.6)
