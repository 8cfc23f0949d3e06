"""What rows carry reaches the run: their weight, and every turn of a conversation."""

from __future__ import annotations

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny
from potstill.data.answers import Written
from potstill.data.questions import questions


def test_the_teacher_is_given_all_turns_of_a_conversation(tmp_path):
    """With a template of its own the teacher is asked all turns in evaluation, as it was when it wrote."""
    turns = [("user", "w20"), ("assistant", "w40"), ("user", "w50")]
    rows = [
        {"id": f"c{i}", "messages": [{"role": r, "content": f"{c} w{60 + i}"} for r, c in turns]}
        for i in range(24)
    ]
    save_tiny(tmp_path / "other", layers=1)
    stages = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]"
    places.write(tmp_path, rows, student="{model: other}", stages=stages)
    file = tmp_path / "teacher/chat_template.jinja"
    file.write_text(file.read_text().replace("{{ bos_token }}", "{{ bos_token }}w70 "))
    parts = places.read(tmp_path)
    held = parts.data.heldout[0]
    pipeline = places.after_generate(tmp_path, [Written(held.id, 0, (20, 2), "w20", "stop")])
    (question,) = questions(
        parts.readers, pipeline.examples("heldout"), parts.data.heldout, 5, generated=True
    )
    assert question.teacher_prompt_ids == tuple(parts.readers.teacher.templater.prompt_ids(held.prompt))
    assert len(question.teacher_prompt_ids) == len(question.prompt_ids) + 1


def test_weights_from_a_table_are_numbers(tmp_path):
    rows = "prompt,response,w\n" + "".join(f"w{20 + i} w{30 + i},w{40 + i},0.5\n" for i in range(30))
    places.write(tmp_path, data="{train: rows.csv, weight: w}")
    (tmp_path / "rows.csv").write_text(rows)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
