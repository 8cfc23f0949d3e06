"""The rows of a validation: a sample whose size is bounded, and said wherever its figure stands."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.cli import potstill
from builders.jobs import answers
from potstill.stages._training_rows import TrainingRows


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20, 99])
def test_a_sample_holds_short_and_long_rows_as_they_come(most):
    every = answers(*range(1, 41))
    few = TrainingRows((), tuple(reversed(every))).validated_on(most).validation
    lengths = [len(row.input_ids) for row in few]
    assert len(set(few)) == len(few) == min(most, 40)
    assert lengths == sorted(lengths)
    assert abs(sum(lengths) / len(few) - sum(len(row.input_ids) for row in every) / 40) <= 1


def test_the_size_of_the_sample_is_said_wherever_its_figure_is(tmp_path):
    stages = "[{distill: {steps: 4, validation_rows: 3}}, {evaluate: {samples: 2, resamples: 100}}]"
    places.write(tmp_path, places.answered(200), stages=stages)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "distill: validates on 3 rows" in done.stderr
    assert places.summary(tmp_path)["train"]["validation_rows"] == 3
    page = (tmp_path / "runs/r/report.html").read_text()
    assert "validation (3 rows)" in page
    events = (tmp_path / "runs/r/stages/distill/metrics.jsonl").read_text().splitlines()
    validations = [e for e in map(json.loads, events) if e["event"] == "validation"]
    assert {event["rows"] for event in validations} == {3}
    assert validations[0]["step"] == 0
    assert validations[-1]["step"] == 4
