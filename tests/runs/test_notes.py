"""What a run notes before it starts, and figures that reach the summary."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.chats import write_lines
from builders.cli import potstill
from builders.tiny import TEMPLATE, save_tiny, tiny_tokenizer
from potstill.errors import RecipeError


def notes(place) -> str:
    return " ".join(places.read(place).notes)


def test_a_length_above_the_context_is_noted(tmp_path):
    places.write(tmp_path, data="{train: rows.jsonl, max_length: 4000}")
    assert "data.max_length is 4000, the models read 256 tokens" in notes(tmp_path)
    places.write(tmp_path, data="{train: rows.jsonl, max_length: 200}")
    assert "max_length" not in notes(tmp_path)


def test_held_out_prompts_that_are_trained_on_are_noted(tmp_path):
    """Held-out prompts that are training prompts with other answers: said by run, not only by check."""
    rows = places.answered()
    places.write(tmp_path, rows, data="{train: rows.jsonl, heldout: held.jsonl}")
    held = [{"prompt": row["prompt"], "response": "w90 w91"} for row in rows[:20]]
    held += [{"prompt": f"w{100 + i}", "response": "w90"} for i in range(5)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    assert "20 of 25 held-out prompts are training prompts too" in notes(tmp_path)


BROKEN = {"prompt": 5, "response": "w9"}
EMPTY = {"prompt": "w9", "response": " "}


@pytest.mark.parametrize("source", ["train", "heldout", "stage", "mix"])
def test_rows_that_are_left_out_while_reading_are_noted_whatever_they_are_for(tmp_path, source):
    """A copy of a row is read once; a run says how many were, as `potstill check` does."""
    rows = [{"prompt": f"w20 w{30 + i} w{40 + i}", "response": f"w{50 + i}"} for i in range(9)]
    write_lines(tmp_path / "other.jsonl", *rows, *rows[:3], BROKEN, EMPTY)
    data = {
        "train": "{train: other.jsonl, on_bad_row: skip}",
        "heldout": "{train: rows.jsonl, heldout: other.jsonl, on_bad_row: skip}",
        "stage": "{train: rows.jsonl, on_bad_row: skip}",
        "mix": "{train: rows.jsonl, on_bad_row: skip, mix: [{source: other.jsonl, share: 1}]}",
    }[source]
    stage = "{steps: 2, data: other.jsonl}" if source == "stage" else "{steps: 2}"
    places.write(tmp_path, places.answered(), data=data, stages=f"[{{finetune: {stage}}}]")
    expected = "other.jsonl: 5 of 14 rows are left out: 3 duplicate, 1 empty, 1 broken."
    assert notes(tmp_path).count(expected) == 1
    assert "rows.jsonl: " not in notes(tmp_path)


def test_what_a_teacher_keeps_of_its_answers_for_no_capture_is_noted(tmp_path):
    keep, train = "{generate: {keep: hidden, filters: null, max_new_tokens: 4}}", "{distill: {steps: 2}}"
    for stages, noted in ((f"{keep}, {train}", True), (f"{keep}, capture, {train}", False)):
        places.write(tmp_path, places.prompts(), stages=f"[{stages}]")
        assert ("generate.keep: nothing reads what is kept" in notes(tmp_path)) == noted
    again = "{generate: {name: again, filters: null, max_new_tokens: 4}}"
    places.write(tmp_path, places.prompts(), stages=f"[{keep}, {again}, capture, {train}]")
    assert "generate.keep: nothing reads what is kept" in notes(tmp_path)


def test_nothing_of_several_teachers_answers_can_be_kept(tmp_path):
    save_tiny(tmp_path / "other", seed=5)
    places.write(
        tmp_path, places.prompts(), teacher="{ensemble: [{model: teacher}, {model: other}]}", student="{model: other}",
        stages="[{generate: {keep: hidden, max_new_tokens: 4}}, capture, {distill: {steps: 2}}]",
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"stages.generate.keep: needs one teacher whose weights are whole"):
        places.read(tmp_path)


def test_a_measured_speed_reaches_the_summary(tmp_path):
    stages = "[{evaluate: {metrics: [likelihood, speed], samples: 4, max_new_tokens: 4, resamples: 100}}]"
    places.write(tmp_path, stages=stages)
    done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    speed = json.loads(done.stdout)["summary"]["generation_tokens_per_second"]
    assert set(speed) == {"teacher", "before"}
    assert min(speed.values()) > 0


@pytest.mark.parametrize("where", ["rows", "heldout", "finetune"])
def test_a_run_warns_of_columns_that_nobody_reads(tmp_path, where):
    rows, topics = places.answered(), [row | {"topic": "w5"} for row in places.answered()]
    held = [{"prompt": f"w{100 + i}", "response": "w90"} for i in range(5)]
    if where == "heldout":
        held[0]["topic"] = "w5"
    places.write(
        tmp_path,
        topics if where == "rows" else rows,
        data="{train: rows.jsonl, heldout: held.jsonl}",
        stages="[{finetune: {data: [own.jsonl], steps: 2}}]",
    )
    write_lines(tmp_path / "held.jsonl", *held)
    write_lines(tmp_path / "own.jsonl", *(topics if where == "finetune" else rows))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    count = 1 if where == "heldout" else 24
    assert f"warning: columns that are not read: topic ({count} rows)." in done.stderr


def test_a_run_warns_of_no_column_that_is_read_or_left_out(tmp_path):
    rows = [row | {"topic": "w5", "importance": 1} for row in places.answered()]
    places.write(tmp_path, rows, data="{train: rows.jsonl, weight: importance, columns: {topic: unused}}")
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not read" not in done.stderr


ADDS = "{% if messages[0].role != 'system' %}w70 w71 {% endif %}" + TEMPLATE.removeprefix("{{ bos_token }}")


@pytest.mark.parametrize(
    ("with_system", "policy", "said"),
    [
        (24, "keep", None), (23, "keep", "the 1 of 24 rows without one: 'w70 w71'"),
        (24, "merge", "the 24 of 24 rows"), (24, "drop", "the 24 of 24 rows"), (0, "keep", "the 24 of 24 rows"),
    ],
)  # fmt: skip
def test_a_templates_own_system_prompt_is_noted_where_a_row_gets_it(tmp_path, with_system, policy, said):
    system = [{"system": "w72"} if i < with_system else {} for i in range(24)]
    rows = [row | added for row, added in zip(places.answered(), system, strict=True)]
    places.write(tmp_path, rows, data=f"{{train: rows.jsonl, system: {policy}}}")
    tiny_tokenizer(template=ADDS).save_pretrained(tmp_path / "teacher")
    found = notes(tmp_path)
    assert ("adds a system prompt of its own" in found) is (said is not None)
    assert (said or "") in found


def test_other_special_tokens_in_one_template_are_noted(tmp_path):
    places.write(tmp_path, student="{model: student}")
    save_tiny(tmp_path / "student")
    assert "different ids" not in notes(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "</s>"
    tokenizer.save_pretrained(tmp_path / "student")
    assert "read a row as different ids by the same chat template" in notes(tmp_path)
