"""What a training stage logs, when it stops, and what it leaves behind."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from builders import places
from builders.cli import potstill
from builders.jobs import STUDENT, TEACHER, Memory, answers, events, saying, student, trained
from builders.tiny import tiny_model, tiny_tokenizer
from potstill.data.batch import collate
from potstill.errors import Interrupted, ModelError
from potstill.models import loading
from potstill.recipe.specs import DivergenceChoice, TokenWeightChoice
from potstill.train import checkpoint
from potstill.train.step import each_row_once
from potstill.types import Example

FORWARD_KL = 0.266217


def words(count: int = 6) -> list[Example]:
    ids = torch.randint(4, 128, (count, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example(f"r{i}", tuple(row), (False,) * 3 + (True,) * 5) for i, row in enumerate(ids)]


@pytest.mark.parametrize("lengths", [(1,), (10,), (100,), (1, 10, 100)])
def test_the_logged_loss_does_not_depend_on_the_length_of_answers(tmp_path, lengths):
    """One position repeated: training and validation say its value, whatever the number of tokens."""
    start = student(tmp_path / "s", saying(STUDENT))
    made = trained(tmp_path, start, Memory(saying(TEACHER)), answers(*lengths))
    for kind in ("step", "validation"):
        for event in events(made.path, kind):
            assert event["loss"] == pytest.approx(FORWARD_KL, abs=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 2.0, "ce_weight": 0.5},
        {"divergence": DivergenceChoice(name="jsd", options={"beta": 0.9})},
        {"token_weights": TokenWeightChoice(name="entropy")},
        {"normalize": "sequence_mean"},
        {"micro_batch_tokens": 24},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_training_and_validation_say_the_same_of_the_same_rows(tmp_path, options):
    """At a learning rate of 0, with answers of different lengths and rows of different weights."""
    rows = [
        replace(row, input_ids=row.input_ids[: 8 - i % 4], scored=row.scored[: 8 - i % 4], weight=1.0 + i)
        for i, row in enumerate(words())
    ]
    made = trained(
        tmp_path, student(tmp_path / "s", tiny_model()), Memory(tiny_model(seed=1)), rows, **options
    )
    steps, validations = events(made.path, "step"), events(made.path, "validation")
    rounded = 1e-3 if "precision" in options else 1e-6
    for key in ("loss", "divergence", "cross_entropy"):
        said = {event[key] for event in (*steps, *validations) if key in event}
        assert max(said) == pytest.approx(min(said), rel=rounded), key
    assert len(steps) == len(validations) == 2


def test_a_validation_logs_each_term_and_the_total(tmp_path):
    """Half hard labels at temperature 2: cross-entropy, KL at T = 1 and the total stand side by side."""
    start = student(tmp_path / "s", saying(STUDENT))
    teacher, half = Memory(saying(TEACHER)), {"temperature": 2.0, "ce_weight": 0.5}
    made = trained(tmp_path, start, teacher, answers(2, 5), **half)
    validations, steps = events(made.path, "validation"), events(made.path, "step")
    assert validations
    assert steps
    for event in validations:
        assert event["forward_kl"] == pytest.approx(FORWARD_KL, abs=2e-6)
    for event in validations + steps:
        assert event["cross_entropy"] == pytest.approx(1.098612, abs=2e-6)
        assert event["divergence"] == pytest.approx(0.078421, abs=2e-6)
        assert event["loss"] == pytest.approx(0.5 * 1.098612 + 0.5 * 0.313684, abs=2e-6)


def test_the_weight_of_a_row_does_not_depend_on_its_padding():
    """Equal weight for every row: a token weighs one over its own row's count, alone and in company."""
    rows = [Example("a", (5, 6, 7, 2), (False, False, True, True)), Example("b", (5, 2), (False, True))]
    rows.append(Example("c", (5, 6, 7, 8, 2, 2), (False, False, True, True, True, True)))
    together = each_row_once(collate([*rows, Example("long", (5,) * 16, (False,) * 16)], pad_id=2))
    assert together.weights.tolist() == [0.5] * 2 + [1.0] + [0.25] * 4
    alone = [each_row_once(collate([row], pad_id=2)).weights for row in rows]
    assert torch.equal(together.weights, torch.cat(alone))


