"""Tasks, and prompts of their own for both sides, where the teacher's weights are here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import potstill
from builders import places
from builders.chats import TOOLS, bytes_tokenizer, write_lines
from builders.tiny import save_tiny, tiny_model
from potstill.console import Console
from potstill.data.answers import Written
from potstill.errors import RecipeError
from potstill.generate.sampling import Sampling
from potstill.stages import _asking, _rows
from potstill.stages._context import Context
from potstill.store.artifacts import Store

PROMPTS = {
    "teacher": "{model: teacher, prompt: long.j2}",
    "student": "{from_teacher: {keep_layers: 1, by: uniform}, prompt: short.j2}",
}
STAGES = "[{generate: {max_new_tokens: 4, filters: null}}, {distill: {steps: 1}}, {evaluate: {resamples: 100, samples: 4}}]"
LABELS = "{type: label, labels: [w30, w31], gold: y}"


def write(place: Path, **changes: str) -> Path:
    (place / "long.j2").write_text("w60 w61 {{ prompt }}\n")
    (place / "short.j2").write_text("w62 {{ prompt }}\n")
    rows = [row | {"y": f"w{30 + i % 2}"} for i, row in enumerate(places.prompts())]
    return places.write(place, rows, **{"stages": STAGES, "data": "{train: rows.jsonl}"} | changes)


def answers(text: str, ids: tuple[int, ...]) -> list[Written]:
    return [Written(f"p{i}", 0, ids, text, "stop") for i in range(24)]


def test_both_models_read_one_answer_behind_prompts_of_their_own(tmp_path: Path) -> None:
    """Field case 45: the teacher's prompt is longer, and each side is known."""
    run = places.after_generate(write(tmp_path, **PROMPTS), answers("w30", (30, 2)))
    asked, _ = _rows.prompts(run.context, 4, 1)
    by_row = {prompt.row_id: prompt.ids for prompt in asked}
    for example in run.examples("train"):
        assert example.reading is not None
        assert example.input_ids[:2] == (1, 62)
        assert example.reading.input_ids == (*by_row[example.id], 30, 2)
        assert example.reading.input_ids[:3] == (1, 60, 61)
        assert example.input_ids[2:] == example.reading.input_ids[3:]
        assert sum(example.scored) == sum(example.reading.scored) == 2


def test_a_run_compares_distributions_behind_two_prompts(tmp_path: Path) -> None:
    # The tiny teacher writes any words: an answer is what stands behind a word that never comes, so all of it.
    write(tmp_path, task="{type: text, gold: y}", **PROMPTS)
    result = potstill.run(tmp_path / "r.yaml", [f"runs={tmp_path / 'runs'}"], console=Console(quiet=True))
    assert result.after.forward_kl.value > 0
    assert not hasattr(result.after, "valid")
    assert result.money is None
    samples = (tmp_path / "runs/r/stages/evaluate/samples.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prompt"].startswith("w62 ") for line in samples)
    assert all(json.loads(line)["gold"] in ("w30", "w31") for line in samples)


def test_invalid_answers_are_trained_on_nowhere_and_stay_where_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = answers("w30", (30, 2))
    spoilt = [Written(w.row_id, 0, (99, 2), "w99", "stop") if i % 2 else w for i, w in enumerate(written)]
    run = places.after_generate(write(tmp_path, task=LABELS), spoilt)
    assert {example.input_ids[-2] for example in run.examples("train")} == {30}
    assert run.funnel("train")["none of the labels"] > 0
    assert "none of the labels ('w99')" in caplog.text
    assert 99 in {example.input_ids[-2] for example in run.examples("heldout")}


