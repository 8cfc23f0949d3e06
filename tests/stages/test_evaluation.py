"""What an evaluation stores of models side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest

from builders.jobs import Memory, context, student
from builders.tiny import tiny_model
from potstill.data.questions import Question
from potstill.recipe.specs import MetricChoice
from potstill.stages import _evaluation
from potstill.types import Example

ROWS = [Example(f"r{i}", tuple(range(4 + i, 24 + i)), (False,) * 12 + (True,) * 8) for i in range(30)]
QUESTIONS = [Question(row.id, row.input_ids[:12], row.input_ids[:12], "p", "w64 w20", 2) for row in ROWS]


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("evaluation")
    roles = ("before", "after", "control", "after distill")
    job = _evaluation.Job(
        name="evaluate",
        choices=[MetricChoice(name=name) for name in ("likelihood", "agreement", "rouge_l", "speed")],
        resamples=200,
        students={role: student(folder / str(i), tiny_model(seed=2 + i)) for i, role in enumerate(roles)},
        examples=ROWS,
        questions=QUESTIONS,
        max_new_tokens=6,
        context=context(folder, Memory(tiny_model(seed=1))),
    )
    return json.loads((_evaluation.evaluate(job).path / "evaluation.json").read_text())


def test_every_figure_with_a_direction_is_compared_prompt_by_prompt(stored):
    assert stored["differences"].keys() == {"before", "control", "teacher"}
    after, control = stored["models"]["after"], stored["models"]["control"]
    judged = {key for key, figure in after.items() if figure["better"] and figure["place"] != "cost"}
    assert judged >= {"forward_kl", "reverse_kl", "ppl", "agreement", "rouge_l", "stop_rate", "repetition"}
    assert stored["differences"]["control"].keys() == judged
    for key in judged:
        paired = stored["differences"]["control"][key]
        if paired["value"] is not None and paired["n"] == after[key]["n"] == control[key]["n"]:
            assert paired["value"] == pytest.approx(after[key]["value"] - control[key]["value"])
            assert paired["low"] <= paired["value"] <= paired["high"]


def test_a_paired_interval_is_no_wider_than_the_models_own_ones_together(stored):
    """Of what hangs on the prompt alone, nothing is left in it."""
    for key in ("forward_kl", "reverse_kl", "ppl", "agreement"):
        one, other = (stored["models"][role][key] for role in ("after", "control"))
        paired = stored["differences"]["control"][key]
        widths = [figure["high"] - figure["low"] for figure in (one, other)]
        assert paired["high"] - paired["low"] <= np.sum(widths)


def test_what_the_teacher_has_by_definition_is_not_compared(stored):
    assert stored["differences"]["teacher"]["forward_kl"]["reason"] == "not measured prompt by prompt"
    assert stored["differences"]["teacher"]["rouge_l"]["n"] == 30
