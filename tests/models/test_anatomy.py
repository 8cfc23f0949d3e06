"""Heads are read as the model itself reads them."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from builders.tiny import tiny_model
from potstill.errors import ModelError
from potstill.models import anatomy
from potstill.models.projection import Projection

SMALL = dict(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=64, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SCALED = {
    "softcapped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, final_logit_softcapping=1.5, initializer_range=0.3)
    ),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25, initializer_range=0.3)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0, initializer_range=0.3)),
    "plain": lambda: tiny_model(vocab=96),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaled_and_softcapped_logits_equal_the_models_own(name):
    torch.manual_seed(0)
    model = SCALED[name]().eval().requires_grad_(False)
    head = anatomy.head_of(model, 96, anatomy.head_form(model))
    ids = torch.arange(3, 13).unsqueeze(0)
    mask, positions = torch.ones_like(ids), torch.arange(10).unsqueeze(0)
    hidden = anatomy.hidden_states(model, ids, mask, positions)[0]
    ours = Projection(head, torch.float32).logits(hidden, torch.empty(10, 96))
    torch.testing.assert_close(ours, model(ids).logits[0], atol=1e-4, rtol=1e-4)


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused():
    class Odd(type(tiny_model())):
        def forward(self, *args, **kw):
            out = super().forward(*args, **kw)
            out.logits = out.logits**2
            return out

    with pytest.raises(ModelError, match="potstill does not know"):
        anatomy.head_form(Odd(tiny_model().config).eval())


def test_weights_that_are_not_finite_are_refused():
    model = tiny_model()
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="logits of LlamaForCausalLM are not finite"):
        anatomy.head_form(model)


def test_the_probe_leaves_a_model_in_its_mode():
    model = tiny_model().train()
    anatomy.head_form(model)
    assert model.training


def test_tied_weights_count_once():
    untied, tied = tiny_model(), tiny_model(tie=True)
    assert anatomy.parameter_count(untied) - anatomy.parameter_count(tied) == 128 * 32
    assert anatomy.sizes(tied)["bytes"] == 4 * anatomy.sizes(tied)["params"]


def test_the_form_of_a_head_is_read_under_the_dropout_of_an_adapter():
    model = get_peft_model(
        tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], lora_dropout=0.5)
    )
    torch.nn.init.normal_(model.base_model.model.lm_head.lora_B["default"].weight)
    assert model.training
    anatomy.head_form(model)
    assert model.training
