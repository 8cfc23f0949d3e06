"""`seed` trains; `data.seed` splits rows, writes answers and resamples: a study over seeds keeps its yardstick."""

from __future__ import annotations

import pytest

from builders import places
from builders.cli import potstill

STAGES = (
    "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 2, learning_rate: 0.01, tokens_per_step: 16}}, "
    "{evaluate: {samples: 4, max_new_tokens: 4, resamples: 100}}]"
)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    place = places.write(tmp_path_factory.mktemp("seeds"), places.prompts(60), stages=STAGES)
    for name, changes in {"one": [], "two": ["seed=7"], "other": ["data.seed=7"]}.items():
        done = potstill("run", "r.yaml", f"name={name}", *changes, cwd=place)
        assert done.returncode == 0, done.stderr
    return {name: places.summary(place, name) for name in ("one", "two", "other")}


def test_another_seed_trains_another_student_on_the_same_answers(three):
    one, two = three["one"], three["two"]
    assert one["artifacts"]["generate"] == two["artifacts"]["generate"]
    assert one["artifacts"]["distill"] != two["artifacts"]["distill"]


@pytest.mark.parametrize("role", ["before", "reference"])
def test_another_seed_keeps_every_figure_that_no_training_changed(three, role):
    assert three["one"][role] == three["two"][role]
    assert three["one"]["after"] != three["two"]["after"]


def test_another_seed_of_the_data_is_another_yardstick(three):
    assert three["one"]["artifacts"]["generate"] != three["other"]["artifacts"]["generate"]
    assert three["one"]["before"] != three["other"]["before"]
