"""Heads that are not a plain linear layer, in the drop-in loss and in training."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

from builders.losses import Living, token_loss
from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.data.batch import collate
from potstill.objectives.fused import linear_loss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example, Head

H, V = 4, 10


class Scaled(nn.Linear):
    """A linear layer whose forward does more than its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(H, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(x)


def adapted() -> nn.Module:
    model = peft.get_peft_model(Wrapped(), peft.LoraConfig(r=2, target_modules=["lm_head"]))
    head = model.base_model.model.lm_head
    nn.init.normal_(head.lora_B["default"].weight)
    return head


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("make", [lambda: Scaled(H, V), adapted], ids=["own forward", "adapter"])
def test_a_head_with_a_forward_of_its_own_is_applied_through_it(make, side):
    """An adapter on the head, or any forward of its own, is applied or refused by name; never left out."""
    hidden, plain, head = torch.randn(1, 3, H), nn.Linear(H, V), make()
    student, teacher = (head, plain) if side == "student" else (plain, head)
    out = DistillationLoss()(hidden, student, hidden, teacher, torch.ones(1, 3))
    want = DistillationLoss().from_logits(student(hidden), teacher(hidden), torch.ones(1, 3))
    torch.testing.assert_close(out.sum, want.sum)


def test_an_adapted_model_can_be_trained():
    """A PeftModel's backbone is the one inside its wrapper: its loss and gradients are the model's own."""
    model = peft.get_peft_model(
        tiny_model(seed=0), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    )
    module = StudentModule(model, 128)
    batch = collate([Example("r", tuple(range(4, 14)), tuple(i > 4 for i in range(10)))], pad_id=0)
    accumulate(
        module, LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t"), [batch], token_loss()
    )
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)


def test_the_requested_vocabulary_overrules_that_of_the_heads():
    """vocabulary=6 with two heads of ten ids compares six ids, or is refused; not ten."""
    hidden, one, other = torch.randn(1, 3, H), torch.randn(V, H), torch.randn(V, H)
    loss = DistillationLoss(vocabulary=6)
    wanted = loss(hidden, one, hidden, other, torch.ones(1, 3))
    result = loss(hidden, Head(one, V), hidden, Head(other, V), torch.ones(1, 3))
    torch.testing.assert_close(result.sum, wanted.sum)


def test_an_adapters_first_matrix_trained_alone_gets_its_gradient():
    """LoRA with B frozen and A trained: A's gradient is the one of training both."""
    results = []
    for both in (True, False):
        g = torch.Generator().manual_seed(0)
        hidden, weight, target = (torch.randn(*s, generator=g) for s in ((5, H), (V, H), (5, V)))
        a, b = torch.randn(2, H, generator=g).requires_grad_(), torch.randn(V, 2, generator=g)
        head = Head(weight, V, lora=(a, b.requires_grad_(both), 0.5))
        # Something else must be trained too, or the loss has no graph at all.
        linear_loss(hidden.requires_grad_(), head, token_loss().rowwise(Dense(target))).sum.backward()
        results.append(a.grad)
    assert results[1] is not None
    torch.testing.assert_close(results[1], results[0])


def test_logits_of_a_head_of_unknown_form_are_not_kept():
    """Through a head of unknown form a forward pass keeps a fraction of the logits, as through a known one."""
    n, vocabulary = 256, 4000
    layer = Scaled(H, vocabulary, bias=False)
    hidden = torch.randn(n, H).requires_grad_()
    with Living() as living:
        signal = Hidden(torch.randn(n, H), Head(torch.randn(vocabulary, H), vocabulary))
        out = linear_loss(
            hidden, Head(None, vocabulary, module=layer), token_loss().rowwise(signal), chunk_bytes=2 * 16 * vocabulary * 4
        )  # fmt: skip
        assert living.now < n * vocabulary * 4 / 4
    out.sum.backward()
