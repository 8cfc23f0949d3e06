"""A toy whose teacher keeps 0.43 of its mass outside the stored ids, trained to convergence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from builders.losses import divergence
from potstill.cache import codecs
from potstill.cache.blocks import pack_fields, unpack_fields
from potstill.cache.codecs import Context, Entry
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.signal import Signal

VOCABULARY, CONTEXTS, STORED, COPIES = 64, 6, 8, 16


def teacher() -> Tensor:
    """Logits [contexts, V] whose 8 likeliest ids hold 0.57."""
    logits = torch.randn(CONTEXTS, VOCABULARY, generator=torch.Generator().manual_seed(2))
    top = logits.topk(STORED).indices
    inside = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, top, True)
    lp = torch.where(inside, logits, -torch.inf).log_softmax(-1) + torch.tensor(0.57).log()
    rest = torch.where(inside, -torch.inf, logits).log_softmax(-1) + torch.tensor(0.43).log()
    return torch.where(inside, lp, rest)


def signals(kind: str, setting) -> Callable[[int], Signal]:
    """The signal of every context as often as `COPIES`, as step n's cache holds it."""
    codec, logits = codecs.codec(kind), teacher().repeat(COPIES, 1)
    setting = codec.check(setting)

    def of(step: int) -> Signal:
        fields = codec.encode(Dense(logits), setting, step.to_bytes(16, "big"), VOCABULARY)
        fields = unpack_fields(pack_fields(fields, codec.FIELDS), codec.FIELDS)
        return codec.decode([Entry(len(logits), fields)], setting, Context(VOCABULARY)).whole()

    return of


def converged(of: Callable[[int], Signal], *, fresh: bool, tail: str = "bucket", steps: int = 300) -> float:
    """The full KL(teacher ‖ student) after training free logits, in nats."""
    student = torch.zeros(CONTEXTS, VOCABULARY, requires_grad=True)
    loss = TokenLoss(divergence("forward_kl"), tail=tail)
    optimizer = torch.optim.Adam([student], lr=0.1)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fixed = of(0)
    for step in range(steps):
        out = logits_loss(student.repeat(COPIES, 1), loss.rowwise(of(step) if fresh else fixed))
        optimizer.zero_grad()
        out.mean.backward()
        optimizer.step()
        rate.step()
    lp = teacher().log_softmax(-1)
    return float((lp.exp() * (lp - student.detach().log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("sampled", {"draws": 12}), ("topk_sampled", {"threshold": 0.0, "most": STORED, "draws": 12})],
)
def test_fresh_draws_converge_to_the_teacher(kind, setting, record_property):
    of = signals(kind, setting)
    fresh, fixed = converged(of, fresh=True), converged(of, fresh=False)
    record_property("kl_of_fresh_draws", fresh)
    record_property("kl_of_a_fixed_cache", fixed)
    print(f"{kind}: full KL {fresh:.4f} from fresh draws, {fixed:.4f} from a fixed cache")
    assert fresh <= 0.05
    assert fresh < fixed < 1.0


@pytest.mark.parametrize(("tail", "least"), [("renormalise", 0.5), ("bucket", 0.05)])
def test_a_cut_distribution_does_not(tail, least):
    of = signals("topk", {"threshold": 0.0, "most": STORED})
    assert converged(of, fresh=False, tail=tail) > least
