"""A model and a tokenizer small enough for every test, made in memory from a seed.

Ids 0 to 3 are <pad>, <s>, </s> and <unk>; id 11 is the word `|`, which opens an assistant turn;
every other id i is the word `wi`. So `w10` answered by `w20 w21` is [1, 10, 11, 20, 21, 2].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PAD, BOS, EOS, UNK = range(4)
HEADER = 11
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}| {{ m.content }}{{ eos_token }}{% else %}{{ m.content }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}|{% endif %}"
)


def tiny_tokenizer(
    words: int = 128, template: str | None = TEMPLATE, names: Mapping[int, str] | None = None
) -> PreTrainedTokenizerFast:
    """A WordLevel tokenizer that splits at whitespace; `names` are other words for some ids, "" for none."""
    usual = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, words))]
    written = dict(enumerate(usual)) | {HEADER: "|"} | dict(names or {})
    core = Tokenizer(WordLevel({name: i for i, name in written.items() if name}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "gpt2": (GPT2Config, GPT2LMHeadModel, {}),
    "sliding": (MistralConfig, MistralForCausalLM, {"sliding_window": 5}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    # Scaled embeddings, norms around both halves of a block, a sliding window in every second one, and a softcap.
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {"head_dim": 16, "sliding_window": 5, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"head_dim": 16, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "convolution": (Lfm2Config, Lfm2ForCausalLM, {"layer_types": ["conv", "full_attention"]}),
}


def tiny_model(
    vocab: int = 128,
    layers: int = 2,
    hidden: int = 32,
    seed: int = 0,
    tie: bool = False,
    kind: str = "llama",
    **changes: Any,
) -> Any:
    """A model with wide weights: at the usual 0.02 its logits are flat and misalignment stays unseen.

    `sliding` keeps 5 positions; `convolution` holds states that are no keys and values; `changes` go into the config.
    """
    config_class, model_class, own = KINDS[kind]
    sizes = dict(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=tie,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config_class(**(sizes | own | changes))).eval()


def save_tiny(
    folder: Path | str,
    *,
    vocab: int = 128,
    layers: int = 2,
    hidden: int = 32,
    seed: int = 0,
    tie: bool = False,
) -> Path:
    """Write model and tokenizer to `folder` the way a hub model lies on disk; returns the folder."""
    folder = Path(folder)
    tiny_model(vocab, layers, hidden, seed, tie).save_pretrained(folder)
    tiny_tokenizer(vocab).save_pretrained(folder)
    return folder


def save_tiny_gguf(file: Path, *, seed: int = 0, extra: dict[str, Any] | None = None) -> Path:
    """Write `tiny_model` and `extra` arrays to one GGUF file, with a tokenizer of as many tokens; returns the file."""
    import gguf

    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(128)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(
        ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "ab", *(f"w{i}" for i in range(7, 128))]
    )
    writer.add_token_merges(["a b"])
    writer.add_token_types([1] * 128)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    names = {
        "model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for key, tensor in tiny_model(seed=seed).state_dict().items():
        module = key.removesuffix(".weight")
        if module not in names:
            _, _, layer, inner = module.split(".", 3)
            writer.add_tensor(f"blk.{layer}.{names[inner]}.weight", tensor.numpy())
        else:
            writer.add_tensor(f"{names[module]}.weight", tensor.numpy())
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
