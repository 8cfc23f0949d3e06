"""A teacher that knows nothing, writes nothing, or has another format than its student."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny
from potstill.data.answers import Written
from potstill.errors import DataError

TWO = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]"


@pytest.fixture
def blank(tmp_path):
    """A teacher whose output layer is all zeros: every token is as likely as any other."""
    places.write(tmp_path)
    file = tmp_path / "teacher/model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"].zero_()
    save_file(weights, file, metadata={"format": "pt"})
    return tmp_path


def test_a_uniform_teacher_is_warned_about_once(blank):
    """The run warns once that the teacher's entropy is ln V, and says its loss on the first rows."""
    save_tiny(blank / "other", layers=1)
    places.write(blank, student="{model: other}")
    done = potstill("run", "r.yaml", cwd=blank)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert "teacher" in warning
    assert "uniform" in warning
    assert "4.85" in warning  # ln 128


def test_the_preflight_fails_a_teacher_that_knows_nothing(blank):
    """The teacher's loss on the recipe's rows stands beside ln V, and the item fails where it is no better."""
    done = potstill("check", "r.yaml", "--json", cwd=blank)
    assert done.returncode == 4
    items = {item["name"]: item for item in json.loads(done.stdout)["items"]}
    assert not items["teacher's loss"]["passed"]
    assert "4.85" in items["teacher's loss"]["detail"]


def first_rows(place, count=4):
    parts = places.read(place)
    return [row.id for row in parts.data.train[:count]]


def test_empty_answers_are_left_out_and_counted(tmp_path, caplog):
    """An answer that is only its end token is left out, counted, and warned about once."""
    places.write(tmp_path, places.prompts(), stages=TWO)
    one, two, three, _ = first_rows(tmp_path)
    empty = [Written(one, 0, (2,), "", "stop"), Written(two, 0, (2,), "", "stop")]
    with caplog.at_level("WARNING", "potstill"):
        pipeline = places.after_generate(tmp_path, [*empty, Written(three, 0, (20, 2), "w20", "stop")])
        assert [example.id for example in pipeline.examples("train")] == [three]
    assert pipeline.funnel()["empty answer"] == 2
    assert len([r for r in caplog.records if "2 of 3 answers are empty" in r.getMessage()]) == 1


def test_a_teacher_without_one_answer_stops_the_run(tmp_path):
    """Without one answer there is nothing to learn: the run stops and says so."""
    places.write(tmp_path, places.prompts(), stages=TWO)
    silent = [Written(name, 0, (2,), "", "stop") for name in first_rows(tmp_path)]
    with pytest.raises(DataError, match="empty"):
        places.after_generate(tmp_path, silent).examples("train")


@pytest.fixture
def two_formats(tmp_path):
    """The teacher's template ends a turn with <unk>, the student's with </s>; each has a system prompt of its own."""
    save_tiny(tmp_path / "other", layers=1)
    places.write(tmp_path, places.prompts(), student="{model: other}", stages=TWO)
    file = tmp_path / "teacher/chat_template.jinja"
    adds = "{{ bos_token }}{% if messages[0].role != 'system' %}w70 {% else %}{% endif %}"
    file.write_text(file.read_text().replace("{{ eos_token }}", "<unk>").replace("{{ bos_token }}", adds))
    return tmp_path


def test_only_the_students_own_end_token_is_learnt(two_formats):
    """What the teacher ended its own way, the student ends its own way: one end token, not two."""
    name = first_rows(two_formats)[0]
    pipeline = places.after_generate(two_formats, [Written(name, 0, (20, 21, 3), "w20 w21", "stop")])
    (example,) = pipeline.examples("train")
    assert [i for i, s in zip(example.input_ids, example.scored, strict=True) if s] == [20, 21, 2]


def test_two_readings_of_the_same_row_are_shown_side_by_side(two_formats):
    """The preflight notes that the templates differ, and renders a prompt as each of the two reads it."""
    done = potstill("check", "--quick", "r.yaml", "--json", cwd=two_formats)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert any("chat templates of teacher and student differ" in note for note in found["notes"])
    texts = [row["text"] for row in found["rows"]]
    assert any("w70" in text for text in texts)
    assert any("w70" not in text for text in texts)


def test_a_system_prompt_of_the_teachers_template_is_noted(two_formats):
    """A system prompt that the teacher's template adds shapes every answer: it is noted too."""
    done = potstill("check", "--quick", "r.yaml", "--json", cwd=two_formats)
    assert done.returncode == 0, done.stderr
    notes = " ".join(json.loads(done.stdout)["notes"])
    assert "teacher's chat template adds a system prompt" in notes
