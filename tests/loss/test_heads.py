"""Output layers and how they say what they know."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from builders.losses import normal
from builders.tiny import tiny_model
from potstill import DistillationLoss, head_of
from potstill.errors import ModelError, SignalError
from potstill.types import Head


@pytest.mark.parametrize("mode", ["store", "recompute", "eval"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_head_with_fewer_rows_than_its_vocabulary_is_refused(mode, side):
    """Without the check, memory beyond the weight is read."""
    loss = DistillationLoss("forward_kl", vocabulary=60, mode=mode)
    small, large = normal(50, 8, seed=1), normal(60, 8, seed=2)
    heads = (small, large) if side == "student" else (large, small)
    with pytest.raises(SignalError, match=r"60.*50|50 rows"):
        loss(
            normal(1, 3, 8),
            Head(heads[0], 60),
            normal(1, 3, 8, seed=3),
            Head(heads[1], 60),
            labels=torch.tensor([[1, 2, 3]]),
        )


class Packed(nn.Module):
    """Like a 4-bit layer: its weight's shape says nothing of what comes out."""

    def __init__(self, weight: torch.Tensor, sized: bool) -> None:
        super().__init__()
        self.full = weight
        self.weight = nn.Parameter(weight.flatten().clone().unsqueeze(-1), requires_grad=False)
        if sized:
            self.out_features = weight.shape[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.full.t()


def test_a_head_with_a_packed_weight_says_its_size_by_out_features():
    weight, teacher = normal(30, 8, seed=1), normal(30, 8, seed=2)
    hidden, mask = normal(2, 4, 8), torch.ones(2, 4).bool()
    loss = DistillationLoss("forward_kl")
    wanted = loss(hidden, weight, hidden, teacher, mask).mean
    torch.testing.assert_close(
        loss(hidden, Packed(weight, True), hidden, teacher, mask).mean.double(), wanted
    )


def test_a_head_that_cannot_say_its_size_is_refused_with_a_way_on():
    loss = DistillationLoss("forward_kl")
    with pytest.raises(SignalError, match="does not say how many ids"):
        loss(normal(1, 2, 8), nn.Identity(), normal(1, 2, 8), normal(30, 8), torch.ones(1, 2).bool())


SMALL = dict(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    initializer_range=0.3, tie_word_embeddings=False,
)  # fmt: skip
CHANGED = {
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 1.5, "head_dim": 16}),
    "cohere": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    "granite": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 8.0}),
}
IDS = torch.arange(3, 15).reshape(2, 6)
LABELS = torch.where(IDS % 5 == 0, -100, IDS)


def changed(kind: str, seed: int, dtype: torch.dtype = torch.float64):
    """A model that scales or caps its logits."""
    config, model, options = CHANGED[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(config(**SMALL, **options)).to(dtype).eval()


def hidden(model):
    return model.base_model(IDS).last_hidden_state


def from_whole_logits(student, teacher):
    """KL(teacher‖student) from the models' own logits."""
    q, p = (m(IDS).logits[:, :-1][LABELS[:, 1:] != -100].log_softmax(-1) for m in (student, teacher))
    return (p.detach().exp() * (p.detach() - q)).sum(-1).mean()


@pytest.mark.parametrize("kind", CHANGED)
@pytest.mark.parametrize("read", [lambda model: model, head_of], ids=["model", "head_of"])
def test_models_that_scale_or_cap_their_logits_are_scored_on_their_own_logits(kind, read):
    student, teacher = changed(kind, 0), changed(kind, 1)
    ours = DistillationLoss()(hidden(student), read(student), hidden(teacher), read(teacher), labels=LABELS)
    wanted = from_whole_logits(student, teacher)
    torch.testing.assert_close(ours.mean, wanted, rtol=1e-9, atol=0)
    weight = student.lm_head.weight
    gradients = [torch.autograd.grad(value, weight)[0] for value in (ours.mean, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", CHANGED)
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("part", ["layer", "weight"])
def test_a_bare_part_of_a_model_that_scales_or_caps_is_refused(kind, side, part):
    student, teacher = changed(kind, 0), changed(kind, 1)
    given = {"student": student, "teacher": teacher}
    layer = given[side].lm_head
    given[side] = layer if part == "layer" else layer.weight
    with pytest.raises(SignalError, match=r"changes its logits after the output layer.*potstill.head_of"):
        DistillationLoss()(
            hidden(student), given["student"], hidden(teacher), given["teacher"], labels=LABELS
        )


def test_the_bare_layer_of_a_plain_model_equals_the_model():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    states = hidden(student), hidden(teacher)
    loss = DistillationLoss("jsd")
    bare, weight, whole = (
        loss(states[0], get(student), states[1], get(teacher), labels=LABELS).mean.item()
        for get in (lambda m: m.lm_head, lambda m: m.lm_head.weight, lambda m: m)
    )
    assert bare == weight == whole


def test_a_model_inside_an_adapter_is_read_with_its_scale_and_its_adapter():
    teacher = changed("granite", 1, torch.float32)
    student = get_peft_model(
        changed("granite", 0, torch.float32), LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    )
    nn.init.normal_(student.base_model.model.lm_head.lora_B["default"].weight)
    student.eval()
    states = student.get_base_model().base_model(IDS).last_hidden_state
    out = DistillationLoss()(states, student, hidden(teacher), teacher, labels=LABELS)
    torch.testing.assert_close(out.mean, from_whole_logits(student, teacher), rtol=1e-4, atol=1e-6)
    assert head_of(student).lora is not None


def test_a_model_whose_logits_follow_no_known_form_is_refused_whole_and_bare():
    class Odd(type(tiny_model())):
        def forward(self, *args, **kw):
            out = super().forward(*args, **kw)
            out.logits = out.logits**2
            return out

    odd, plain = Odd(tiny_model().config).eval(), tiny_model()
    with pytest.raises(ModelError, match="potstill does not know"):
        DistillationLoss()(hidden(odd), odd, hidden(plain), plain, labels=LABELS)
    with pytest.raises(SignalError, match="potstill does not know"):
        DistillationLoss()(hidden(odd), odd.lm_head, hidden(plain), plain, labels=LABELS)