def test_the_answer_alone_is_trained_on_where_the_task_says_so(tmp_path: Path) -> None:
    task = "{type: label, labels: [w30, w31], answer_after: w50, target: answer}"
    run = places.after_generate(write(tmp_path, task=task), answers("w40 w50 w30", (40, 50, 30, 2)))
    assert all(example.input_ids[-3:] == (11, 30, 2) for example in run.examples("train"))
    whole = write(tmp_path, task=task.replace(", target: answer", ""))
    run = places.after_generate(whole, answers("w40 w50 w30", (40, 50, 30, 2)))
    assert all(example.input_ids[-5:] == (11, 40, 50, 30, 2) for example in run.examples("train"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {**PROMPTS, "stages": "[distill]"},
            "on the rows' own answers, and teacher.prompt and student.prompt differ",
        ),
        ({**PROMPTS, "stages": "[generate, {distill: {strategy: on_policy}}]"}, "lets the student write"),
        ({"task": "{type: json, schema: none.json}"}, "cannot read"),
        ({"stages": "[generate, distill, {evaluate: {metrics: [labels]}}]"}, "the recipe's is none"),
        ({"task": "{type: json, schema: s.json, rationale: why}"}, "the schema has no property 'why'"),
        ({"task": "{type: label, labels: [w30, w31], gold: x}"}, "no held-out row has the column 'x'"),
        (
            {"teacher": "{model: teacher, prompt: leak.j2}", "task": LABELS},
            "prints y, which holds the right answer",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    (tmp_path / "s.json").write_text('{"type": "object", "properties": {"n": {}}}')
    (tmp_path / "leak.j2").write_text("{{ prompt }} {{ y }}")
    rows = [row | {"response": "w30"} for row in places.prompts()] if "distill]" in str(changes) else None
    place = write(tmp_path, **changes)
    if rows:
        write_lines(place / "rows.jsonl", *rows)
    with pytest.raises(RecipeError) as error:
        places.read(place)
    assert said in str(error.value)


def test_a_schema_stands_in_a_request_once(tmp_path: Path) -> None:
    save_tiny(tmp_path / "student")
    extra = "extra_body: {response_format: {type: json_object}}"
    write(
        tmp_path,
        teacher=f"{{endpoint: 'http://127.0.0.1:9/v1', model: big, {extra}}}",
        student="{model: student}",
        task="{type: json}",
        stages="[generate, finetune]",
    )
    with pytest.raises(
        RecipeError, match=r"teacher.extra_body.response_format: is what task sends by itself"
    ):
        places.read(tmp_path)


def test_turns_keep_their_roles_on_the_way_to_a_served_teacher(tmp_path: Path) -> None:
    """Tool calls, their results and earlier turns; only the last turn of the user is written anew."""
    tokenizer = bytes_tokenizer(TOOLS)
    tiny_model(len(tokenizer)).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    call = {"id": "c1", "type": "function", "function": {"name": "area", "arguments": {"side": 5}}}
    about = {"type": "object", "properties": {"side": {"type": "integer"}}}
    rows = [
        {
            "messages": [
                {"role": "system", "content": "brief"},
                {"role": "user", "content": f"how large is {i}?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "25", "name": "area", "tool_call_id": "c1"},
            ],
            "tools": [{"type": "function", "function": {"name": "area", "parameters": about}}],
        }
        for i in range(24)
    ]
    (tmp_path / "long.j2").write_text("Think first. {{ prompt }}")
    teacher = "{endpoint: 'http://127.0.0.1:9/v1', model: big, prompt: long.j2}"
    stages = "[generate, finetune]"
    places.write(tmp_path, rows, teacher=teacher, student="{model: student}", stages=stages)
    context = Context(places.read(tmp_path), Store(tmp_path / "runs/.store"), Console(quiet=True), seed=0)
    prompts, _ = _rows.prompts(context, 4, 1)
    asked, _ = _asking.conversations(prompts, Sampling(4, 0.0), context)
    assert len(asked) == 24
    for one in asked:
        assert [turn["role"] for turn in one.messages] == ["system", "user", "assistant", "tool"]
        assert one.messages[1]["content"].startswith("Think first. how large is ")
        assert one.messages[2]["tool_calls"][0]["function"]["arguments"] == '{"side": 5}'
        assert one.messages[3]["tool_call_id"] == "c1"
        assert one.tools[0]["function"]["name"] == "area"
    row = context.setup.data.train[0]
    assert row.messages[1]["content"].startswith("how large is ")
