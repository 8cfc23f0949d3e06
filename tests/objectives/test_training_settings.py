"""The loss where training is set up in another way: no gradient, scaled gradients, adapters, tied, quantised, autocast."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

from builders.losses import normal, token_loss
from potstill.objectives.fused import linear_loss, logits_loss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.types import Head

N, H, V = 37, 8, 51
CHUNK = 2 * 16 * V * 8


class Int8Head(nn.Module):
    """A head that keeps its weight in 8 bits with one scale a row, as quantised layers do."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).t()


@pytest.mark.parametrize("way", ["store", "recompute", "module", "logits"])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_loss_without_gradients_has_the_same_value_and_no_graph(way, guard):
    """Under no_grad and inference_mode the sum is the same and carries no graph."""
    weight = normal(V, H, seed=2)
    layer = Int8Head(weight)
    head = Head(None, V, module=layer) if way == "module" else Head(weight.requires_grad_(), V)

    def run() -> Tensor:
        hidden = normal(N, H, seed=1).requires_grad_()
        rowwise = token_loss("jsd", 2.0).rowwise(Dense(normal(N, V, seed=3)))
        if way == "logits":
            return logits_loss(hidden @ weight.t(), rowwise, chunk_bytes=CHUNK).sum
        mode = "recompute" if way == "recompute" else "store"
        return linear_loss(hidden, head, rowwise, chunk_bytes=CHUNK, mode=mode).sum

    with guard():
        quiet = run()
    assert not quiet.requires_grad
    trained = run()
    assert trained.requires_grad
    torch.testing.assert_close(quiet.clone(), trained.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("way", ["store", "recompute", "module", "logits"])
def test_a_gradient_scaler_is_applied_once(way):
    """Scaled by 1024 and unscaled again, each gradient is the plain one."""
    results = []
    for scale in (None, 1024.0):
        hidden = nn.Parameter(normal(N, H, seed=1, dtype=torch.float32))
        weight = nn.Parameter(normal(V, H, seed=2, dtype=torch.float32))
        layer = nn.Linear(H, V, bias=False)
        layer.weight = weight
        head = Head(None, V, module=layer) if way == "module" else Head(weight, V)
        rowwise = token_loss("jsd").rowwise(Dense(normal(N, V, seed=3, dtype=torch.float32)))
        if way == "logits":
            out = logits_loss(hidden @ weight.t(), rowwise, chunk_bytes=CHUNK)
        else:
            mode = "recompute" if way == "recompute" else "store"
            out = linear_loss(hidden, head, rowwise, chunk_bytes=CHUNK, mode=mode)
        optimizer = torch.optim.SGD([hidden, weight], lr=0.0)
        if scale is None:
            out.mean.backward()
        else:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            scaler.scale(out.mean).backward()
            assert weight.grad.abs().max() > 100 * results[0][1].abs().max()
            scaler.unscale_(optimizer)
        results.append((hidden.grad, weight.grad))
    for plain, unscaled in zip(*results, strict=True):
        torch.testing.assert_close(unscaled, plain, atol=1e-7, rtol=1e-5)


def test_half_precision_gradients_under_a_scaler_equal_single_precision():
    """fp16 hidden states and head with a scale of 65536: finite, and equal to fp32 within fp16's digits."""
    results = []
    for dtype, scale in ((torch.float32, 1.0), (torch.float16, 65536.0)):
        hidden, weight = (
            normal(*shape, seed=seed).half().to(dtype).requires_grad_()
            for shape, seed in (((N, H), 1), ((V, H), 2))
        )
        out = linear_loss(hidden, Head(weight, V), token_loss().rowwise(Dense(normal(N, V, seed=3).float())))
        (out.sum * (scale / N / 1000)).backward()
        results.append([g.float() / scale for g in (hidden.grad, weight.grad)])
    for single, half in zip(*results, strict=True):
        assert half.isfinite().all()
        assert (half - single).norm() <= 2e-3 * single.norm()


@pytest.mark.parametrize("trained", ["weight", "bias", "hidden"])
def test_training_one_part_alone_gives_it_the_same_gradient(trained):
    """Only the head, only its bias, or only what lies below: each gradient is the one of training all."""

    def run(parts: set[str]) -> dict[str, Tensor]:
        tensors = {
            "hidden": normal(N, H, seed=1),
            "weight": normal(V + 3, H, seed=2),
            "bias": normal(V + 3, seed=4),
        }
        for part in parts:
            tensors[part].requires_grad_()
        rowwise = token_loss("reverse_kl").rowwise(Dense(normal(N, V, seed=3)))
        head = Head(tensors["weight"], V, tensors["bias"], scale=0.5, softcap=4.0)
        linear_loss(tensors["hidden"], head, rowwise, chunk_bytes=CHUNK).sum.backward()
        return {part: tensors[part].grad for part in parts}

    whole = run({"hidden", "weight", "bias"})
    torch.testing.assert_close(run({trained})[trained], whole[trained], atol=1e-13, rtol=1e-13)


def test_a_quantised_head_is_applied_through_its_own_forward():
    """A head of unknown form answers through its own forward, on either side, and passes gradients below it."""
    layer, other = Int8Head(normal(V + 2, H, seed=2)), Int8Head(normal(V + 5, 3, seed=4))
    hidden, teacher_hidden = normal(N, H, seed=1).requires_grad_(), normal(N, 3, seed=6)
    signal = Hidden(teacher_hidden, Head(None, V, module=other, scale=2.0, softcap=6.0))
    head = Head(None, V, module=layer, scale=0.5, softcap=4.0)
    out = linear_loss(hidden, head, token_loss("jsd", 2.0).rowwise(signal), chunk_bytes=CHUNK)
    (got,) = torch.autograd.grad(out.sum, hidden)
    z = (4 * torch.tanh(0.5 * layer(hidden) / 4))[:, :V] / 2
    t = (6 * torch.tanh(2.0 * other(teacher_hidden) / 6))[:, :V] / 2
    jsd = importlib.import_module("potstill.divergences.jsd").value
    want = jsd(z.log_softmax(-1), t.log_softmax(-1)).sum()
    # The teacher's logits of an unknown head pass through single precision.
    torch.testing.assert_close(out.sum, want, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(got, torch.autograd.grad(want, hidden)[0], atol=1e-6, rtol=1e-5)
