"""potstill's loss inside other people's trainers."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from potstill.devices import exact, ranks
from potstill.errors import SignalError
from potstill.loss import DistillationLoss
from potstill.models.beside import evaluating, require_separate, undisturbed
from potstill.types import Loss

log = logging.getLogger("potstill")


class TrainerLoss:
    """A `compute_loss_func` for `transformers.Trainer`: the loss of a student against a teacher.

    The Trainer hands a loss function outputs and labels but not the inputs, which the teacher needs; a
    hook on the student's forward keeps the last ones. Divides by `num_items_in_batch`, the scored tokens
    of the whole accumulation window, so accumulation changes no gradient.

    `Trainer.evaluate` averages the means of batches, which depends on the batch size: it is given NaN as its
    `eval_loss`, and `token_mean` has the figure. TRL's `SFTTrainer` needs `SFTConfig(loss_type="nll")`: its
    default loss leaves no logits to compare.

    Args:
        student: the model that the Trainer trains, as it is trained: adapters added, the rest frozen.
        teacher: a model with the same tokenizer, or with one that shares the first ids: say how many in the loss,
            `DistillationLoss(vocabulary=…)`. It is frozen, and in eval mode when it is called.
        loss: what to minimise.

    Raises:
        SignalError: teacher and student share a trained parameter; on a call without labels, before the student
            ran, or on rows with ids beyond the loss's vocabulary.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: DistillationLoss) -> None:
        if loss.token_loss.weigh is not None:
            raise SignalError(
                "the Trainer divides by tokens, and named token weights need their own sum.",
                fix="Use a loop of your own, or leave token_weights out.",
            )
        require_separate(student, teacher)
        self._student, self._teacher = student, teacher.requires_grad_(False)
        self._loss = loss
        self._evaluated = torch.zeros(2, dtype=torch.float64)  # sum and count
        self._said = False
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
        device = next(self._teacher.parameters()).device
        with torch.no_grad(), undisturbed(self._student), evaluating(self._teacher):
            # On "meta" are the parameters that hooks bring in; these move the inputs too.
            inputs = {n: x if device.type == "meta" else x.to(device) for n, x in self._inputs.items()}
            target = self._teacher(**self._readable(inputs), use_cache=False).logits
        out = self._loss.from_logits(outputs.logits, target.to(outputs.logits.device), labels=labels)
        if not torch.is_grad_enabled():
            return self._withheld(out)
        self._evaluated.zero_()
        return out.mean if num_items_in_batch is None else out.sum / num_items_in_batch

    def _readable(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with ids that the teacher has: padding of the student's own, which the mask hides, becomes 0.

        Raises:
            SignalError: a row holds an id beyond the loss's vocabulary.
        """
        vocabulary, ids, mask = self._loss.vocabulary, inputs["input_ids"], inputs.get("attention_mask")
        if vocabulary is None:
            return inputs
        foreign = ids >= vocabulary
        if mask is not None and mask.shape == ids.shape:
            ids = torch.where(foreign & (mask == 0), 0, ids)
        if (largest := int(ids.max())) >= vocabulary:
            raise SignalError(
                f"a row holds id {largest}, and the models share {vocabulary} ids.",
                fix="Leave rows with other ids out; the attention mask must hide padding.",
            )
        return {**inputs, "input_ids": ids}

    def token_mean(self) -> float:
        """The loss per token (nats) of all evaluated since the last call or training step, over all processes."""
        home = exact.home(next(self._student.parameters()).device)
        total = ranks.total(self._evaluated.to(home)).tolist()
        self._evaluated.zero_()
        return total[0] / total[1] if total[1] else math.nan

    def _withheld(self, out: Loss) -> Tensor:
        """Add a batch of an evaluation to the sums; the Trainer's own mean of means says nothing."""
        if not self._said:
            log.warning(
                "eval_loss is withheld: the Trainer averages the means of batches, which depends on their size; "
                "read TrainerLoss.token_mean() after evaluate()"
            )
        self._said = True
        self._evaluated += torch.stack([exact.wide(out.sum), exact.wide(out.count)]).cpu()
        return torch.full_like(out.sum, math.nan)
