"""Teacher and student with different tokenizers: text crosses over, ids never do."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny, tiny_tokenizer
from potstill.data.answers import Written
from potstill.generate import local

STAGES = "[{generate: {filters: null, max_new_tokens: 4}}, {finetune: {steps: 2}}, {evaluate: {samples: 4}}]"


@pytest.fixture
def place(tmp_path):
    """The student calls 21 what the teacher calls 20, and so for every pair of neighbours."""
    save_tiny(tmp_path / "other", layers=1)
    core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    words = core["model"]["vocab"]
    for i in range(12, 128, 2):
        words[f"w{i}"], words[f"w{i + 1}"] = words[f"w{i + 1}"], words[f"w{i}"]
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(core))
    return places.write(tmp_path, places.prompts(), student="{model: other}", stages=STAGES)


def test_the_teachers_text_is_learnt_in_the_students_ids(place):
    """`w20 w21` by the teacher is [20, 21]; the student is trained on the same words, its own [21, 20]."""
    row = places.read(place).data.train[0]
    pipeline = places.after_generate(place, [Written(row.id, 0, (20, 21, 2), "w20 w21", "stop")])
    (example,) = pipeline.examples("train")
    assert [i for i, s in zip(example.input_ids, example.scored, strict=True) if s] == [21, 20, 2]


def test_a_cut_off_answer_of_another_tokenizer_gets_no_end_token(place):
    """An answer that the teacher did not end teaches no end token, whatever ids it is written in."""
    row = places.read(place).data.train[0]
    pipeline = places.after_generate(place, [Written(row.id, 0, (20, 21), "w20 w21", "length")])
    (example,) = pipeline.examples("train")
    assert [i for i, s in zip(example.input_ids, example.scored, strict=True) if s] == [21, 20]


def test_a_kl_between_two_vocabularies_is_null_with_a_reason(place):
    """There is no such KL: the figure is null with the reason, and the student's own perplexity still stands."""
    done = potstill("run", "r.yaml", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)["summary"]["after"]
    for name in ("forward_kl", "reverse_kl", "agreement"):
        assert after[name] is None
        assert "vocabular" in after[f"{name}_reason"]
    assert after["ppl"]["value"] > 1


def test_each_model_reads_prompts_through_its_own_tokenizer(place, monkeypatch):
    """In evaluation too each model reads the prompt through its own tokenizer."""
    calls = []
    generate = local.generate

    def spy(model, prompts, sampling, **settings):
        calls.append((model.config.num_hidden_layers, [tuple(prompt) for prompt in prompts]))
        return generate(model, prompts, sampling, **settings)

    monkeypatch.setattr(local, "generate", spy)
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    by_teacher = [set(prompts) for layers, prompts in calls if layers == 2]
    assert len(by_teacher) == 2
    assert by_teacher[1] <= by_teacher[0], "held-out prompts, as the teacher read them when it wrote"
