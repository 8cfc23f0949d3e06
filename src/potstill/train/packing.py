"""Check that a model keeps packed examples apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from potstill.data.batch import collate
from potstill.errors import ModelError
from potstill.models import anatomy
from potstill.models.beside import evaluating
from potstill.types import Example


@torch.no_grad()
def prove(model: nn.Module, examples: Sequence[Example], pad_id: int) -> None:
    """Compare the last of three packed examples with the same example alone.

    Raises:
        ModelError: its hidden states change with the examples before it.
    """
    # The shortest rows, for speed, but different ones: a leak between equal rows could stay unseen.
    distinct = {e.input_ids: e for e in examples if e.count}
    rows = sorted(distinct.values(), key=lambda example: len(example.input_ids))[:3]
    if len(rows) < 2:
        return
    device = next(model.parameters()).device
    single = collate(rows[-1:], pad_id=pad_id, device=device)
    packed = collate(rows, pad_id=pad_id, device=device, packed=True)
    with evaluating(model):
        alone, together = (anatomy.states_of(model, batch)[0].float() for batch in (single, packed))
    difference = (together[-alone.shape[0] :] - alone).norm() / alone.norm()
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    # An example that attends to its neighbours differs by tens of per cent; rounding in bf16 by about one.
    if not difference < (1e-3 if exact else 5e-2):
        raise ModelError(
            f"{type(model).__name__} does not keep packed rows apart: hidden states of one row change by "
            f"{float(difference):.0%} with others before it.",
            fix="Set packing: false, or load the model with another attention implementation.",
        )
