"""A loss that is added up over tiles of the vocabulary equals the one over whole rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potstill import DistillationLoss, divergences
from potstill.errors import SignalError
from potstill.objectives import streaming
from potstill.objectives.fused import linear_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.recipe import resolve
from potstill.types import Dense, Head, Hidden

N, H, V, PAD = 23, 16, 301, 11
ADDITIVE = [name for name in divergences.names() if getattr(divergences, name).__dict__.get("ADDITIVE")]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss(name: str, temperature: float = 1.0, ce_weight: float = 0.0) -> TokenLoss:
    return TokenLoss(Divergence.from_module(resolve.load("divergences", name, {})), temperature, ce_weight)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "TILE", 64)
    monkeypatch.setattr(streaming, "ROWS", 7)


@pytest.mark.parametrize("name", divergences.names())
def test_a_divergence_says_rightly_whether_it_is_a_sum_over_outcomes(name):
    value = loss(name).divergence.value
    student, teacher = (normal(5, 40, seed=seed).mul(3).log_softmax(-1) for seed in (1, 2))
    parts = [value(student[:, i : i + 13], teacher[:, i : i + 13]) for i in range(0, 40, 13)]
    whole = value(student, teacher)
    assert torch.allclose(whole, torch.stack(parts).sum(0), rtol=1e-12, atol=1e-12) == (name in ADDITIVE)


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize(("temperature", "ce_weight"), [(1.0, 0.0), (2.0, 0.3)])
@pytest.mark.parametrize("rich", [False, True], ids=["plain head", "bias, scale, softcap, LoRA"])
def test_tiles_of_the_vocabulary_give_the_value_of_whole_rows(name, temperature, ce_weight, rich):
    hidden, weight = normal(N, H, seed=1), normal(V + PAD, H, seed=2)
    lora = (normal(4, H, seed=4), normal(V + PAD, 4, seed=5), 0.5)
    head = Head(weight, V, normal(V + PAD, seed=3), 0.7, 3.0, lora) if rich else Head(weight, V)
    signal = Hidden(normal(N, 8, seed=6), Head(normal(V + 3, 8, seed=7), V, softcap=5.0))
    targets, weights = torch.arange(N) * 13 % V, torch.linspace(0.1, 2.0, N, dtype=torch.float64)
    hard = torch.arange(N) % 3 > 0
    objective = loss(name, temperature, ce_weight)
    rowwise = objective.rowwise(signal, targets, hard, weights, metrics=True)
    with torch.no_grad():
        rows = linear_loss(hidden, head, rowwise)
    tiles = streaming.streamed_loss(
        hidden, head, signal, objective, targets, hard=hard, weights=weights, metrics=True
    )
    torch.testing.assert_close(tiles.sum, rows.sum, rtol=1e-11, atol=1e-11)
    assert tiles.count == rows.count
    assert set(tiles.metrics) == set(rows.metrics)
    for metric, value in rows.metrics.items():
        torch.testing.assert_close(tiles.metrics[metric], value, rtol=1e-11, atol=1e-11)


def test_logits_of_minus_infinity_are_outcomes_without_mass():
    weight = normal(V, H, seed=2)
    bias = torch.zeros(V, dtype=torch.float64)
    bias[:70] = float("-inf")
    head = Head(weight, V, bias)
    signal = Hidden(normal(N, H, seed=3), Head(normal(V, H, seed=4), V, bias))
    hidden, objective = normal(N, H, seed=1), loss("forward_kl")
    with torch.no_grad():
        rows = linear_loss(hidden, head, objective.rowwise(signal))
    tiles = streaming.streamed_loss(hidden, head, signal, objective)
    assert torch.isfinite(tiles.sum)
    torch.testing.assert_close(tiles.sum, rows.sum, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_weights_are_widened_before_the_products(dtype):
    hidden, weight = normal(N, H, seed=1, dtype=dtype), normal(V, H, seed=2, dtype=dtype)
    signal = Hidden(normal(N, H, seed=3, dtype=dtype), Head(normal(V, H, seed=4, dtype=dtype), V))
    exact = Hidden(signal.hidden.double(), Head(signal.head.weight.double(), V))
    objective = loss("jsd")
    narrow = streaming.streamed_loss(hidden, Head(weight, V), signal, objective)
    wide = streaming.streamed_loss(hidden.double(), Head(weight.double(), V), exact, objective)
    assert narrow.sum.dtype == torch.float32
    torch.testing.assert_close(narrow.sum.double(), wide.sum, rtol=1e-5, atol=1e-5)


def test_no_position_gives_a_sum_of_nothing():
    head = Head(normal(V, H, seed=2), V)
    empty = torch.zeros(0, H, dtype=torch.float64)
    out = streaming.streamed_loss(empty, head, Hidden(empty, head), loss("forward_kl"), metrics=True)
    assert (float(out.sum), int(out.count)) == (0.0, 0)


def test_what_cannot_be_streamed_is_refused_with_the_way_out():
    head = Head(normal(V, H, seed=2), V)
    hidden = normal(N, H, seed=1)
    with pytest.raises(SignalError, match="renyi is not a sum over outcomes"):
        streaming.streamed_loss(hidden, head, Hidden(hidden, head), loss("renyi"))
    assert "Dense" in streaming.unable(head, Dense(hidden), loss("jsd"))
    assert "301 ids, the student's 300" in streaming.unable(
        Head(head.weight, 300), Hidden(hidden, head), loss("jsd")
    )


@pytest.mark.parametrize("name", ["jsd", "renyi"])
def test_mode_eval_of_the_drop_in_loss_has_the_value_and_no_gradient(name):
    student = torch.nn.Linear(H, V, bias=False)
    hidden = normal(2, 9, H, seed=1, dtype=torch.float32).requires_grad_()
    teacher_hidden, teacher = (
        normal(2, 9, H, seed=2, dtype=torch.float32),
        normal(V, H, seed=3, dtype=torch.float32),
    )
    mask = torch.ones(2, 9, dtype=torch.bool)
    stored = DistillationLoss(name)(hidden, student, teacher_hidden, teacher, mask)
    seen = DistillationLoss(name, mode="eval")(hidden, student, teacher_hidden, teacher, mask)
    torch.testing.assert_close(seen.sum, stored.sum, rtol=1e-5, atol=1e-5)
    assert not seen.sum.requires_grad


def test_memory_does_not_grow_with_the_vocabulary(monkeypatch):
    monkeypatch.setattr(streaming, "TILE", 1024)
    monkeypatch.setattr(streaming, "ROWS", 256)
    n, vocabulary = 512, 20_000
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            sizes.append(made.numel() if isinstance(made, Tensor) else 0)
            return made

    head = Head(normal(vocabulary, 8, seed=1, dtype=torch.float32), vocabulary)
    hidden = normal(n, 8, seed=2, dtype=torch.float32)
    with Watch():
        streaming.streamed_loss(hidden, head, Hidden(hidden, head), loss("jsd"), metrics=True)
    assert max(sizes) <= 2 * 256 * 1024  # the two buffers of a tile; whole logits are 20 times that
