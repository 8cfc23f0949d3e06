"""A teacher that is the student itself, some steps behind."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from potstill.models import anatomy, shards
from potstill.signals.hidden import Hidden
from potstill.teachers.local import LocalTeacher
from potstill.types import Batch


class FollowingTeacher(LocalTeacher):
    """A copy of the student that follows it: teacher = (1 - rate) · teacher + rate · student, every so many steps.

    The copy is in float32, where small moves are not lost. With a copy in parts (`shards.in_blocks`) each process
    moves its own; the signals of a copy that moves are never kept.

    Args:
        model: the copy, whole or in parts.
        rate: 0 never moves it, 1 is the student as it is.
        every: optimizer steps between two moves.
        autocast: dtype of its forward passes: the student's, so that equal weights give equal numbers.
    """

    name = "the student itself"

    def __init__(
        self,
        model: nn.Module,
        *,
        rate: float,
        every: int,
        vocabulary: int,
        fingerprint: str,
        form: anatomy.HeadForm | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, vocabulary=vocabulary, fingerprint=fingerprint, form=form)
        self.sharded = shards.is_sharded(model)
        self.moves = rate > 0
        self._rate, self._every, self._autocast = rate, every, autocast

    def signal(self, batch: Batch) -> Hidden:
        """Hidden states [N, H] at the scored positions, and the head."""
        enabled = self._autocast is not None
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=enabled):
            return super().signal(batch)

    def loaded(self) -> Any:
        """The copy, for whoever writes text with it."""
        return SimpleNamespace(model=self._model)

    def tensors(self) -> Mapping[str, Tensor]:
        """Its weights by the student's names, parts where it is in parts; a checkpoint holds them."""
        shards.cut_again(self._model)
        return {name: parameter.detach() for name, parameter in self._model.named_parameters()}

    @torch.no_grad()
    def follow(self, student: Mapping[str, Tensor], step: int) -> None:
        """Move towards the student behind an optimizer step, the first being 1; every process calls it.

        Args:
            student: its weights by the names of `tensors`, parts where it is in parts.
        """
        if not self.moves or step % self._every:
            return
        for name, ours in self.tensors().items():
            theirs = student[name]
            if isinstance(ours, DTensor) and isinstance(theirs, DTensor):
                ours.to_local().lerp_(theirs.to_local(), self._rate)
            else:  # embeddings, norms and head of a copy in parts are whole
                whole = theirs.full_tensor() if isinstance(theirs, DTensor) else theirs
                ours.lerp_(whole, self._rate)
