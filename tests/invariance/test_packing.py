"""Rows that stand end to end train as rows side by side do, or are refused."""

from __future__ import annotations

import pytest
import torch

from builders.steps import assert_same, ragged_rows
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.data.plan import plan_steps
from potstill.divergences import forward_kl
from potstill.errors import ModelError
from potstill.objectives.token import Divergence, TokenLoss
from potstill.teachers.local import LocalTeacher
from potstill.train import packing
from potstill.train.step import StudentModule, accumulate, each_row_once
from potstill.types import Example, places_in_answers

LOSS = TokenLoss(Divergence.from_module(forward_kl), ce_weight=0.3)


def gradient(packed: bool, attention: str = "sdpa", by_row: bool = False) -> dict[str, torch.Tensor]:
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    for model in (student, teacher):
        model.set_attn_implementation(attention)
    module = StudentModule(student, 128)
    batches = [collate(rows, pad_id=0, packed=packed) for rows in (ragged_rows()[:4], ragged_rows()[4:])]
    if by_row:
        batches = [each_row_once(batch) for batch in batches]
    accumulate(module, LocalTeacher(teacher, vocabulary=128, fingerprint="t"), batches, LOSS)
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("by_row", [False, True], ids=["tokens", "sequence_mean"])
def test_packed_rows_give_the_gradient_of_padded_ones(attention, by_row):
    assert_same(gradient(True, attention, by_row), gradient(False, attention, by_row))


def test_no_row_predicts_the_start_of_the_next():
    rows = [Example("a", (5, 6, 7), (True, True, True)), Example("b", (8, 9), (True, True))]
    batch = collate(rows, pad_id=0, packed=True)
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.predicts.tolist() == [[True, True, False, True, False]]
    assert places_in_answers(batch.predicts).tolist() == [0, 1, 0]
    assert batch.example_counts().tolist() == [2, 2, 1]


def test_a_packed_micro_batch_counts_its_tokens_without_padding():
    lengths = [30, 10, 10, 10]
    options = {"tokens_per_step": 100, "micro_batch_tokens": 60, "seed": 0, "epoch": 0}
    assert [len(m) for m in plan_steps(lengths, lengths, **options)[0]] == [2, 2]
    assert [len(m) for m in plan_steps(lengths, lengths, packing=True, **options)[0]] == [4]


def test_a_model_that_keeps_packed_rows_apart_passes_the_proof():
    packing.prove(tiny_model(), ragged_rows(), pad_id=0)


def test_a_model_whose_rows_leak_into_each_other_is_refused():
    """A running mean over the sequence, as a recurrent layer keeps: positions cannot stop it."""
    model = tiny_model()
    model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: output.cumsum(1) / torch.arange(1, output.shape[1] + 1)[:, None]
    )
    with pytest.raises(ModelError, match=r"does not keep packed rows apart.*packing: false"):
        packing.prove(model, ragged_rows(), pad_id=0)
    assert not model.training
