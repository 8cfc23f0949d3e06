"""A model's settings for generation: every end is known, and what can be saved is kept."""

from __future__ import annotations

import json
import logging

import pytest
from transformers import GenerationConfig

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny, tiny_model
from potstill.errors import ModelError
from potstill.models import generation
from potstill.models.source import find_source

STAGES = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]"


def settings(folder, **values):
    (folder / "generation_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("written", "ids"), [({"eos_token_id": [2, 7]}, (2, 7)), ({"eos_token_id": 7}, (7,)), ({}, ())]
)
def test_the_ids_that_end_a_models_answers_are_read_from_its_settings(tmp_path, written, ids):
    save_tiny(tmp_path)
    settings(tmp_path, **written)
    assert generation.end_ids(find_source(str(tmp_path))) == ids


@pytest.mark.parametrize(
    "text", [None, "{}", '{"eos_token_id": null}', '{"eos_token_id": [], "max_new_tokens": 0}']
)
def test_a_model_whose_settings_name_no_end_adds_none(tmp_path, text):
    save_tiny(tmp_path)
    file = tmp_path / "generation_config.json"
    file.unlink() if text is None else file.write_text(text)
    assert generation.end_ids(find_source(str(tmp_path))) == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot load the model"),
        ("[1]", "not a JSON object"),
        ('{"eos_token_id": 2.0}', "2.0 ends an answer, which is no id"),
        ('{"eos_token_id": [2, "</s>"]}', "'</s>' ends an answer"),
        ('{"eos_token_id": true}', "True ends an answer"),
        ('{"eos_token_id": {"a": 2}}', "ends an answer"),
        ('{"eos_token_id": -1}', "-1 ends an answer"),
        ('{"eos_token_id": [2, 128]}', "128 ends an answer, which is no id of it"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(tmp_path, text, complaint):
    """Without them the model would write on behind its own end."""
    save_tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=complaint):
        generation.end_ids(find_source(str(tmp_path)), 128)


def test_an_end_without_a_word_is_shown_by_its_number(tmp_path):
    """A vocabulary may be padded."""
    places.write(tmp_path)
    tiny_model(vocab=160).save_pretrained(tmp_path / "teacher")
    settings(tmp_path / "teacher", eos_token_id=[2, 150])
    done = potstill("check", "--quick", "r.yaml", cwd=tmp_path)
    assert "answers end with </s>, the id 150" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {}),
        ({"top_p": 0.6, "temperature": 0.9, "do_sample": True}, {"do_sample", "temperature", "top_p"}),
        ({"early_stopping": True, "repetition_penalty": 1.1}, {"repetition_penalty"}),
        ({"length_penalty": 0.5, "num_beams": 2}, {"length_penalty", "num_beams"}),
        ({"num_return_sequences": 3, "max_length": 30}, {"max_length"}),
    ],
)
def test_settings_that_contradict_the_rest_are_left_out_by_name(tmp_path, caplog, written, kept):
    model = tiny_model()
    model.generation_config = GenerationConfig()
    for name, value in written.items():
        setattr(model.generation_config, name, value)
    with caplog.at_level(logging.WARNING, "potstill"):
        generation.keep_valid(model)
    model.save_pretrained(tmp_path)
    assert {name for name in written if name in model.generation_config.to_diff_dict()} == set(kept)
    assert all(name in caplog.text for name in set(written) - set(kept))


@pytest.mark.parametrize("student", ["{from_teacher: {keep_layers: 1}}", "{model: small}"])
def test_a_run_saves_a_student_whose_settings_no_library_would_save(tmp_path, student):
    places.write(tmp_path, places.answered(), student=student, stages="[{distill: {steps: 1}}]")
    save_tiny(tmp_path / "small", layers=1)
    for folder in ("teacher", "small"):
        settings(tmp_path / folder, temperature=0.9, top_p=0.6, eos_token_id=2)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shipped = GenerationConfig.from_pretrained(tmp_path / "runs/r/student")
    assert (shipped.eos_token_id, shipped.temperature) == (2, None)


def test_a_teacher_stops_at_every_end_that_its_settings_name_and_the_student_knows_it(tmp_path):
    """Id 7 ends the teacher's answers by its settings alone: neither tokenizer nor template knows it."""
    places.write(tmp_path, places.prompts(), stages=STAGES)
    teacher = tiny_model(layers=2)
    teacher.lm_head.weight.data.zero_()
    teacher.lm_head.weight.data[7] = 1.0
    teacher.model.norm.weight.data.fill_(1.0)
    teacher.model.embed_tokens.weight.data.abs_()
    teacher.save_pretrained(tmp_path / "teacher")
    settings(tmp_path / "teacher", eos_token_id=[2, 7])
    done = potstill("run", "r.yaml", "generate.max_new_tokens=64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "runs/r/stages/generate/answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert all(7 not in answer["ids"][:-1] for answer in answers)
    assert any(answer["ids"][-1] == 7 and answer["finish"] == "stop" for answer in answers)
    shipped = GenerationConfig.from_pretrained(tmp_path / "runs/r/student")
    assert shipped.eos_token_id == [2, 7]
