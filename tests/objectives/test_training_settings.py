"""The loss where training is set up in another way: no gradient, scaled gradients, adapters, tied, quantised, autocast."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.data.batch import collate
from potstill.models.anatomy import head_of
from potstill.objectives.fused import linear_loss, logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Batch, Example, Head

N, H, V = 37, 8, 51
CHUNK = 2 * 16 * V * 8


def token_loss(name: str = "forward_kl", temperature: float = 1.0, ce_weight: float = 0.0) -> TokenLoss:
    module = importlib.import_module(f"potstill.divergences.{name}")
    return TokenLoss(Divergence.from_module(module), temperature, ce_weight)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows(n: int = 3) -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for i in range(n):
        ids = torch.randint(4, 128, (7 + 2 * i,), generator=generator).tolist()
        found.append(Example(f"r{i}", tuple(ids), tuple(j > 3 for j in range(7 + 2 * i))))
    return found


def dense_loss(student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Forward KL per scored token from the models' own logits."""
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "position_ids")}
    q = student(**inputs).logits[batch.predicts].log_softmax(-1)
    p = teacher(**inputs).logits[batch.predicts].log_softmax(-1).detach()
    return (p.exp() * (p - q)).sum() / batch.count


def assert_step_equals_dense(student: Any, teacher: Any, **kinds: torch.dtype) -> None:
    """A training step's gradient is that of the plain formula on the models' logits."""
    batch = collate(rows(), pad_id=0)
    reference = copy.deepcopy(student)
    dense_loss(reference, teacher, batch).backward()
    module = StudentModule(student, 128)
    accumulate(module, LocalTeacher(teacher, vocabulary=128, fingerprint="t"), [batch], token_loss())
    wanted = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    got = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            got[name], gradient, atol=2e-6, rtol=1e-4, msg=lambda t, n=name: f"{n}: {t}"
        )


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
    found = []
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
            assert weight.grad.abs().max() > 100 * found[0][1].abs().max()
            scaler.unscale_(optimizer)
        found.append((hidden.grad, weight.grad))
    for plain, unscaled in zip(*found, strict=True):
        torch.testing.assert_close(unscaled, plain, atol=1e-7, rtol=1e-5)


def test_half_precision_gradients_under_a_scaler_equal_single_precision():
    """fp16 hidden states and head with a scale of 65536: finite, and equal to fp32 within fp16's digits."""
    found = []
    for dtype, scale in ((torch.float32, 1.0), (torch.float16, 65536.0)):
        hidden, weight = (
            normal(*shape, seed=seed).half().to(dtype).requires_grad_()
            for shape, seed in (((N, H), 1), ((V, H), 2))
        )
        out = linear_loss(hidden, Head(weight, V), token_loss().rowwise(Dense(normal(N, V, seed=3).float())))
        (out.sum * (scale / N / 1000)).backward()
        found.append([g.float() / scale for g in (hidden.grad, weight.grad)])
    for single, half in zip(*found, strict=True):
        assert half.isfinite().all()
        assert (half - single).norm() <= 2e-3 * single.norm()


def test_a_tied_embedding_of_a_whole_model_gets_both_gradients():
    """Through a whole model whose head is its embedding."""
    assert_step_equals_dense(tiny_model(seed=0, tie=True), tiny_model(seed=1))


def test_an_adapter_on_the_head_is_part_of_the_loss():
    """LoRA on the head and on a block: loss and gradients of the adapters are the model's own."""
    student = tiny_model(seed=0)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), student)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert head_of(student, 128).lora is not None
    assert_step_equals_dense(student, tiny_model(seed=1))
    trained = {n for n, p in student.named_parameters() if p.grad is not None}
    assert all("lora_" in n for n in trained)
    assert any(n.startswith("lm_head") for n in trained)


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


@pytest.mark.parametrize("path", ["hidden", "logits"])
def test_autocast_around_the_loss_changes_no_bit(path):
    """Inside a bf16 region value and gradient are bit for bit those outside."""
    weight, teacher_weight = normal(V, H, seed=2).float(), normal(V, H, seed=4).float()
    loss, found = DistillationLoss("jsd", temperature=2.0), []
    for on in (False, True):
        hidden = normal(N, H, seed=1).float().requires_grad_()
        z, t = hidden @ weight.t(), normal(N, H, seed=3).float() @ teacher_weight.t()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            if path == "hidden":
                out = loss(hidden, weight, normal(N, H, seed=3).float(), teacher_weight, torch.ones(N))
            else:
                out = loss.from_logits(z, t, torch.ones(N))
        out.sum.backward()
        assert out.sum.dtype == torch.float32
        found.append((out.sum.detach(), hidden.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_bf16_forward_pass_changes_no_more_than_its_rounding():
    """A student run under autocast: loss and gradient stay near those in single precision, and are single."""
    batch, found = collate(rows(), pad_id=0), []
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    for dtype in (None, torch.bfloat16):
        module = StudentModule(tiny_model(seed=0), 128, autocast=dtype)
        result = accumulate(module, teacher, [batch], token_loss())
        head = module.student.lm_head.weight.grad
        assert head.dtype == torch.float32
        found.append((result.means()["loss"], head))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.05)
    assert (found[1][1] - found[0][1]).norm() <= 0.1 * found[0][1].norm()


@pytest.mark.parametrize("mode", ["store", "recompute"])
def test_a_loss_inside_a_checkpointed_region_keeps_its_gradient(mode):
    """Backbone and loss in one region that is computed twice: the gradient of computing once."""
    below, head, teacher = (
        nn.Linear(H, H).double(),
        normal(V, H, seed=2).requires_grad_(),
        normal(N, H, seed=3),
    )
    loss = DistillationLoss("reverse_kl", mode=mode)

    def region(x: Tensor) -> Tensor:
        return loss(below(x).tanh(), head, teacher, normal(V, H, seed=4), torch.ones(N)).sum

    found, x = [], normal(N, H, seed=1)
    for again in (False, True):
        total = checkpoint(region, x, use_reentrant=False) if again else region(x)
        found.append(torch.autograd.grad(total, [below.weight, head]))
    for once, twice in zip(*found, strict=True):
        torch.testing.assert_close(twice, once, atol=1e-12, rtol=1e-12)


def test_activation_checkpointing_keeps_the_gradient_of_hard_labels_and_jsd():
    """A mixed loss through a model that recomputes its blocks."""
    found, batch = [], collate(rows(), pad_id=0)
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    for on in (False, True):
        student = tiny_model(seed=0, tie=True)
        if on:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module = StudentModule(student, 128)
        module.train()
        accumulate(module, teacher, [batch], token_loss("jsd", 2.0, 0.4))
        found.append([p.grad for p in module.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


def test_hard_labels_leave_out_what_the_student_wrote():
    """Rows written by the student, a share of hard labels, and a teacher equal to it: no loss and no gradient."""
    written = [Example(r.id, r.input_ids, r.scored, origin="student") for r in rows()]
    module = StudentModule(tiny_model(seed=1), 128)
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    result = accumulate(module, teacher, [collate(written, pad_id=0)], token_loss(ce_weight=0.5))
    assert abs(result.means()["loss"]) <= 1e-6
    assert max(p.grad.abs().max() for p in module.parameters()) <= 1e-5
    mixed = accumulate(
        module, teacher, [collate([*rows(1), *written[1:]], pad_id=0)], token_loss(ce_weight=0.5)
    )
    assert mixed.means()["loss"] > 0.1


def test_sampling_settings_do_not_reach_the_loss():
    """A sampling temperature is no option of the loss, and a recipe's does not move its objective."""
    from potstill.errors import PotstillError
    from potstill.recipe.recipe import parse_recipe
    from potstill.stages._objective import objective_of

    with pytest.raises(PotstillError, match="sampling_temperature"):
        DistillationLoss("forward_kl", sampling_temperature=0.7)
    for sampling in (0.7, 1.3):
        recipe = parse_recipe(
            {
                "teacher": {"model": "teacher"},
                "student": {"from_teacher": {"keep_layers": 2}},
                "data": {"train": "rows.jsonl"},
                "stages": [
                    {"generate": {"sampling_temperature": sampling}},
                    {"distill": {"temperature": 1.0}},
                ],
            }
        )
        loss = objective_of(recipe.stages[1]).at(0, 4)
        out = logits_loss(torch.ones(1, 3), loss.rowwise(Dense(torch.tensor([[2.0, 1.0, 0.0]]))))
        assert out.sum.item() == pytest.approx(0.266217, abs=1e-6)
