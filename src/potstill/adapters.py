"""potstill's loss inside other people's trainers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import SignalError
from potstill.loss import DistillationLoss


class TrainerLoss:
    """A `compute_loss_func` for `transformers.Trainer`: the loss of a student against a teacher.

    The Trainer hands a loss function outputs and labels but not the inputs, which the teacher needs; a
    hook on the student's forward keeps the last ones. Divides by `num_items_in_batch`, the scored tokens
    of the whole accumulation window, so accumulation changes no gradient.

    Args:
        student: the model that the Trainer trains.
        teacher: a model with the same tokenizer, put in eval mode and frozen.
        loss: what to minimise.

    Raises:
        SignalError: on a call without labels or before the student ran.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: DistillationLoss) -> None:
        if loss.token_loss.weigh is not None:
            raise SignalError(
                "the Trainer divides by tokens, and named token weights need their own sum.",
                fix="Use a loop of your own, or leave token_weights out.",
            )
        self._teacher = teacher.eval().requires_grad_(False)
        self._loss = loss
        self._inputs: dict[str, Tensor] = {}
        student.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, _module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        wanted = ("input_ids", "attention_mask", "position_ids")  # transformers' order too
        inputs = dict(zip(wanted, args, strict=False)) | inputs
        self._inputs = {name: inputs[name] for name in wanted if inputs.get(name) is not None}

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if labels is None:
            raise SignalError(
                "the Trainer gave no labels.", fix="Rows need labels, -100 where nothing is scored."
            )
        if not self._inputs:
            raise SignalError("the student has not run, so its inputs are unknown.", fix="Call it first.")
        if self._inputs["input_ids"].shape != outputs.logits.shape[:-1]:
            raise SignalError(
                f"the student ran on {tuple(self._inputs['input_ids'].shape)} tokens and gave logits of "
                f"{tuple(outputs.logits.shape[:-1])}: several devices in one process share its inputs.",
                fix="Start one process a device: torchrun --nproc-per-node=N, or accelerate launch.",
            )
        self._teacher.eval()
        device = next(self._teacher.parameters()).device
        with torch.no_grad():
            # On "meta" are the parameters that hooks bring in; these move the inputs too.
            inputs = {n: x if device.type == "meta" else x.to(device) for n, x in self._inputs.items()}
            target = self._teacher(**inputs, use_cache=False).logits
        out = self._loss.from_logits(outputs.logits, target.to(outputs.logits.device), labels=labels)
        return out.mean if num_items_in_batch is None else out.sum / num_items_in_batch
