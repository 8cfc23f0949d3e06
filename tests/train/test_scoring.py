"""Drawn tokens are scored as a training step sees them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from builders.steps import local_teacher, ragged_rows
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.errors import SignalError
from potstill.models.beside import as_when_drawn
from potstill.objectives.drawn import DrawnTokens
from potstill.signals.text import Text
from potstill.signals.topk import TopK
from potstill.train.scoring import score
from potstill.train.step import StudentModule
from potstill.types import Example


def by_hand(model, example):
    """Log-probabilities of the scored tokens from the model's own logits."""
    ids = torch.tensor([example.input_ids])
    lp = model(input_ids=ids).logits[0].log_softmax(-1)
    return [float(lp[i - 1, example.input_ids[i]].detach()) for i, mark in enumerate(example.scored) if mark]


@pytest.mark.parametrize("packed", [False, True])
def test_both_models_log_probabilities_of_every_scored_token_are_those_of_their_logits(packed):
    student, rows = tiny_model(seed=0), ragged_rows(5)
    got = score(
        StudentModule(student, 128), local_teacher(), rows, pad_id=0, micro_batch_tokens=40, packed=packed
    )
    assert [example.id for example in got] == [example.id for example in rows]
    for example in got:
        assert example.student_lp == pytest.approx(by_hand(student, example), abs=1e-5)
        assert example.teacher_lp == pytest.approx(by_hand(tiny_model(seed=1), example), abs=1e-5)
    batch = collate(got, pad_id=0)
    assert batch.student_lp is not None
    assert batch.student_lp.isfinite().all()


def test_scoring_leaves_the_training_mode_and_no_gradient():
    module = StudentModule(tiny_model(seed=0, attention_dropout=0.5), 128)
    module.train()
    rows = ragged_rows(3)
    first, again = (score(module, local_teacher(), rows, pad_id=0, micro_batch_tokens=100) for _ in range(2))
    assert module.training
    assert first == again
    assert all(p.grad is None for p in module.parameters())


def test_an_empty_completion_is_scored_as_nothing_and_no_rows_as_none():
    module, empty = StudentModule(tiny_model(), 128), Example("e", (1, 5, 6), (False,) * 3, "student")
    (got,) = score(module, local_teacher(), [empty], pad_id=0, micro_batch_tokens=8)
    assert (got.student_lp, got.teacher_lp) == ((), ())
    assert score(module, local_teacher(), [], pad_id=0, micro_batch_tokens=8) == []


def test_without_a_teacher_only_the_student_speaks():
    (got,) = score(StudentModule(tiny_model(), 128), None, ragged_rows(1), pad_id=0, micro_batch_tokens=64)
    assert len(got.student_lp or ()) == got.count
    assert got.teacher_lp is None


def test_a_copy_of_the_teacher_says_exactly_what_the_teacher_says():
    rows = ragged_rows(4)
    for got in score(
        StudentModule(tiny_model(seed=1), 128), local_teacher(), rows, pad_id=0, micro_batch_tokens=64
    ):
        assert got.student_lp == got.teacher_lp


def test_a_signal_that_is_no_whole_distribution_is_refused():
    class Stored:
        def signal(self, batch):
            return TopK(torch.zeros(batch.count, 1, dtype=torch.int64), torch.zeros(batch.count, 1))

    with pytest.raises(SignalError, match="does not support topk"):
        score(StudentModule(tiny_model(), 128), Stored(), ragged_rows(1), pad_id=0, micro_batch_tokens=64)


def test_a_training_on_drawn_tokens_sees_them_as_they_were_drawn():
    """Dropout anywhere, in blocks that are computed again too: the ratio of probabilities is 1 before any step."""
    for checkpointing in (False, True):
        model = tiny_model(seed=0, attention_dropout=0.5)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.model.layers[0].mlp.down_proj = nn.Sequential(
            model.model.layers[0].mlp.down_proj, nn.Dropout(0.5)
        )
        module = StudentModule(model, 128)
        module.train()
        as_when_drawn(module)
        rows = score(module, local_teacher(), ragged_rows(3), pad_id=0, micro_batch_tokens=100)
        values = module(collate(rows, pad_id=0), Text(), DrawnTokens())[2]["student_lp"].tolist()
        assert values == pytest.approx([lp for row in rows for lp in row.student_lp or ()], abs=1e-6)
        assert model.model.layers[0].training is checkpointing


def test_what_a_block_drops_by_itself_is_off_where_it_is_computed_again():
    block = nn.Module()
    block.gradient_checkpointing, block.dropout = True, 0.5
    as_when_drawn(block)
    assert block.training
    assert block.dropout == 0.0
