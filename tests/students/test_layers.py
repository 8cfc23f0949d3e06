"""Every layer of a cut does what it did in the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from builders.tiny import tiny_tokenizer
from potstill.errors import ModelError
from potstill.models import anatomy, loading
from potstill.students import depth
from potstill.students._layers import bypassed

SIZES: dict[str, Any] = dict(
    vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1,
    eos_token_id=2, pad_token_id=0,
)  # fmt: skip
MIXED = ["sliding_attention", "full_attention"] * 3
EXPERTS = dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    norm_topk_prob=True,
)  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "layer_types": MIXED, "sliding_window": 4}),
    "qwen3": ("Qwen3", {}),
    "gemma2": ("Gemma2", {"layer_types": MIXED, "sliding_window": 4}),
    "gemma3": ("Gemma3", {"layer_types": MIXED, "sliding_window": 4}),
    "phi3": ("Phi3", {}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "gpt2": ("GPT2", {}),
    "granite": ("Granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 1, 1, 0, 1, 1]}),
    "gpt2, scaled": ("GPT2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": ("GPTNeo", {"attention_types": [[["global", "local"], 3]], "num_layers": 6, "num_heads": 4}),
    "qwen2_moe, listed": ("Qwen2Moe", {"mlp_only_layers": [1, 3], **EXPERTS}),
    "qwen2_moe, all dense": ("Qwen2Moe", {"mlp_only_layers": [0, 1, 2, 3, 4, 5], **EXPERTS}),
    "qwen3_moe, every second": ("Qwen3Moe", {"decoder_sparse_step": 2, **EXPERTS}),
}


def model_of(family: str) -> Any:
    name, changes = FAMILIES[family]
    config = getattr(transformers, f"{name}Config" if name != "Gemma3" else "Gemma3TextConfig")
    classes = {"GPT2": "GPT2LMHeadModel"}
    model = getattr(transformers, classes.get(name, f"{name}ForCausalLM"))
    sizes = {key: value for key, value in SIZES.items() if name != "GPTNeo" or "layers" not in key}
    return model(config(**(sizes | changes))).eval()


def save(model: Any, folder: Path) -> None:
    loading.save(model, tiny_tokenizer(), folder)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return loading.load(loading.find_source(str(folder)), dtype=dtype).model


def ids() -> torch.Tensor:
    return torch.randint(4, 128, (2, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_of_any_family_is_the_same_when_loaded(tmp_path, family):
    model = model_of(family)
    save(model, tmp_path)
    torch.testing.assert_close(load(tmp_path)(ids()).logits, model(ids()).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", [[0, 2, 3, 5], [1, 4]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_computes_what_its_layers_computed(tmp_path, family, kept, dtype):
    """Also when it has been saved: what a config forgets of a layer is lost there."""
    save(model_of(family).to(dtype), tmp_path / "teacher")
    student = depth.cut(load(tmp_path / "teacher", dtype), kept)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    save(student, tmp_path / "student")
    saved, full = load(tmp_path / "student"), load(tmp_path / "teacher")
    with bypassed(full, kept):
        expected = full(ids()).logits
    for cut in (student, saved):
        torch.testing.assert_close(cut(ids()).logits, expected, atol=1e-3, rtol=1e-3)


def test_the_teacher_is_whole_again_after_a_comparison():
    model = model_of("llama")
    before = model(ids()).logits
    depth.cut(model, [0, 3])
    torch.testing.assert_close(model(ids()).logits, before)


def test_a_layer_whose_work_depends_on_its_number_is_refused_by_name():
    """DiffLlama weighs its two attentions by the layer's number."""
    config = transformers.DiffLlamaConfig(**SIZES)
    model = transformers.DiffLlamaForCausalLM(config).eval()
    with pytest.raises(
        ModelError, match=r"DiffLlama\w+ cannot be cut to layers \[0, 2\]: a layer's lambda_init"
    ):
        depth.cut(model, [0, 2])
    assert len(anatomy.layers(depth.cut(model, [0, 1]))) == 2


def test_layers_by_a_period_are_refused_by_name():
    config = transformers.JambaConfig(
        **SIZES, attn_layer_period=3, attn_layer_offset=1, num_experts=1, num_experts_per_tok=1,
        use_mamba_kernels=False, mamba_d_state=4, mamba_expand=1, mamba_dt_rank=4,
    )  # fmt: skip
    model = transformers.JambaForCausalLM(config).eval()
    with pytest.raises(ModelError, match=r"Jamba\w+ cannot be cut .*attn_layer_offset, attn_layer_period"):
        depth.cut(model, [0, 2, 3])


@torch.no_grad()
def test_logits_that_differ_from_the_bypassed_teachers_are_refused(monkeypatch):
    """Whatever the reason: here a layer's weights are those of another one."""
    weights = depth._kept_weights

    def swapped(model: Any, kept: list[int]) -> dict[str, torch.Tensor]:
        return weights(model, kept[::-1])

    monkeypatch.setattr(depth, "_kept_weights", swapped)
    with pytest.raises(ModelError, match=r"cannot be cut to layers \[0, 3\]: its logits differ by"):
        depth.cut(model_of("llama"), [0, 3])
