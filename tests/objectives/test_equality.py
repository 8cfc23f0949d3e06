"""A student that equals its teacher, and the worked position, on every path that a loss can take."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from builders.losses import divergence
from builders.tiny import tiny_model
from potstill import DistillationLoss, divergences
from potstill.data.batch import collate
from potstill.objectives.fused import linear_loss, logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.sampled import Sampled
from potstill.signals.topk import TopK
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example, Head, Loss

VANISHING = [name for name in divergences.names() if divergence(name).vanishes]
V, WIDTH, N = 500, 16, 40
PATHS = ["logits", "fused", "recompute", "module", "bf16 weights", "topk", "renormalised", "all ids"]


class Odd(torch.nn.Linear):
    """A head whose form is not known."""


def at_equality(path: str, name: str, temperature: float) -> Loss:
    """The loss of a student against its own numbers."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(V, WIDTH, generator=generator), torch.randn(N, WIDTH, generator=generator)
    loss = TokenLoss(divergence(name), temperature)
    if path in ("topk", "renormalised", "all ids"):
        lp = (hidden @ weight.t()).log_softmax(-1)
        top = lp.topk(V if path == "all ids" else 32)
        signal = TopK(top.indices, top.values, {temperature: torch.logsumexp(lp / temperature, -1)})
        tail = "renormalise" if path == "renormalised" else "bucket"
        return logits_loss(hidden @ weight.t(), dataclasses.replace(loss, tail=tail).rowwise(signal))
    if path == "logits":
        return logits_loss(hidden @ weight.t(), loss.rowwise(Dense(hidden @ weight.t())))
    if path == "bf16 weights":
        weight, hidden = weight.bfloat16(), hidden.bfloat16()
    head = Head(weight, V)
    if path == "module":
        layer = Odd(WIDTH, V, bias=False)
        layer.weight.data.copy_(weight)
        head = Head(None, V, module=layer)
    mode = "recompute" if path == "recompute" else "store"
    return linear_loss(
        hidden, head, loss.rowwise(Hidden(hidden, head)), chunk_bytes=2 * 16 * V * 4, mode=mode
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_zero_at_equality(path, temperature):
    """Every divergence that is 0 at equality is at most 1e-6 nats there, and never below 0."""
    for name in VANISHING:
        if path in ("topk", "renormalised", "all ids") and "topk" not in divergence(name).supports:
            continue
        result = at_equality(path, name, temperature).mean.item()
        assert -1e-9 <= result <= 1e-6, name


@pytest.mark.parametrize("ce_weight", [0.0, 0.5])
@pytest.mark.parametrize("name", VANISHING)
def test_a_training_step_against_an_exact_copy_logs_zero(name, ce_weight):
    """The divergence that a step logs with an exact copy as its teacher, ragged rows, with and without labels."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(3):
        ids = torch.randint(4, 128, (6 + i,), generator=generator).tolist()
        rows.append(Example(f"r{i}", tuple(ids), tuple(j > 2 for j in range(6 + i))))
    module = StudentModule(tiny_model(seed=1), 128)
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    result = accumulate(
        module, teacher, [collate(rows, pad_id=0)], TokenLoss(divergence(name), 2.0, ce_weight=ce_weight)
    )
    assert abs(result.means()["divergence"]) <= 1e-6


def drawn(lp: Tensor, n: int, rows: int) -> Sampled:
    """`rows` independent draws of `n` ids from one distribution [V], with its entropy."""
    vocabulary = lp.shape[-1]
    generator = torch.Generator().manual_seed(0)
    picks = torch.multinomial(lp.exp().expand(rows, -1), n, replacement=True, generator=generator)
    counts = torch.zeros(rows, vocabulary, dtype=lp.dtype).scatter_add_(
        1, picks, torch.ones_like(picks, dtype=lp.dtype)
    )
    ids = torch.arange(vocabulary).expand(rows, -1)
    order = (counts == 0).int().argsort(dim=-1, stable=True)
    ids, counts = ids.gather(1, order), counts.gather(1, order)
    entropy = -(lp.exp() * lp).sum().expand(rows)
    return Sampled(torch.where(counts > 0, ids, -1), counts, entropy)


@pytest.mark.parametrize("n", [1, 12, 50])
@pytest.mark.parametrize("name", ["forward_kl", "soft_cross_entropy"])
def test_drawn_ids_have_no_mean_gradient_at_equality(name, n):
    """At equality the mean gradient of drawn ids is zero within four standard errors."""
    rows, logits = 3000, 2 * torch.randn(9, dtype=torch.float64)
    student = logits.repeat(rows, 1).requires_grad_()
    out = logits_loss(student, TokenLoss(divergence(name)).rowwise(drawn(logits.log_softmax(-1), n, rows)))
    (gradient,) = torch.autograd.grad(out.sum, student)
    assert gradient.std(0).min() > 0
    assert (gradient.mean(0).abs() <= 4 * gradient.std(0) / rows**0.5).all()


def test_drawn_ids_report_a_kl_of_zero_on_average_at_equality():
    """Reported is CE - H(p): 0 on average at equality, below 0 about half the time; the plug-in KL is far above."""
    rows, logits = 3000, 2 * torch.randn(40, dtype=torch.float64)
    signal = drawn(logits.log_softmax(-1), 12, rows)
    loss = TokenLoss(divergence("forward_kl"))
    each = torch.stack(
        [
            logits_loss(
                logits[None], loss.rowwise(Sampled(signal.ids[i, None], signal.counts[i, None], signal.entropy[i, None]))
            ).sum
            for i in range(300)
        ]
    )  # fmt: skip
    assert abs(each.mean()) <= 4 * each.std() / 300**0.5
    assert 0.3 < (each < 0).double().mean() < 0.7
    share = signal.counts / signal.counts.sum(-1, keepdim=True)
    own = -torch.special.xlogy(share, share).sum(-1)  # the entropy of what was drawn, not the teacher's
    plug_in = logits_loss(
        logits.repeat(300, 1), loss.rowwise(Sampled(signal.ids[:300], signal.counts[:300], own[:300]))
    ).mean
    assert plug_in > 0.3


WORKED = [
    ("forward_kl", {}, 1.0, 0.266217), ("reverse_kl", {}, 1.0, 0.308994), ("soft_cross_entropy", {}, 1.0, 1.098612),
    ("jsd", {"beta": 0.1}, 1.0, 0.023992), ("jsd", {"beta": 0.5}, 1.0, 0.068712), ("jsd", {"beta": 0.9}, 1.0, 0.026873),
    ("forward_kl", {}, 2.0, 0.078421), ("forward_kl", {}, 4.0, 0.020513), ("skew_kl", {"alpha": 0.1}, 1.0, 0.216488),
]  # fmt: skip
GRADIENTS = {
    ("forward_kl", 1.0): [-0.331908, 0.088605, 0.243303],
    ("forward_kl", 2.0): [x / 4 for x in (-0.346294, 0.052275, 0.294019)],
    ("reverse_kl", 1.0): [-1 / 3, 0.0, 1 / 3],
}


@pytest.mark.parametrize("path", ["logits", "hidden", "all ids"])
@pytest.mark.parametrize(("name", "options", "temperature", "expected"), WORKED)
def test_every_path_gives_the_values_of_the_worked_position(path, name, options, temperature, expected):
    """Teacher logits (2, 1, 0) against (1, 1, 1) on 37 tokens: the same numbers whatever the path."""
    teacher, student = torch.tensor([2.0, 1.0, 0.0]), torch.ones(37, 3).requires_grad_()
    loss = DistillationLoss(name, temperature=temperature, **options)
    if path == "hidden":
        eye = torch.eye(3)
        out = loss(student, eye, teacher.expand(37, 3), eye, torch.ones(37))
    elif path == "logits":
        out = loss.from_logits(student, teacher.expand(37, 3), torch.ones(37))
    else:
        lp = teacher.log_softmax(-1).expand(37, 3)
        stored = TopK(torch.arange(3).expand(37, 3), lp, {temperature: torch.logsumexp(lp / temperature, -1)})
        out = loss.from_logits(student, stored, torch.ones(37))
    assert out.mean.item() == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(out.sum, student)
    if (name, temperature) in GRADIENTS:
        wanted = torch.tensor(GRADIENTS[name, temperature]).expand(37, 3)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)


def test_softened_log_probabilities_are_normalised_again():
    """At T = 2 stored log-probabilities are normalised again: 0.506480 for the first id, not 0.815623."""
    lp = torch.tensor([[2.0, 1.0, 0.0]]).double().log_softmax(-1)
    stored = TopK(torch.arange(3).unsqueeze(0), lp, {2.0: torch.logsumexp(lp / 2, -1)})
    results = stored.beside(torch.zeros(1, 3).double(), slice(None), 2.0).teacher_lp.exp()
    assert results[0, 0].item() == pytest.approx(0.506480, abs=1e-6)
    assert results.sum().item() == pytest.approx(1.0)
    assert (lp / 2).exp().sum().item() == pytest.approx(1.610374, abs=1e-6)