@pytest.mark.parametrize("use_cache", [True, False])
def test_training_settings_stay_out_of_the_saved_config(tmp_path, use_cache):
    """Activation checkpointing wants no cache and training wants dropout; the student's config keeps its own."""
    model = tiny_model()
    model.config.use_cache, model.config.attention_dropout = use_cache, 0.25
    start = student(tmp_path / "s", model)
    teacher = Memory(tiny_model(seed=1))
    made = trained(tmp_path, start, teacher, words(), activation_checkpointing=True)
    config = AutoModelForCausalLM.from_pretrained(made.path / "student").config
    assert (config.use_cache, config.attention_dropout) == (use_cache, 0.25)


@pytest.mark.parametrize("tie", [False, True])
def test_the_saved_student_is_the_one_that_was_trained(tmp_path, monkeypatch, tie):
    """Logits, keys, size and tokenizer are the trained ones: nothing of teacher or wrapper is left in the folder."""
    seen = []
    save = loading.save

    def spy(model, tokenizer, folder):
        seen.append(model)
        save(model, tokenizer, folder)

    start = student(tmp_path / "s", tiny_model(tie=tie))
    monkeypatch.setattr(loading, "save", spy)
    teacher = Memory(tiny_model(seed=1, layers=4))
    folder = trained(tmp_path, start, teacher, words(), learning_rate=1e-2, steps=3).path / "student"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.tensor([[1, 10, 11, 20]])
    torch.testing.assert_close(model(ids).logits, seen[-1](ids).logits, atol=1e-6, rtol=0)
    assert (model(ids).logits - tiny_model(tie=tie)(ids).logits).abs().max() > 1e-3
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert sum(f.stat().st_size for f in folder.glob("*.safetensors")) <= 1.05 * weights
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny_tokenizer().chat_template


def test_a_student_ends_where_training_or_its_model_did_and_keeps_its_other_settings(tmp_path):
    model = tiny_model()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_p=0.5, repetition_penalty=1.3, eos_token_id=9, max_length=20
    )
    start = student(tmp_path / "s", model)
    made = trained(tmp_path, start, Memory(tiny_model(seed=1)), words(), stop_ids=(5, 2))
    shipped = GenerationConfig.from_pretrained(made.path / "student")
    assert shipped.eos_token_id == [5, 2, 9]
    assert shipped.pad_token_id == 0
    kept = {"do_sample": True, "temperature": 0.1, "top_p": 0.5, "repetition_penalty": 1.3, "max_length": 20}
    assert kept.items() <= shipped.to_diff_dict().items()


@pytest.mark.parametrize("at", [1, 3])
def test_a_stop_signal_in_training_costs_no_finished_step(tmp_path, at):
    """The signal comes once a step is done: a checkpoint of that step exists, and the next run goes on there."""
    start = student(tmp_path / "s", tiny_model())

    def stopped() -> int:
        logged = list((tmp_path / "store").glob(".building-train-*/metrics.jsonl"))
        return 15 if logged and len(events(logged[0].parent, "step")) >= at else 0

    teacher, many = Memory(tiny_model(seed=1)), {"learning_rate": 1e-3, "steps": 6, "tokens_per_step": 5}
    with pytest.raises(Interrupted, match=f"step {at} of 6.*checkpoint is saved") as caught:
        trained(tmp_path, start, teacher, words(), stop=stopped, **many)
    assert caught.value.exit_code == 143
    (folder,) = (tmp_path / "store").glob(".building-train-*/.checkpoints")
    assert checkpoint.newest(folder).state["step"] == at
    made = trained(tmp_path, start, teacher, words(), **many)
    assert [event["step"] for event in events(made.path, "step")] == list(range(1, 7))


