"""A recipe that mixes the teacher's answers with files: what its stages train on, and what a check says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import places
from builders.chats import write_lines
from potstill.data.answers import Written
from potstill.errors import DataError, RecipeError
from potstill.recipe.signatures import FAMILIES
from potstill.stages import _rows
from potstill.stages.control import Control
from potstill.stages.distill import Distill
from potstill.stages.finetune import Finetune

GENERATE = "{generate: {filters: null, max_new_tokens: 4}}"
STAGES = f"[{GENERATE}, {{distill: {{steps: 1}}}}, {{finetune: {{steps: 1}}}}, {{control: {{}}}}]"
SEVENTY = (
    "{train: rows.jsonl, mix: [{source: teacher_generated, share: 0.7}, {source: real.jsonl, share: 0.3}]%s}"
)


def real(count: int = 30) -> list[dict[str, str]]:
    return [
        {"id": f"p{i}", "prompt": f"w{60 + i} w13", "response": f"w{90 - i} w14 w15"} for i in range(count)
    ]


@pytest.fixture
def mixed(tmp_path):
    write_lines(tmp_path / "real.jsonl", *real())
    places.write(tmp_path, places.prompts(60), data=SEVENTY % "", stages=STAGES)
    return tmp_path


def written(place) -> list[Written]:
    rows = places.read(place).data.train
    return [Written(row.id, 0, (20, 21, 2), "w20 w21", "stop") for row in rows]


def test_every_stage_that_trains_on_the_recipes_rows_trains_on_the_mix(mixed) -> None:
    pipeline = places.after_generate(mixed, written(mixed))
    train = {
        spec.verb: _rows.training(pipeline.state, pipeline.context, spec).train
        for spec in (Distill(), Finetune(), Control())
    }
    assert train["distill"] == train["finetune"] == train["control"]
    origins = [example.origin for example in train["distill"]]
    teacher, data = origins.count("teacher"), origins.count("data")
    assert len(origins) == int(min(len(pipeline.context.setup.data.train) / 0.7, 30 / 0.3))
    assert abs(teacher - 0.7 * len(origins)) < 1
    assert abs(data - 0.3 * len(origins)) < 1
    assert len({example.id for example in train["distill"]}) == len(origins)  # ids began again in the file


def test_real_rows_with_held_out_prompts_are_left_out_and_said(mixed) -> None:
    held = places.read(mixed).data.heldout[0]
    write_lines(mixed / "real.jsonl", *real(), {"id": "h", "prompt": held.prompt_text, "response": "w20"})
    setup = places.read(mixed)
    assert len(setup.data.mixed["real.jsonl"]) == 30
    assert any("1 of 31 rows of real.jsonl have held-out prompts" in note for note in setup.notes)


def test_a_check_says_what_the_shares_come_to(mixed) -> None:
    report = places.checked(mixed)
    items = {item.name: item for item in report.items}
    assert items["mix"].passed
    assert "rows of teacher_generated" in items["mix"].detail
    assert "of 30 rows of real.jsonl" in items["mix"].detail
    assert any(note.startswith("generate: filters: none works") for note in report.notes)


def test_a_check_fails_a_mix_that_is_not_possible(mixed) -> None:
    places.recipe(mixed, data=SEVENTY % ", mix_total: 1000", stages=STAGES)
    (item,) = (item for item in places.checked(mixed).items if item.name == "mix")
    assert not item.passed
    assert "0.7 of 1000 rows are 700" in item.detail
    pipeline = places.after_generate(mixed, written(mixed))
    with pytest.raises(DataError, match=r"0\.7 of 1000 rows are 700, and teacher_generated has"):
        _rows.training(pipeline.state, pipeline.context, Finetune())


def test_a_mix_of_files_alone_needs_no_teacher_and_says_so(mixed) -> None:
    data = "{train: rows.jsonl, mix: [{source: real.jsonl, share: 1}]}"
    places.write(mixed, places.answered(60), data=data, stages="[{finetune: {steps: 1}}]")
    setup = places.read(mixed)
    assert any("only real data is trained on" in note for note in setup.notes)
    assert next(item for item in places.checked(mixed).items if item.name == "mix").detail.startswith(
        "by rows: 30 of 30"
    )


def test_answers_that_nobody_writes_before_cannot_be_mixed(mixed) -> None:
    places.recipe(mixed, data=SEVENTY % "", stages=f"[{{finetune: {{steps: 1}}}}, {GENERATE}]")
    with pytest.raises(RecipeError, match="finetune trains on teacher_generated, and no stage before it"):
        places.read(mixed)
    places.recipe(mixed, data=SEVENTY % "", stages=f"[capture, {GENERATE}, {{finetune: {{steps: 1}}}}]")
    with pytest.raises(RecipeError, match="capture reads teacher_generated, and no stage before it"):
        places.read(mixed)


def test_answers_of_files_that_a_task_calls_invalid_are_counted(mixed) -> None:
    stages = f"[{GENERATE}, finetune, {{finetune: {{name: own, data: own.jsonl}}}}]"
    write_lines(
        mixed / "own.jsonl", *({"prompt": f"w{40 + i} w17", "response": "w20"} for i in range(3)), *real(1)
    )
    places.recipe(mixed, data=SEVENTY % "", stages=stages, task="{type: label, labels: [w20, w21]}")
    notes = " ".join(places.read(mixed).notes)
    assert "30 of 30 rows of real.jsonl hold an answer that is none by it (none of the labels" in notes
    assert "1 of 4 rows of own hold an answer that is none by it" in notes


def test_a_check_names_the_filters_that_work(mixed) -> None:
    stages = "[{generate: {samples: 4, filters: [near_duplicates, {loops: {action: ignore}}], verifier: numeric}}, finetune]"
    pytest.importorskip("datasketch")
    places.write(mixed, [row | {"response": "7"} for row in places.prompts(60)], stages=stages)
    notes = " ".join(places.checked(mixed).notes)
    assert "near_duplicates are rejected; refusals, language, personal are counted and kept" in notes
    assert "loops" not in notes
    assert "of 4 answers to a prompt, the first right answer by numeric is kept" in notes


def test_a_row_that_a_verifier_cannot_judge_is_refused_before_anything_is_asked(mixed) -> None:
    places.recipe(mixed, stages="[{generate: {samples: 2, verifier: {numeric: {gold: result}}}}, finetune]")
    with pytest.raises(DataError, match="no number in the column 'result'"):
        places.read(mixed)


def test_filters_and_verifiers_are_families_of_plug_ins() -> None:
    assert {"filters", "verifiers"} <= set(FAMILIES)


def test_rows_of_another_file_are_not_compared_by_distribution_where_the_models_are_asked_differently(
    mixed,
) -> None:
    """The teacher would read the file's answers behind the student's prompt."""
    (mixed / "short.j2").write_text("w62 {{ prompt }}\n")
    student = "{from_teacher: {keep_layers: 1, by: uniform}, prompt: short.j2}"
    places.recipe(mixed, data=SEVENTY % "", stages=STAGES, student=student)
    with pytest.raises(RecipeError, match=r"rows of real\.jsonl") as raised:
        places.read(mixed)
    assert raised.value.path == "stages.distill"
    places.recipe(mixed, data=SEVENTY % "", stages=f"[{GENERATE}, finetune]", student=student)
    assert places.read(mixed).data.mixed


def test_rows_of_another_file_are_given_to_the_teachers_that_their_column_names(mixed) -> None:
    pipeline = places.after_generate(mixed, written(mixed))
    context, data = pipeline.context, pipeline.context.setup.data
    rows = tuple(replace(row, extra={"subject": "maths"}) for row in data.mixed["real.jsonl"])
    train = tuple(replace(row, extra={"subject": "code"}) for row in data.train)
    changed = replace(data, train=train, mixed={"real.jsonl": rows})
    context = replace(context, setup=replace(context.setup, domain="subject", data=changed))
    examples, _ = _rows.mix(pipeline.state, context)
    assert {example.domain for example in examples} == {"maths", "code"}


def test_the_answers_of_the_very_file_are_mixed_in_without_rows_that_choose_or_measure(mixed) -> None:
    data = "{train: rows.jsonl, mix: [{source: teacher_generated, share: 0.5}, {source: rows.jsonl, share: 0.5}]}"
    places.write(mixed, places.answered(60), data=data, stages=f"[{GENERATE}, finetune]")
    setup = places.read(mixed)
    known = {row.prompt_text for row in setup.data.train}
    assert {row.prompt_text for row in setup.data.mixed["rows.jsonl"]} == known
    assert any("rows of rows.jsonl have prompts of rows that choose" in note for note in setup.notes)
