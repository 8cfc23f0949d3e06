"""Save a model, and load it again before anyone relies on the copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from potstill.errors import ModelError
from potstill.models import anatomy, beside, loading

WORST = 1e-5  # of the largest logit; the same weights on the same device differ by nothing
PROBE = 16  # ids, spread over the vocabulary


def save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load, and compare it with the model.

    The weights of the fp32 model are rounded to `dtype`, in memory too: what is compared is what was written.

    Returns:
        the parameters and bytes of what was written.

    Raises:
        ModelError: what is loaded from the folder computes something else, or `dtype` cannot hold the weights.
    """
    require_range(model, dtype)
    _cast(model, dtype)
    loading.save(model, tokenizer, folder)
    sizes = anatomy.sizes(model)
    # In float32, where both are computed alike; buffers such as rotary frequencies were never rounded.
    _cast(model, torch.float32)
    if (worst := difference(model, folder)) > WORST:
        raise ModelError(
            f"the model that was saved to {folder} is not the one in memory: logits differ by {worst:.1e} of "
            "the largest.",
            fix="Its library does not save this kind of model as it is. Nothing was taken over; report the "
            "model's type.",
        )
    return sizes


@torch.no_grad()
def difference(model: Any, folder: Path) -> float:
    """Load the folder and compare logits on one row: the largest difference as a share of the largest logit."""
    first = next(model.parameters())
    again = loading.load(loading.find_source(str(folder)), dtype=first.dtype, device=first.device).model
    size = anatomy.output_layer(model).weight.shape[0]
    ids = torch.linspace(0, size - 1, PROBE, device=first.device).long().unsqueeze(0)
    with beside.evaluating(model):
        here, there = (each(input_ids=ids).logits for each in (model, again))
    if here.shape != there.shape:
        return float("inf")
    apart = torch.where(here == there, 0.0, (here - there).abs()).nan_to_num(float("inf"))
    return float(apart.max() / here.abs().max().clamp(min=1.0))


@torch.no_grad()
def require_range(model: Any, dtype: torch.dtype) -> None:
    """Refuse a number format in which a weight would be infinite.

    Raises:
        ModelError: names the weight and its largest value.
    """
    if dtype == torch.float32:
        return
    largest = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        if parameter.numel() and (value := float(parameter.abs().max())) > largest:
            raise ModelError(
                f"{str(dtype).removeprefix('torch.')} ends at {largest:.0f}, and {name} holds {value:.3g}.",
                fix="Set export_dtype: bfloat16, which has the range of float32.",
            )


def _cast(model: Any, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
