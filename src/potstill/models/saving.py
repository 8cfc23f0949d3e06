"""Save a model, and load it again before anyone relies on the copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from potstill.errors import ModelError
from potstill.models import anatomy, beside, loading

WORST = 1e-5  # of the largest logit; the same weights on the same device differ by nothing
PROBE = 16  # ids, spread over the vocabulary


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load, and compare it with the model.

    Raises:
        ModelError: what is loaded from the folder computes something else.
    """
    loading.save(model, tokenizer, folder)
    if (worst := difference(model, folder)) > WORST:
        raise ModelError(
            f"the model that was saved to {folder} is not the one in memory: logits differ by {worst:.1e} of "
            "the largest.",
            fix="Its library does not save this kind of model as it is. Nothing was taken over; report the "
            "model's type.",
        )


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