def test_new_rows_of_a_head_keep_the_old_ones_on_load(tmp_path):
    """A head resized for added tokens, saved and loaded: what was there is there bit for bit."""
    model = tiny_model(tie=False)
    before = model.lm_head.weight.detach().clone()
    model.resize_token_embeddings(136, mean_resizing=False)
    loading.save(model, tiny_tokenizer(), tmp_path / "m")
    loaded = loading.load(loading.find_source(str(tmp_path / "m")), dtype=torch.float32).model
    assert loaded.lm_head.weight.shape[0] == loaded.config.vocab_size == 136
    assert torch.equal(loaded.lm_head.weight[:128], before)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("validation", "taken"), [(None, []), ((), [1])], ids=["measures first", "trains first"]
)
def test_a_signal_as_a_stage_begins_costs_at_most_one_step(tmp_path, validation, taken):
    """The first measurement stops between two batches; a first step is finished and logged."""
    start = student(tmp_path / "s", tiny_model())
    calls = itertools.count()
    teacher, many = Memory(tiny_model(seed=1)), {"learning_rate": 1e-3, "steps": 6, "tokens_per_step": 5}
    stop = {"stop": lambda: 2 if next(calls) else 0}
    with pytest.raises(Interrupted) as caught:
        trained(tmp_path, start, teacher, words(), validation=validation, **stop, **many)
    assert caught.value.exit_code == 130
    (folder,) = (tmp_path / "store").glob(".building-train-*")
    logged = [event for _ in folder.glob("metrics.jsonl") for event in events(folder, "step")]
    assert [event["step"] for event in logged] == taken


def test_weights_worse_than_the_start_are_reported(tmp_path):
    stages = "[{distill: {steps: 2, learning_rate: 1.0, validate_every: 2, warmup: 0}}]"
    places.write(tmp_path, places.answered(80), stages=stages)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no validation was better than before training" in done.stderr
    assert places.summary(tmp_path)["train"]["best_step"] == 2


def test_weights_that_learnt_from_the_students_own_text_are_not_called_worse(tmp_path):
    how = "steps: 2, learning_rate: 1.0, validate_every: 2, warmup: 0, guards: null, best_by: loss"
    stages = f"[{{distill: {{{how}, strategy: {{on_policy: {{max_new_tokens: 4}}}}}}}}]"
    places.write(tmp_path, places.answered(80), stages=stages)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "no validation was better" in line]
    assert not line.startswith("warning")
    assert "They hold no text of the student" in line


def bf16_teacher(place: Path) -> None:
    """Write `teacher/` in bf16 where `places.write` looks for it."""
    tiny_model(layers=3).bfloat16().save_pretrained(place / "teacher")
    tiny_tokenizer().save_pretrained(place / "teacher")


def test_a_student_is_shipped_in_its_teachers_format_and_a_later_stage_goes_on_from_it(tmp_path):
    bf16_teacher(tmp_path)
    stages = "[{distill: {steps: 2, learning_rate: 1.0e-2}}, {finetune: {steps: 1}}]"
    places.write(tmp_path, places.answered(40), stages=stages)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = "finetune: goes on from the student as it was shipped, its weights rounded to bfloat16"
    assert said in done.stderr
    teacher, student = ((tmp_path / place / "model.safetensors") for place in ("teacher", "runs/r/student"))
    assert student.stat().st_size < teacher.stat().st_size
    shipped = AutoModelForCausalLM.from_pretrained(tmp_path / "runs/r/student", dtype="auto")
    assert shipped.dtype == torch.bfloat16
    summary = places.summary(tmp_path)
    assert summary["student"]["bytes"] == 2 * summary["student"]["params"]
    assert summary["teacher"]["bytes"] == 2 * summary["teacher"]["params"]


def test_the_exported_weights_are_the_trained_ones_rounded_once_and_the_format_is_in_the_key(tmp_path):
    start, many = student(tmp_path / "s", tiny_model()), {"learning_rate": 1e-2, "steps": 3}
    teacher = Memory(tiny_model(seed=1))
    whole, rounded = (
        trained(tmp_path, start, teacher, words(), export_dtype=dtype, **many)
        for dtype in ("float32", "bfloat16")
    )
    assert whole.key != rounded.key
    best = load_file(whole.path / "student" / "model.safetensors")
    shipped = load_file(rounded.path / "student" / "model.safetensors")
    assert best.keys() == shipped.keys()
    assert all(torch.equal(value.bfloat16(), shipped[name]) for name, value in best.items())
    assert rounded.facts["bytes"] * 2 == whole.facts["bytes"]
    # The validation that chose the weights is that of the weights before rounding.
    assert rounded.facts["best_loss"] == whole.facts["best_loss"]


def test_a_student_out_of_the_range_of_its_format_is_refused_before_the_first_step(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    start = student(tmp_path / "s", model)
    with pytest.raises(ModelError, match="float16 ends at 65504, and model.norm.weight holds"):
        trained(tmp_path, start, Memory(tiny_model(seed=1)), words(), export_dtype="float16")
    assert not list((tmp_path / "store").glob(".building-train-*/metrics.jsonl"))
