"""What a training stage logs, when it stops, and what it leaves behind."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cases.jobs import FORWARD, STUDENT, TEACHER, Memory, answers, events, job, saying, student, world
from potstill.data.batch import collate
from potstill.errors import Interrupted
from potstill.models import loading
from potstill.objectives.token import TokenLoss
from potstill.stages import train
from potstill.train import checkpoint
from potstill.train.step import each_row_once
from potstill.types import Example
from tiny import tiny_model, tiny_tokenizer

FORWARD_KL = 0.266217


def words(count: int = 6) -> list[Example]:
    ids = torch.randint(4, 128, (count, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example(f"r{i}", tuple(row), (False,) * 3 + (True,) * 5) for i, row in enumerate(ids)]


@pytest.mark.parametrize("lengths", [(1,), (10,), (100,), (1, 10, 100)])
def test_the_logged_loss_shrinks_as_answers_get_longer(tmp_path, lengths):
    """One position repeated: training and validation say its value, whatever the number of tokens."""
    start = student(tmp_path / "s", saying(STUDENT))
    made = train.run(world(tmp_path), job(start, Memory(saying(TEACHER)), answers(*lengths)))
    for kind in ("step", "validation"):
        for event in events(made.path, kind):
            assert event["loss"] == pytest.approx(FORWARD_KL, abs=2e-6)


def test_a_validation_mixes_two_losses_into_one_number(tmp_path):
    """Half hard labels at temperature 2: cross-entropy, KL at T = 1 and the total stand side by side."""
    start = student(tmp_path / "s", saying(STUDENT))
    half = TokenLoss(FORWARD, temperature=2.0, ce_weight=0.5)
    made = train.run(world(tmp_path), job(start, Memory(saying(TEACHER)), answers(2, 5), loss=half))
    validations, steps = events(made.path, "validation"), events(made.path, "step")
    assert validations
    assert steps
    for event in validations:
        assert event["forward_kl"] == pytest.approx(FORWARD_KL, abs=2e-6)
    for event in validations + steps:
        assert event["cross_entropy"] == pytest.approx(1.098612, abs=2e-6)
        assert event["divergence"] == pytest.approx(0.078421, abs=2e-6)
        assert event["loss"] == pytest.approx(0.5 * 1.098612 + 0.5 * 0.313684, abs=2e-6)


def test_the_length_of_a_row_counts_its_padding():
    """Equal weight for every row: a token weighs one over its own row's count, alone and in company."""
    rows = [Example("a", (5, 6, 7, 2), (False, False, True, True)), Example("b", (5, 2), (False, True))]
    rows.append(Example("c", (5, 6, 7, 8, 2, 2), (False, False, True, True, True, True)))
    together = each_row_once(collate(rows, pad_id=2, multiple_of=16))
    assert together.weights.tolist() == [0.5] * 2 + [1.0] + [0.25] * 4
    alone = [each_row_once(collate([row], pad_id=2)).weights for row in rows]
    assert torch.equal(together.weights, torch.cat(alone))


@pytest.mark.parametrize("use_cache", [True, False])
def test_training_settings_end_up_in_the_saved_config(tmp_path, use_cache):
    """Activation checkpointing wants no cache and training wants dropout; the student's config keeps its own."""
    model = tiny_model()
    model.config.use_cache, model.config.attention_dropout = use_cache, 0.25
    start = student(tmp_path / "s", model)
    recomputing = replace(job(start, Memory(tiny_model(seed=1)), words()), activation_checkpointing=True)
    made = train.run(world(tmp_path), recomputing)
    config = AutoModelForCausalLM.from_pretrained(made.path / "student").config
    assert (config.use_cache, config.attention_dropout) == (use_cache, 0.25)


