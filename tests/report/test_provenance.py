"""Whose text a student was trained on, and under which terms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from builders.recipes import read
from potstill.data.dataset import Dataset, Parts
from potstill.data.mix import Taken
from potstill.data.row import Row
from potstill.report import provenance
from potstill.stages.generate import Generate

SOURCE = {
    "provider": "weights on this machine", "model": "big", "licence": "apache-2.0", "terms": "", "date": "2026-11-27",
    "sampling": {"max_new_tokens": 8, "temperature": 0.0, "top_p": 1.0, "top_k": 0},
}  # fmt: skip
VERIFIED = {
    "by": "numeric", "keep": "first", "answers": 8, "right": 2, "kept": 1, "prompts": 2,
    "prompts_without_a_right_answer": 1, "examples_without_a_right_answer": ["b"],
}  # fmt: skip


def outcome() -> Any:
    """A run on a mix, with a finetune stage that has rows of its own."""
    recipe = read(
        data={
            "train": "rows.jsonl", "terms": "CC0-1.0",
            "mix": [{"source": "teacher_generated", "share": 0.5}, {"source": "real.jsonl", "share": 0.5, "terms": "CC-BY-4.0"}],
        },
        stages=["generate", {"finetune": {"data": "task.jsonl", "terms": "in house"}}],
    )  # fmt: skip
    rows = (Row("a"), Row("b"))
    data = Dataset(
        rows, (), (Row("c"),) * 9, "", {}, "", {"finetune": Parts(rows, ())}, mixed={"real.jsonl": rows}
    )
    facts = {"source": SOURCE, "answers": 1, "rejected": {"refusal": 2}, "filters": {}, "verified": VERIFIED}
    state = SimpleNamespace(
        artifacts={"generate": SimpleNamespace(facts=facts)}, resolved={"generate": Generate()},
        answers=object(), left_out={"measured answer: content filter": 2, "answer: refusal": 2, "validation prompt too long": 7},
    )  # fmt: skip
    mix = [Taken("teacher_generated", 0.5, 1, 3, 1, 3), Taken("real.jsonl", 0.5, 1, 4, 2, 9)]
    examples = {"heldout": SimpleNamespace(funnel={"empty answer": 1, "answer too long for the student": 0})}
    return SimpleNamespace(recipe=recipe, data=data, state=state, mix=mix, examples=examples)


def test_every_source_has_its_terms_and_a_teacher_its_sampling_and_its_date() -> None:
    teacher, *files = provenance.sources(outcome())
    assert {key: teacher[key] for key in ("provider", "model", "date", "licence", "terms")} == {
        "provider": "weights on this machine", "model": "big", "date": "2026-11-27", "licence": "apache-2.0", "terms": None,
    }  # fmt: skip
    assert teacher["sampling"]["max_new_tokens"] == 8
    assert {one["source"]: one["terms"] for one in files} == {
        "rows.jsonl": "CC0-1.0", "real.jsonl": "CC-BY-4.0", "task.jsonl": "in house",
    }  # fmt: skip


def test_the_page_says_so_in_sentences_and_guesses_no_terms() -> None:
    text = "\n".join(provenance.sentences(outcome()))
    assert "big (weights on this machine) wrote by 2026-11-27, at temperature 0 and at most 8 tokens" in text
    assert "Terms: not stated (teacher.terms). Licence of its files: apache-2.0." in text
    assert "real.jsonl: 2 rows. Terms: CC-BY-4.0." in text
    assert "answers that are not used: 2 refusal" in text
    assert "1 of 2 prompts have no right answer" in text
    assert (
        "Trained on a mix: teacher_generated 1 of 1 rows, 3 tokens; real.jsonl 1 of 2 rows, 4 tokens." in text
    )


def test_a_larger_limit_for_what_was_cut_off_is_said() -> None:
    made = outcome()
    facts = made.state.artifacts["generate"].facts
    drawn = {**SOURCE["sampling"], "retry_truncated": 16}
    facts["source"] = {**SOURCE, "sampling": drawn}
    assert "at most 8 tokens an answer (16 where it was cut off)" in "\n".join(provenance.sentences(made))


def test_held_out_rows_without_an_answer_of_the_teacher_are_said_to_be_missing() -> None:
    """What it fails at must not make it look better without a word."""
    text = "\n".join(provenance.sentences(outcome()))
    assert (
        "3 of 9 held-out rows are not measured, since the teacher has no answer to them: "
        "2 content filter, 1 empty answer." in text
    )
    rows_own = outcome()
    rows_own.state.answers = None
    assert "not measured" not in "\n".join(provenance.sentences(rows_own))


def test_what_filters_and_verifier_found_is_in_the_summary() -> None:
    judged = provenance.judged(outcome().state)["generate"]
    assert (judged["used"], judged["rejected"], judged["verified"]["right"]) == (1, {"refusal": 2}, 2)
