"""The loss and the step on a CUDA device against float64 and against the CPU."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from builders.losses import normal, token_loss
from builders.steps import ragged_rows
from builders.tiny import tiny_model
from potstill import divergences
from potstill.data.batch import collate
from potstill.models import anatomy
from potstill.objectives import rows
from potstill.objectives.compiled import Compiled
from potstill.objectives.fused import linear_loss
from potstill.signals.hidden import Hidden
from potstill.students import depth
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Head

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def value_and_gradients(
    name: str, place: str, dtype: torch.dtype, temperature: float, *, compile: bool = False
) -> list[Tensor]:
    """Sum, dh and dW in float64 on the CPU; inputs are rounded to bf16 first, so that all see the same."""
    tensors = [
        (scale * normal(*shape, seed=seed)).bfloat16().to(place, dtype)
        for seed, shape, scale in (
            (1, (67, 64), 1.0),
            (2, (520, 64), 0.2),
            (3, (67, 32), 1.0),
            (4, (515, 32), 0.2),
        )
    ]
    hidden, weight = (t.requires_grad_() for t in tensors[:2])
    signal = Hidden(tensors[2], Head(tensors[3], 509))
    loss = token_loss(name, temperature)
    # A graph holds the formula alone, not the shape checks that the tests put around it.
    formula = inspect.unwrap(loss.divergence.function)
    loss = replace(loss, divergence=replace(loss.divergence, function=formula))
    rowwise = loss.rowwise(signal, compile=compile)
    out = linear_loss(hidden, Head(weight, 509), rowwise, chunk_bytes=2 * 16 * 509 * 8)
    results = torch.autograd.grad(out.sum, [hidden, weight])
    return [t.detach().double().cpu() for t in (out.sum, *results)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", [n for n in divergences.names() if n != "hard_cross_entropy"])
def test_the_fused_loss_equals_float64_on_the_device(name, temperature, dtype):
    right = value_and_gradients(name, "cpu", torch.float64, temperature)
    result = value_and_gradients(name, "cuda", dtype, temperature)
    for ours, theirs in zip(result, right, strict=True):
        assert (ours - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()


@pytest.fixture
def graphs(monkeypatch):
    """What is compiled, counted from nothing."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(rows, "COMPILED", Compiled(rows.dense_rows))
    return counters["stats"]


@pytest.mark.filterwarnings("default")  # the compiler's own are no failure of it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in divergences.names() if n != "hard_cross_entropy"])
def test_the_compiled_loss_equals_float64_and_the_eager_one(name, dtype, graphs):
    """Chunks of 16 rows and a last one of 3 are one compilation."""
    right = value_and_gradients(name, "cpu", torch.float64, 2.0)
    eager = value_and_gradients(name, "cuda", dtype, 2.0)
    result = value_and_gradients(name, "cuda", dtype, 2.0, compile=True)
    assert rows.COMPILED.works
    assert graphs["unique_graphs"] == 1
    for ours, same, theirs in zip(result, eager, right, strict=True):
        assert (ours - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()
        assert (ours - same).norm() <= TOLERANCE[dtype] * theirs.norm()


def test_a_step_gives_the_gradient_of_the_cpu():
    def gradient(place: str) -> list[Tensor]:
        student, teacher = tiny_model(seed=0).to(place), tiny_model(seed=1).to(place)
        module = StudentModule(student, 128)
        loss = token_loss("jsd")
        batch = collate(ragged_rows(), pad_id=0)
        accumulate(module, LocalTeacher(teacher, vocabulary=128, fingerprint="t"), [batch], loss)
        return [p.grad.double().cpu() for p in module.parameters()]

    for ours, theirs in zip(gradient("cuda"), gradient("cpu"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n", [1024, 8192])
def test_logits_of_a_whole_batch_never_exist(n):
    """Over its inputs the loss needs its chunk, dh and dW, whatever N is; whole logits are 4 N V bytes twice."""
    vocabulary, width = 32768, 256
    hidden = torch.randn(n, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    signal = Hidden(hidden.detach().clone(), Head(weight.detach().clone(), vocabulary))
    loss = token_loss()
    hidden @ weight.t()[:, :8]  # the library's workspace is no part of the loss
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    chunk = 96 * 2**20
    linear_loss(hidden, Head(weight, vocabulary), loss.rowwise(signal), chunk_bytes=chunk).sum.backward()
    used = torch.cuda.max_memory_allocated() - before
    kept = 4 * width * (n + vocabulary)
    assert used <= 5 * chunk + 3 * kept


def test_a_half_precision_teacher_on_the_device_can_be_cut():
    """The student is made beside it in fp32 on the processor, whose sums differ."""
    teacher = tiny_model(seed=0, layers=6, hidden=128).cuda()
    for parameter in teacher.parameters():
        parameter.data = parameter.data.bfloat16()
    student = depth.cut(teacher, [0, 2, 3, 5])
    assert len(anatomy.layers(student)) == 4


def test_a_head_in_autocast_agrees_with_float64():
    """fp32 states and weights, whose products round their operands to bf16, as autocast does in other layers."""
    tensors = [normal(67, 64, seed=1), 0.2 * normal(521, 64, seed=2), normal(67, 32, seed=3)]
    head = 0.2 * normal(521, 32, seed=4)

    def results(place: str, dtype: torch.dtype, rounded: bool) -> list[Tensor]:
        hidden, weight, states = (t.bfloat16().to(place, dtype) for t in tensors)
        hidden.requires_grad_(), weight.requires_grad_()
        signal = Hidden(states, Head(head.bfloat16().to(place, dtype), 521))
        rows = token_loss("forward_kl", 1.0).rowwise(signal)
        out = linear_loss(hidden, Head(weight, 521), rows, chunk_bytes=2 * 16 * 521 * 8, rounded=rounded)
        grads = torch.autograd.grad(out.sum, [hidden, weight])
        return [t.detach().double().cpu() for t in (out.sum, *grads)]

    right = results("cpu", torch.float64, False)
    for ours, theirs in zip(results("cuda", torch.float32, True), right, strict=True):
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm()