@pytest.mark.parametrize("tie", [False, True])
def test_the_exported_student_is_not_the_one_that_was_trained(tmp_path, monkeypatch, tie):
    """Its logits, its keys, its size and its tokenizer: nothing of teacher or wrapper is left in the folder."""
    seen = []
    save = loading.save

    def spy(model, tokenizer, folder):
        seen.append(model)
        save(model, tokenizer, folder)

    start = student(tmp_path / "s", tiny_model(tie=tie))
    monkeypatch.setattr(loading, "save", spy)
    many = job(start, Memory(tiny_model(seed=1, layers=4)), words(), learning_rate=1e-2, steps=3)
    folder = train.run(world(tmp_path), many).path / "student"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.tensor([[1, 10, 11, 20]])
    torch.testing.assert_close(model(ids).logits, seen[-1](ids).logits, atol=1e-6, rtol=0)
    assert (model(ids).logits - tiny_model(tie=tie)(ids).logits).abs().max() > 1e-3
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert sum(f.stat().st_size for f in folder.glob("*.safetensors")) <= 1.05 * weights
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny_tokenizer().chat_template


def test_a_student_ends_and_samples_as_its_base_model_did(tmp_path):
    """Every token that ended an answer in training ends one later; no sampling setting is inherited."""
    model = tiny_model()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_p=0.5, repetition_penalty=1.3, eos_token_id=9, max_length=20
    )
    start = student(tmp_path / "s", model)
    two_ends = replace(job(start, Memory(tiny_model(seed=1)), words()), stop_ids=(5, 2))
    made = train.run(world(tmp_path), two_ends)
    shipped = GenerationConfig.from_pretrained(made.path / "student")
    assert shipped.eos_token_id == [5, 2]
    assert shipped.pad_token_id == 0
    changed = shipped.to_diff_dict()
    assert not {"do_sample", "temperature", "top_p", "repetition_penalty", "max_length"} & changed.keys()


@pytest.mark.parametrize("at", [1, 3])
def test_a_stop_signal_in_training_costs_more_than_the_step_in_progress(tmp_path, at):
    """The signal comes once a step is done: a checkpoint of that step exists, and the next run goes on there."""
    start = student(tmp_path / "s", tiny_model())

    def stopped() -> int:
        logged = list((tmp_path / "store").glob(".building-train-*/metrics.jsonl"))
        return 15 if logged and len(events(logged[0].parent, "step")) >= at else 0

    many = job(start, Memory(tiny_model(seed=1)), words(), learning_rate=1e-3, steps=6, tokens_per_step=5)
    with pytest.raises(Interrupted, match=f"step {at} of 6.*checkpoint is saved") as caught:
        train.run(world(tmp_path, stopped), many)
    assert caught.value.exit_code == 143
    (folder,) = (tmp_path / "store").glob(".building-train-*/checkpoints")
    assert checkpoint.newest(folder).state["step"] == at
    made = train.run(world(tmp_path), many)
    assert [event["step"] for event in events(made.path, "step")] == list(range(1, 7))


def test_new_rows_of_a_head_change_the_old_ones_on_load(tmp_path):
    """A head resized for added tokens, saved and loaded: what was there is there bit for bit."""
    model = tiny_model(tie=False)
    before = model.lm_head.weight.detach().clone()
    model.resize_token_embeddings(136, mean_resizing=False)
    loading.save(model, tiny_tokenizer(), tmp_path / "m")
    loaded = loading.load(loading.find_source(str(tmp_path / "m")), dtype=torch.float32).model
    assert loaded.lm_head.weight.shape[0] == loaded.config.vocab_size == 136
    assert torch.equal(loaded.lm_head.weight[:128], before)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_signal_during_the_first_measurement_is_forgotten(tmp_path):
    """It is there before the first step: no further step is taken than the one that notices it."""
    start = student(tmp_path / "s", tiny_model())
    calls = itertools.count()
    many = job(start, Memory(tiny_model(seed=1)), words(), learning_rate=1e-3, steps=6, tokens_per_step=5)
    with pytest.raises(Interrupted):
        train.run(world(tmp_path, lambda: 2 if next(calls) else 0), many)
    (folder,) = (tmp_path / "store").glob(".building-train-*")
    assert not (folder / "metrics.jsonl").exists() or len(events(folder, "step")) <= 1
