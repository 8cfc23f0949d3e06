"""Tiny random models of the families in use, with what sets each apart from its neighbours."""

from __future__ import annotations

from typing import Any

import torch
import transformers

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
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
    "qwen2_moe, listed": ("Qwen2Moe", {"mlp_only_layers": [1, 3], **EXPERTS}),
    "qwen2_moe, all dense": ("Qwen2Moe", {"mlp_only_layers": [0, 1, 2, 3, 4, 5], **EXPERTS}),
    "qwen3_moe, every second": ("Qwen3Moe", {"decoder_sparse_step": 2, **EXPERTS}),
}


def model_of(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of the family with wide weights."""
    name, changes = FAMILIES[family]
    config = getattr(transformers, f"{name}Config" if name != "Gemma3" else "Gemma3TextConfig")
    classes = {"GPT2": "GPT2LMHeadModel"}
    model = getattr(transformers, classes.get(name, f"{name}ForCausalLM"))
    sizes = {key: value for key, value in SIZES.items() if name != "GPTNeo" or "layers" not in key}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = model(config(**(sizes | changes))).to(dtype).eval()
    if dtype == torch.float64 and "experts" in str(changes):
        built.set_experts_implementation("eager")  # the grouped product takes no float64
    return built
