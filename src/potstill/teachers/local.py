"""A teacher whose weights are in this process: exact signals, the full vocabulary."""

from __future__ import annotations

import torch
from torch import nn

from potstill.models import anatomy
from potstill.types import Batch, Hidden


class LocalTeacher:
    """A frozen model. Its head is read only where a token is scored."""

    def __init__(self, model: nn.Module, *, vocabulary: int, fingerprint: str) -> None:
        model.eval().requires_grad_(False)
        self._model = model
        self._device = next(model.parameters()).device
        self._head = anatomy.head_of(model, vocabulary, anatomy.head_form(model))
        self.fingerprint = fingerprint

    @torch.no_grad()
    def signal(self, batch: Batch) -> Hidden:
        """Hidden states [N, H] at the scored positions, and the head."""
        # Someone may have called train() on a parent module; dropout must never reach a target.
        self._model.eval()
        on = batch.to(self._device)
        return Hidden(anatomy.states_of(self._model, on)[on.predicts], self._head)

    def close(self) -> None:
        """Let go of the weights."""
        del self._model, self._head


def build(*, model: nn.Module, vocabulary: int, fingerprint: str) -> LocalTeacher:
    """A teacher from a loaded model. `vocabulary`: the ids that teacher and student share."""
    return LocalTeacher(model, vocabulary=vocabulary, fingerprint=fingerprint)
