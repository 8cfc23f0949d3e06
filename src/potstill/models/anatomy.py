"""The parts of a causal language model: backbone, head, blocks.

What a model does to its logits after the output layer (scale, softcap) is measured by a probe, not looked
up by its class's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import OUT_OF_SCOPE, ModelError
from potstill.models.beside import evaluating
from potstill.types import Batch, Head

SOFTCAP = "final_logit_softcapping"  # in a config


def backbone(model: Any) -> nn.Module:
    """The model without its head; the head reads the `last_hidden_state` of its output."""
    return unwrap(model).base_model


def unwrap(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, with its adapters in place; else the model itself."""
    wrapped = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
    return model.get_base_model() if wrapped else model


def output_layer(model: Any) -> Any:
    """The layer that computes logits.

    Raises:
        ModelError: the model has none.
    """
    layer = unwrap(model).get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output layer.", fix=OUT_OF_SCOPE)
    return layer


def states_of(model: nn.Module, batch: Batch) -> Tensor:
    """Compute a batch's final hidden states [B, S, H], without a cache and without the head."""
    # The restarting positions of a packed batch tell transformers where an example begins.
    mask = None if batch.packed else batch.attention_mask
    return hidden_states(model, batch.input_ids, mask, batch.position_ids)


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor
) -> Tensor:
    """Compute final hidden states [B, S, H] from tensors."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
    return backbone(model)(**inputs, use_cache=False).last_hidden_state


@contextmanager
def read_by_head(model: Any) -> Iterator[list[Tensor]]:
    """While open, the final hidden states [B, S, H] that the output layer is given, a pass an entry."""
    given: list[Tensor] = []
    handle = output_layer(model).register_forward_pre_hook(lambda _layer, inputs: given.append(inputs[0]))
    try:
        yield given
    finally:
        handle.remove()


def head_of(model: Any, vocabulary: int, form: HeadForm | None = None) -> Head:
    """Read the model's head as a value, with the scale and softcap of `form`, from `head_form`."""
    form = form or HeadForm()
    return replace(read_head(output_layer(model), vocabulary), scale=form.scale, softcap=form.softcap)


def read_head(layer: Any, vocabulary: int) -> Head:
    """Read an output layer as a value; a layer that may do more than h W' + b stays a module."""
    # fully_shard replaces a module's class by a subclass of it and FSDPModule.
    sharded = isinstance(layer, nn.Linear) and type(layer).__name__ == "FSDPLinear"
    if type(layer) is nn.Linear or sharded:
        return Head(layer.weight, vocabulary, layer.bias)
    if lora := _plain_lora(layer):
        return Head(layer.base_layer.weight, vocabulary, layer.base_layer.bias, lora=lora)
    return Head(None, vocabulary, module=layer)


def _plain_lora(layer: Any) -> tuple[Tensor, Tensor, float] | None:
    """(A, B, scaling) of a PEFT layer with one unmerged adapter and nothing else: no dropout, DoRA or bias."""
    active = getattr(layer, "active_adapters", None)
    if not isinstance(active, list) or type(getattr(layer, "base_layer", None)) is not nn.Linear:
        return None
    name = active[0] if len(active) == 1 else None
    if name not in getattr(layer, "lora_A", {}) or layer.merged or layer.disable_adapters:
        return None
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    idle = isinstance(dropout, nn.Identity) or not dropout.training
    if not idle or a.bias is not None or b.bias is not None or name in getattr(layer, "lora_variant", {}):
        return None
    return a.weight, b.weight, float(layer.scaling[name])


@dataclass(frozen=True)
class HeadForm:
    """What a model does to h W' + b: softcap(scale * x)."""

    scale: float = 1.0
    softcap: float | None = None


@torch.no_grad()
def head_form(model: Any) -> HeadForm:
    """Find how the model scales its logits, by comparison on four tokens.

    Raises:
        ModelError: the model's logits are not finite or follow none of the supported forms.
    """
    with evaluating(model):  # dropout would change every pass
        return _probed(model)


def softcap_of(config: Any) -> float | None:
    """The softcap of a model's logits by its config, None where it states none."""
    value = getattr(config.get_text_config(), SOFTCAP, None)
    return float(value) if value else None


def _probed(model: Any) -> HeadForm:
    config = model.config.get_text_config()
    scales = [1.0]
    for name in ("logit_scale", "lm_head_multiplier", "logits_scaling", "output_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, float | int) and value:
            scales += [float(value), 1.0 / float(value)]
    softcap = softcap_of(model.config)
    layer = output_layer(model)
    ids = torch.arange(4, device=layer.weight.device).unsqueeze(0)
    mask = torch.ones_like(ids)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    if not torch.isfinite(logits).any():
        raise ModelError(
            f"the logits of {model.config.name_or_path or type(model).__name__} are not finite.",
            fix="Its weights hold NaN or infinity: download or convert them again.",
        )
    raw = layer(hidden_states(model, ids, mask, ids)).float()
    tolerance = 2e-2 * float(logits[logits.isfinite()].abs().max().clamp(min=1e-6))
    for cap in (softcap, None):
        for scale in dict.fromkeys(scales):
            scaled = raw * scale if cap is None else cap * torch.tanh(raw * scale / cap)
            if torch.allclose(scaled, logits, rtol=2e-2, atol=tolerance):
                return HeadForm(scale, cap)
    raise ModelError(
        f"{type(model).__name__} changes its logits after the output layer in a way that potstill does not know.",
        fix="Use another model, or open an issue that names this one.",
    )


def layers(model: Any) -> nn.ModuleList:
    """The list of transformer blocks.

    Raises:
        ModelError: the model has no such list.
    """
    depth = unwrap(model).config.get_text_config().num_hidden_layers
    for module in backbone(model).children():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ModelError(
        f"{type(model).__name__} has no list of {depth} blocks that can be cut.", fix=OUT_OF_SCOPE
    )


def parameter_count(model: nn.Module) -> int:
    """Count parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def sizes(model: nn.Module) -> dict[str, int]:
    """Count parameters and bytes, tied weights once."""
    return {
        "params": parameter_count(model),
        "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }
