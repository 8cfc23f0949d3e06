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
        "Held-out KL(teacher‖student) fell from 3.00 to 0.45 nats per token (6.7×); the student kept 83 % "
        "(95 % interval 79 % to 87 %) of the teacher's ROUGE-L with 73 % of its parameters. "
        "The control student reached 0.81 nats per token. Prompt by prompt against the control, the distilled "
        "student is clearly better in KL(teacher‖student), KL(student‖teacher), Top-1 agreement and Top-5 "
        "agreement; not known to differ in Perplexity."
    )


def test_overlapping_intervals_are_not_called_a_fall() -> None:
    text = verdict(kl(measured(0.50, 0.05), measured(0.45, 0.05)))
    assert "did not clearly move" in text
    assert "×" not in text


def test_a_worse_student_is_called_worse() -> None:
    summary = kl(measured(0.5, 0.01), measured(3.0, 0.1))
    assert "did not fall: from 0.50 to 3.00" in verdict(summary)
    assert cautions(summary) == ["KL(teacher‖student) got worse in training: 0.50 before, 3.00 after."]


def test_a_student_that_began_as_its_teacher_is_not_said_to_have_failed() -> None:
    """One that teaches itself moves away from what it was; how far is what a reader wants to know."""
    summary = kl(measured(0.0, 0.0), measured(0.02, 0.001))
    assert "is 0.020 nats per token, and the student began as its teacher" in verdict(summary)
    assert cautions(summary) == []


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


def test_a_lower_bound_of_an_unknown_distance_is_said_beside_it() -> None:
    after = {
        "forward_kl": None,
        "forward_kl_reason": "the teacher does not give its whole distribution",
        "forward_kl_bucket": {"value": 1.25, "low": 1.0, "high": 1.5, "n": 9},
    }
    assert verdict({"after": after}) == (
        "Held-out KL(teacher‖student) is unknown (the teacher does not give its whole distribution; on the ids that it "
        "states it is at least 1.25)."
    )


def test_a_refused_ratio_is_reported_with_its_reason() -> None:
    row = {
        "teacher": 0.02,
        "student": 0.01,
        "ratio": None,
        "ratio_reason": "the teacher's interval includes 0",
    }
    text = verdict(kl(measured(3, 0.1), measured(0.4, 0.1), retention={"ifeval": row}))
    assert "no share of the teacher's ifeval is given (the teacher's interval includes 0)" in text
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
    summary["differences"]["control"]["forward_kl"] = measured(-0.01, 0.02)
    assert "not known to differ in their distance from the teacher" in cautions(summary)[0]


def test_few_prompts_are_reported() -> None:
    assert "Only 24" in cautions(kl(measured(3.0, 0.1, 24), measured(0.4, 0.1, 24)))[0]


def test_a_share_above_a_floor_names_the_floor() -> None:
    summary = made_up.summary()
    summary["retention"]["rouge_l"] |= {"floor": 0.227, "floor_of": "the prompt copied"}
    assert "of the teacher's ROUGE-L above the 0.23 that the prompt copied reaches with 73 %" in verdict(
        summary
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("repetition", 0.49, "Repeated 4-grams: 49.0 %, clearly worse than the teacher's 2.0 %."),
        ("stop_rate", 0.36, "Stops by itself: 36.0 %, clearly worse than the teacher's 97.0 %."),
        ("unfinished_reasoning", 0.2, "Reasoning left open: 20.0 %, clearly worse than the teacher's 0.0 %."),
    ],
)
def test_answers_that_are_clearly_worse_than_the_teachers_are_reported(key, value, words) -> None:
    summary = made_up.summary()
    summary["behaviour"]["after"][key] = measured(value, 0.01)
    assert cautions(summary) == [words]
    summary["behaviour"]["after"][key] = measured(value, 2.0)
    assert cautions(summary) == []


def test_better_answers_than_the_teachers_are_no_caution() -> None:
    summary = made_up.summary()
    summary["behaviour"]["teacher"]["repetition"] = measured(0.4, 0.01)
    assert cautions(summary) == []


def test_every_result_in_which_the_control_is_ahead_is_said() -> None:
    summary = made_up.summary()
    summary["control"] |= {"rouge_l": measured(0.39, 0.01), "ppl": measured(6.8, 0.4)}
    summary["differences"]["control"] |= {"rouge_l": measured(-0.05, 0.01), "ppl": measured(0.1, 0.6)}
    assert (
        "Top-5 agreement; clearly worse in ROUGE-L (0.34 against 0.39); not known to differ in Perplexity "
        "(6.90 against 6.80)."
    ) in verdict(summary)


def test_intervals_that_overlap_are_no_verdict_where_the_paired_one_is_clear() -> None:
    """Two students on the same prompts share what makes a prompt hard."""
    summary = made_up.summary()
    summary["control"]["forward_kl"] = measured(0.5, 0.3)
    summary["differences"]["control"]["forward_kl"] = measured(-0.05, 0.01)
    assert cautions(summary) == []
    assert "clearly better in KL(teacher‖student)" in verdict(summary)


