"""The verdict claims what the summary supports and no more."""

from __future__ import annotations

from typing import Any

import pytest

from builders import made_up
from builders.made_up import measured
from potstill.report.verdict import cautions, verdict


def kl(before: Any, after: Any, **more: Any) -> dict[str, Any]:
    """A summary that holds the forward KL alone."""
    blocks = {"before": {"forward_kl": before}, "after": {"forward_kl": after}}
    return {"figures": made_up.FIGURES} | blocks | more


def test_complete_run_states_share_fall_and_factor() -> None:
    assert verdict(made_up.summary()) == (
        "The student kept 83 % (95 % interval 79 % to 87 %) of the teacher's ROUGE-L with 73 % of its "
        "parameters; held-out KL(teacher‖student) fell from 3.00 to 0.45 nats per token (6.7×). "
        "The control student reached 0.81 nats per token."
    )


def test_overlapping_intervals_are_not_called_a_fall() -> None:
    text = verdict(kl(measured(0.50, 0.05), measured(0.45, 0.05)))
    assert "did not clearly move" in text
    assert "×" not in text


def test_a_worse_student_is_called_worse() -> None:
    summary = kl(measured(0.5, 0.01), measured(3.0, 0.1))
    assert "did not fall: from 0.50 to 3.00" in verdict(summary)
    assert cautions(summary) == ["KL(teacher‖student) got worse in training: 0.50 before, 3.00 after."]


@pytest.mark.parametrize("after", [measured(0.01, 0.02), measured(-0.01, 0.005), measured(0.0, 0.0)])
def test_no_factor_when_the_later_value_may_be_zero(after: dict[str, float]) -> None:
    text = verdict(kl(measured(3.0, 0.1), after))
    assert "no factor" in text
    assert "×" not in text


def test_unknown_values_give_their_reason() -> None:
    reason = "an API gives no distribution"
    assert reason in verdict({"after": {"forward_kl": None, "forward_kl_reason": reason}})
    text = verdict(kl(None, measured(0.45, 0.03)))
    assert text == (
        "Held-out KL(teacher‖student) is 0.45 nats per token; before training it is unknown (not measured)."
    )
    assert verdict({}) == "Held-out KL(teacher‖student) is unknown (not measured)."


def test_a_refused_ratio_is_reported_with_its_reason() -> None:
    row = {
        "teacher": 0.02,
        "student": 0.01,
        "ratio": None,
        "ratio_reason": "the teacher's interval includes 0",
    }
    text = verdict(kl(measured(3, 0.1), measured(0.4, 0.1), retention={"ifeval": row}))
    assert "No share of the teacher's ifeval is given (the teacher's interval includes 0)" in text
    assert "50 %" not in text


def test_share_of_a_lower_is_better_metric_is_not_called_kept() -> None:
    row = {"teacher": 4.4, "student": 6.9, "ratio": 1.57, "ci95": [1.5, 1.6]}
    assert "Perplexity" not in verdict(kl(measured(3, 0.1), measured(0.4, 0.1), retention={"ppl": row}))


def test_size_is_not_claimed_when_the_student_is_not_smaller() -> None:
    summary = made_up.summary()
    summary["student"]["params"] = summary["teacher"]["params"]
    assert "parameters" not in verdict(summary)


def test_a_random_teacher_is_called_no_better_than_the_student() -> None:
    summary = made_up.summary()
    summary["reference"]["ppl"] = measured(49152.0, 10.0)
    assert any(
        "teacher's perplexity (49,152) is not below that of the untrained" in c for c in cautions(summary)
    )


def test_a_control_that_does_as_well_is_reported() -> None:
    summary = made_up.summary()
    assert cautions(summary) == []
    summary["control"]["forward_kl"] = measured(0.44, 0.03)
    assert "at least as close" in cautions(summary)[0]
    summary["control"]["forward_kl"] = measured(0.46, 0.03)
    assert "differ by less than" in cautions(summary)[0]


def test_few_prompts_are_reported() -> None:
    assert "Only 24" in cautions(kl(measured(3.0, 0.1, 24), measured(0.4, 0.1, 24)))[0]
