"""Small models of four kinds, with wide weights so that their text varies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

VOCABULARY = 64
STOP = 2
PAD = 0
KINDS = ("llama", "gpt2", "sliding", "convolution")


def build(kind: str, *, dropout: float = 0.0, seed: int = 0) -> Any:
    """`sliding` keeps 5 positions; `convolution` holds states that are no keys and values."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "pad_token_id": PAD,
        "eos_token_id": STOP,
        "bos_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "llama":
            return LlamaForCausalLM(LlamaConfig(**sizes, attention_dropout=dropout)).eval()
        if kind == "sliding":
            return MistralForCausalLM(MistralConfig(**sizes, sliding_window=5)).eval()
        if kind == "convolution":
            config = Lfm2Config(**sizes, layer_types=["conv", "full_attention"])
            return Lfm2ForCausalLM(config).eval()
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=128,
                n_embd=32,
                n_layer=2,
                n_head=2,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                initializer_range=0.3,
                bos_token_id=1,
                eos_token_id=STOP,
                pad_token_id=PAD,
                tie_word_embeddings=False,
            )
        ).eval()


def prompts(count: int = 12, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to 9 ids; some hold the padding and the stop id."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(VOCABULARY, (1 + (7 * place) % 9,), generator=generator).tolist()
        for place in range(count)
    ]


@contextmanager
def raised(model: Any, token: int, by: float) -> Iterator[None]:
    """While open, the logit of `token` is higher by `by`."""

    def lift(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        offset = torch.zeros(logits.shape[-1])
        offset[token] = by
        return logits + offset

    handle = model.get_output_embeddings().register_forward_hook(lift)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[int, int]]]:
    """The shape [rows, positions] of the ids of every forward pass made while open."""
    shapes: list[tuple[int, int]] = []

    def note(module: Any, inputs: Any, keywords: dict[str, Any]) -> None:
        shapes.append(tuple(keywords["input_ids"].shape))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()