def test_a_control_without_a_distribution_to_compare_is_judged_by_its_text() -> None:
    summary = made_up.summary()
    for role in ("after", "control"):
        summary[role] = {
            "rouge_l": measured(0.3, 0.1),
            "forward_kl": None,
            "forward_kl_reason": "two vocabularies",
        }
    summary["differences"] = {"control": {"rouge_l": measured(-0.1, 0.05)}}
    summary["behaviour"]["control"] = summary["behaviour"]["after"]
    text = verdict(summary)
    assert "the distilled student is clearly worse in ROUGE-L; not compared in Stops by itself" in text
    assert "The control student reached" not in text


@pytest.mark.parametrize(("role", "key"), [("before", "agreement"), ("teacher", "repetition")])
@pytest.mark.parametrize("clear", [True, False])
def test_setbacks_are_judged_on_the_same_prompts(role, key, clear) -> None:
    summary = made_up.summary()
    summary["after"]["agreement"] = measured(0.30, 0.02)  # 0.312 ± 0.02 before
    summary["behaviour"]["after"]["repetition"] = measured(0.021, 0.01)  # 0.02 ± 0.01 of the teacher
    change = -0.012 if key == "agreement" else 0.001
    summary["differences"][role] = {key: measured(change, 0.5 * abs(change) if clear else 2 * abs(change))}
    assert len(cautions(summary)) == clear


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.0194, 0.0186, "fell from 0.0194 to 0.0186 nats per token (by 4.12 %)"),
        (0.0192, 0.0191, "fell from 0.0192 to 0.0191 nats per token (by 0.52 %)"),
        (0.01912, 0.01911, "fell from 0.01912 to 0.01911 nats per token (by 0.052 %)"),
        (2.001, 1.999, "fell from 2.001 to 1.999 nats per token (by 0.100 %)"),
        (3.00, 0.45, "fell from 3.00 to 0.45 nats per token (6.7×)"),
        (0.019, 0.019, "did not fall: from 0.019 to 0.019 nats per token"),
        (0.01910, 0.01912, "did not fall: from 0.01910 to 0.01912 nats per token"),
    ],
)
def test_two_values_that_differ_are_written_so_that_they_differ(before, after, words) -> None:
    values = [{"value": value, "n": 200} for value in (before, after)]
    assert words in verdict(kl(*values))


def test_a_control_and_a_setback_are_written_so_that_they_differ() -> None:
    summary = kl(measured(0.3001, 0.00001), measured(0.3002, 0.00001))
    summary["control"] = {"forward_kl": measured(0.3004, 0.00001)}
    assert "The control student reached 0.3004 nats per token" in verdict(summary)
    shares = {"agreement": measured(0.50001, 1e-6)}, {"agreement": measured(0.50000, 1e-6)}
    texts = cautions(kl(1.0, 0.5) | {"before": shares[0], "after": shares[1]})
    assert any("50.0010 % before, 50.0000 % after" in text for text in texts)


def text_alone(**more: Any) -> dict[str, Any]:
    """A run whose teacher is served."""
    reason = "the teacher gives text alone"
    before, after = (
        {"forward_kl": None, "forward_kl_reason": reason, "ppl": measured(value, 1.0)}
        for value in (31.0, 4.25)
    )
    return {"figures": made_up.FIGURES, "before": before, "after": after} | more


def test_a_teacher_of_text_alone_is_not_compared_and_the_verdict_says_what_is_known() -> None:
    assert verdict(text_alone()) == (
        "The teacher gives text alone, so its distribution is not compared; the student's perplexity on held-out "
        "answers went from 31.0 to 4.25."
    )
    paired = {"before": {"ppl": measured(-26.75, 2.0)}}
    assert "answers fell from 31.0 to 4.25." in verdict(text_alone(differences=paired))
    paired = {"before": {"ppl": measured(-26.75, 30.0)}}
    assert "answers did not clearly move from 31.0 to 4.25." in verdict(text_alone(differences=paired))


def test_a_verdict_on_a_task_says_how_often_both_models_are_right() -> None:
    about = {"label_accuracy_gold": {"label": "Label accuracy vs gold", "unit": "share", "better": "up",
                                     "meaning": "", "place": "result"}}  # fmt: skip
    made = text_alone(task={"type": "label"}, reference={"label_accuracy_gold": measured(0.95, 0.02)})
    made["figures"] = made["figures"] | about
    made["after"]["label_accuracy_gold"] = measured(0.91, 0.03)
    made["retention"] = {"label_accuracy_gold": {"ratio": None, "ci95": None, "ratio_reason": "few"}}
    assert verdict(made).endswith(
        "; Label accuracy vs gold of the student: 91.0 % (95 % interval 88.0 to 94.0), of the teacher 95.0 %."
    )


def test_what_a_second_stage_made_clearly_worse_is_said() -> None:
    stage = {
        "stage": "own",
        "before": {"ppl": measured(4.0, 0.5)},
        "after": {"ppl": measured(9.0, 0.5)},
        "difference": {"ppl": measured(5.0, 1.0)},
    }
    assert "own made Perplexity worse: 4.00 before it, 9.00 after it." in cautions(
        {"figures": made_up.FIGURES, "by_stage": [stage]}
    )
    stage["difference"]["ppl"] = measured(5.0, 6.0)
    assert not [
        text
        for text in cautions({"figures": made_up.FIGURES, "by_stage": [stage]})
        if text.startswith("own made")
    ]
