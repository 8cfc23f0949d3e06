"""A teacher in an engine has more ids than the student, and states its likeliest one alone: at some tokens one of its own."""

from __future__ import annotations

import re

import pytest

from builders import places
from builders.cli import potstill
from builders.engine import engine
from builders.tiny import save_tiny

MEASURE = "{evaluate: {metrics: [likelihood], resamples: 100}}"
BOUNDS = "forward_kl_bucket", "reverse_kl_bucket", "stated_mass", "unstated"
WARNED = r"of (\d+) of (\d+) tokens the teacher states only ids that the student lacks"


@pytest.fixture
def place(tmp_path):
    save_tiny(tmp_path / "teacher", vocab=160, seed=1)
    save_tiny(tmp_path / "student", layers=1, seed=5)
    return places.write(tmp_path)


def test_a_run_trains_and_measures_on_the_ids_that_both_have_live_and_from_a_capture(place):
    figures = []
    with engine(vocab=160) as there:
        teacher = f"{{scores: '{there.url}', model: teacher, top_k: 1}}"
        models = {"teacher": teacher, "student": "{model: student}"}
        for name, first in (("live", ""), ("kept", "{capture: {signal: topk}}, ")):
            stages = f"[{first}{{distill: {{steps: 2}}}}, {MEASURE}]"
            places.recipe(place, **models, name=name, stages=stages)
            done = potstill("run", "r.yaml", cwd=place)
            assert done.returncode == 0, done.stderr
            said = done.stdout + done.stderr
            assert (
                "tokens of the first rows the teacher states only ids that the student does not have" in said
            )
            unstated, tokens = map(int, re.findall(WARNED, said)[-1])
            after = places.summary(place, name)["after"]
            assert 0 < unstated < tokens
            assert after["unstated"]["value"] == pytest.approx(unstated / tokens)
            assert after["forward_kl"] is None
            assert after["forward_kl_bucket"]["value"] > 0
            figures.append([after[name]["value"] for name in ("ppl", *BOUNDS)])
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)  # what is kept has 16 bits
