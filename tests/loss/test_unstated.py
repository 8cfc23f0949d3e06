"""Positions of which a teacher states only ids that the student lacks: nothing is compared, and nothing pulls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from builders.losses import module, normal, token_loss
from potstill import divergences
from potstill.objectives.fused import logits_loss
from potstill.signals.topk import TopK

SHARED, MORE = 11, 14
STORED = [name for name in divergences.names() if "topk" in module(name).SUPPORTS]
TAILS = [("forward_kl", "truncate"), *((name, tail) for name in STORED for tail in ("bucket", "renormalise"))]


def signal(rows: list[list[int]]) -> TopK:
    """Three ids a position of a teacher with more ids, each with its probability there, at T = 1 and T = 2.5."""
    ids, lp = torch.tensor(rows), normal(len(rows), MORE, seed=1).log_softmax(-1)
    return TopK(ids, lp.gather(1, ids), {2.5: (lp / 2.5).logsumexp(-1)}, MORE)


def loss_of(targets: TopK, logits: Tensor, name: str, **settings: Any) -> tuple[Tensor, Tensor]:
    """The sum of the loss, and its gradient by the logits; labels are 0, 1, 2, ..."""
    logits = logits.detach().requires_grad_()
    rows = token_loss(name, **settings).rowwise(targets, torch.arange(len(logits)))
    value = logits_loss(logits, rows).sum
    return value.detach(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("name", "tail"), TAILS)
def test_a_position_without_a_shared_id_costs_nothing_and_pulls_nowhere(name, tail, temperature):
    logits = normal(3, SHARED)
    settings = {"name": name, "tail": tail, "temperature": temperature}
    every, slope = loss_of(signal([[1, 12, 3], [13, 12, 11], [2, 4, 0]]), logits, **settings)
    others = torch.tensor([0, 2])
    kept = signal([[1, 12, 3], [13, 12, 11], [2, 4, 0]]).at(others)
    value, wanted = loss_of(kept, logits[others], **settings)
    torch.testing.assert_close(every, value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope[others], wanted, rtol=1e-12, atol=1e-14)
    assert torch.count_nonzero(slope[1]) == 0


@pytest.mark.parametrize("name", STORED)
def test_where_no_position_has_a_shared_id_the_loss_is_nothing(name):
    value, slope = loss_of(signal([[13, 12, 11], [11, 12, 13]]), normal(2, SHARED), name)
    assert float(value) == 0.0
    assert torch.count_nonzero(slope) == 0


def test_its_hard_label_counts_as_that_of_any_other_position():
    logits, targets = normal(2, SHARED), signal([[1, 2, 3], [13, 12, 11]])
    value, slope = loss_of(targets, logits, "forward_kl", ce_weight=0.25)
    alone, _ = loss_of(targets.at(slice(0, 1)), logits[:1], "forward_kl", ce_weight=0.25)
    lp = logits[1].log_softmax(-1)
    torch.testing.assert_close(value - alone, -0.25 * lp[1])
    wanted = 0.25 * (lp.exp() - torch.eye(SHARED, dtype=lp.dtype)[1])
    torch.testing.assert_close(slope[1], wanted)


def test_a_shared_id_keeps_a_probability_of_at_most_1_where_others_round_to_all_of_the_mass():
    """In half precision the logarithm of 1 - 2e-8 is 0, and the shared id beside it has 1e-8."""
    lp = torch.tensor([[1 - 2e-8, 1e-8]], dtype=torch.float64).log().half()
    assert float(lp[0, 0]) == 0.0
    targets = TopK(torch.tensor([[13, 4]]), lp, vocabulary=MORE)
    value, slope = loss_of(targets, normal(1, SHARED), "forward_kl")
    assert value.isfinite()
    assert float(value) >= 0
    assert slope.isfinite().all()
