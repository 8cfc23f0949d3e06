"""DistillationLoss: potstill's objective as a drop-in for anyone's own training loop. Needs torch only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill.devices import exact
from potstill.errors import SignalError
from potstill.models import heads
from potstill.models.beside import require_separate
from potstill.objectives.fused import Mode, linear_loss, logits_loss
from potstill.objectives.token import Divergence, TokenLoss, TokenRows, TokenWeight
from potstill.recipe import plugins
from potstill.recipe.defaults import COMPILED_CHUNK_BYTES
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.sampled import Sampled
from potstill.signals.signal import Signal
from potstill.signals.topk import TopK
from potstill.types import Head, Loss, places_in_answers

IGNORE = -100


class DistillationLoss:
    """A divergence between teacher and student, summed over scored tokens.

    Args:
        divergence: a name from `potstill.divergences.names()`, or `package.module:function` for one of your
            own; the constants of its module say what it supports, as in `potstill.divergences`.
        temperature: T > 0, for both sides.
        ce_weight: share in [0, 1] of hard-label cross-entropy at T = 1. With a share above 0 the
            divergence is multiplied by T^2 (T for total variation), to keep the balance.
        vocabulary: ids that both models know; needed when the two output layers differ in width, by padding or
            by added tokens. Rows from there on are cut before both softmaxes, without a copy, so each model's
            probabilities are those of the shared ids, renormalised. Inputs must hold shared ids alone.
        chunk_bytes: memory for a chunk's logits, student's and teacher's together; by default what suits the device.
        compile: run loss and gradient as one compiled function (`torch.compile`, once, at the first call): the
            same formulas in fewer passes over the logits, which a GPU feels. Where that fails, a warning says so and
            they run as they are; stored or drawn ids, and a call without gradients, are never compiled.
        mode: "store" computes gradients in the forward pass; "recompute" does so in the backward pass, for
            heads whose gradient would not fit beside the activations; "eval" computes none.
        token_weights: weights of the tokens by name ("entropy", "position" or `package.module:function`), or
            {name: options}. With weights of any kind divide by `metrics["weight"]`, their sum, not the count.
        **options: of the divergence, `beta=0.1` for jsd.

    Who shifts: logits at position i predict token i + 1. Give either `mask` [B, S], true where the
    position's *next* token is scored (you have shifted), or `labels` [B, S] as transformers writes
    them, -100 where nothing is scored and not shifted (this class shifts, once).

    A call returns a `Loss` with `sum`, `count` and `metrics`. Divide the sum by the count of the
    whole optimizer step, over all micro-batches and ranks; `out.mean` divides by this call's own.

    Example:
        >>> loss = DistillationLoss("forward_kl")
        >>> out = loss(student_hidden, student, teacher_hidden, teacher, labels=labels)
        >>> (out.sum / tokens_in_step).backward()
    """

    def __init__(
        self,
        divergence: str = "forward_kl",
        *,
        temperature: float = 1.0,
        ce_weight: float = 0.0,
        vocabulary: int | None = None,
        chunk_bytes: int | None = None,
        compile: bool = False,
        mode: Literal["store", "recompute", "eval"] = "store",
        token_weights: str | Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        for name, value in {"temperature": temperature, "ce_weight": ce_weight, **options}.items():
            if isinstance(value, Tensor) and value.requires_grad:
                raise SignalError(f"{name} needs a gradient, and gets none here.", fix="Give a number.")
        if not 0.0 <= ce_weight <= 1.0:
            raise SignalError(f"ce_weight is {ce_weight}.", fix="It is a share, from 0 to 1.")
        if not 0.0 < temperature < float("inf"):
            raise SignalError(f"temperature is {temperature}.", fix="It must be above 0 and finite.")
        for name, value in options.items():
            if isinstance(value, Mapping):
                raise SignalError(
                    f"{name} is a schedule.",
                    fix="In a loop of your own, make the loss of each step with its value.",
                )
        if vocabulary is not None and vocabulary < 1:
            raise SignalError(f"vocabulary is {vocabulary}.", fix="It counts ids: len(tokenizer).")
        chosen = Divergence.from_module(plugins.load("divergences", divergence, options), options)
        weigh = _token_weight(token_weights)
        if weigh is not None and ce_weight == 1.0:
            raise SignalError(
                "token_weights need the teacher's distribution, and ce_weight 1 leaves it out.",
                fix="Lower ce_weight, or pass weights=.",
            )
        self.token_loss = TokenLoss(chosen, temperature, ce_weight, weigh=weigh)
        self.vocabulary = vocabulary
        self._chunk_bytes = chunk_bytes
        self._compile = compile
        self._mode = mode

    def __call__(
        self,
        student_hidden: Tensor,
        student_head: nn.Module | Tensor | Head,
        teacher_hidden: Tensor,
        teacher_head: nn.Module | Tensor | Head,
        mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        metrics: bool = False,
    ) -> Loss:
        """From final hidden states: the logits of a whole batch never exist.

        Args:
            student_hidden, teacher_hidden: [B, S, H], or [N, H] with a mask [N].
            student_head, teacher_head: the models, which say how they scale or cap logits, or `potstill.head_of(model)`.
                Elsewhere an output layer, a matrix [V, H] for logits h W', or a `Head`.
            mask, labels: scored positions, see above.
            weights: [B, S] of each position's loss; `out.mean` divides by their sum.

        Neighbouring scored positions are one answer, to token weights that go by the place in it.

        Raises:
            SignalError: shapes disagree, a label or a weight is out of range, padded widths differ and no
                vocabulary was given, a bare output layer belongs to a model that scales or caps its logits, or
                teacher and student share a trained parameter.
            ModelError: a model changes its logits in a way that is not known here.
            NotFinite: a target is impossible for the student, or something is NaN (not seen on a GPU).
            TrainingStopped: a divergence that cannot be negative is.
        """
        predicts, targets = self._select(student_hidden, teacher_hidden, mask, labels, weights)
        if heads.is_model(student_head) and heads.is_model(teacher_head):
            require_separate(student_head, teacher_head)
        head, target_head = heads.read(student_head), heads.read(teacher_head)
        vocabulary = self._shared(head.vocabulary, target_head.vocabulary)
        head, target_head = (each.cut(vocabulary) for each in (head, target_head))
        picked = _picked(weights, predicts)
        signal = Hidden(_scored(teacher_hidden, predicts).detach(), target_head)
        rowwise = self._rowwise(signal, targets, picked, predicts, metrics)
        with self._gradients():
            hidden = _scored(student_hidden, predicts)
            mode: Mode = "recompute" if self._mode == "recompute" else "store"
            out = linear_loss(hidden, head, rowwise, chunk_bytes=self._bytes(hidden.device), mode=mode)
        return self._finish(out, signal, picked)

    def from_logits(
        self,
        student_logits: Tensor,
        teacher: Tensor | TopK | Sampled,
        mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        metrics: bool = False,
    ) -> Loss:
        """From logits [B, S, V] that exist already; `teacher` is logits too, or a stored signal of the
        N scored positions. `mask`, `labels`, `weights` and errors are those of a call.
        """
        whole = teacher if isinstance(teacher, Tensor) else None
        predicts, targets = self._select(student_logits, whole, mask, labels, weights)
        picked = _picked(weights, predicts)
        if isinstance(teacher, Tensor):
            width = self._shared(student_logits.shape[-1], teacher.shape[-1])
            signal: Signal = Dense(_scored(teacher, predicts).detach()[:, :width])
        else:
            width = self._shared(student_logits.shape[-1], self.vocabulary or student_logits.shape[-1])
            signal = teacher
        rowwise = self._rowwise(signal, targets, picked, predicts, metrics)
        with self._gradients():
            logits = _scored(student_logits, predicts)[:, :width]
            out = logits_loss(logits, rowwise, chunk_bytes=self._bytes(logits.device))
        return self._finish(out, signal, picked)

    def _bytes(self, device: torch.device) -> int | None:
        if self._chunk_bytes is None and self._compile:
            return COMPILED_CHUNK_BYTES.get(device.type)
        return self._chunk_bytes

    def _gradients(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled() and self._mode != "eval")

    def _finish(self, out: Loss, signal: Signal, weights: Tensor | None) -> Loss:
        if "divergence" in out.metrics and not signal.estimated:
            self.token_loss.check({"divergence": float(out.metrics["divergence"])}, int(out.count))
        if weights is None or "weight" in out.metrics:
            return out
        return replace(out, metrics={**out.metrics, "weight": exact.total(weights)})

    def _rowwise(
        self, signal: Signal, targets: Tensor | None, weights: Tensor | None, predicts: Tensor, metrics: bool
    ) -> TokenRows:
        place = None if self.token_loss.weigh is None else places_in_answers(predicts)
        return self.token_loss.rowwise(
            signal, targets, weights=weights, place=place, metrics=metrics, compile=self._compile
        )

    def _select(
        self,
        student: Tensor,
        teacher: Tensor | None,
        mask: Tensor | None,
        labels: Tensor | None,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        if (mask is None) == (labels is None):
            raise SignalError("give either mask or labels.", fix="labels are shifted here, a mask is not.")
        lead = student.shape[:-1]
        positions = mask if labels is None else labels
        assert positions is not None
        shapes = {"mask or labels": positions.shape}
        if weights is not None:
            shapes["weights"] = weights.shape
        if teacher is not None:
            shapes["the teacher's positions"] = teacher.shape[:-1]
        for what, shape in shapes.items():
            if shape != lead:
                raise SignalError(f"{what} are {tuple(shape)}, the student's positions are {tuple(lead)}.")
        if labels is None:
            if self.token_loss.ce_weight:
                raise SignalError("ce_weight needs labels, a mask has no targets.", fix="Pass labels=.")
            if positions.dtype != torch.bool and not ((positions == 0) | (positions == 1)).all():
                raise SignalError("mask holds more than 0 and 1.", fix="Labels go by name: labels=.")
            return positions.bool(), None
        following = torch.full_like(labels, IGNORE)
        following[..., :-1] = labels[..., 1:]
        predicts = following != IGNORE
        targets = following[predicts]
        if targets.numel() and int(targets.min()) < 0:
            raise SignalError(
                f"labels hold {int(targets.min())}.", fix=f"An id, or {IGNORE} where nothing is scored."
            )
        return predicts, targets

    def _shared(self, student: int, teacher: int) -> int:
        if self.vocabulary is not None:
            if self.vocabulary > min(student, teacher):
                raise SignalError(
                    f"vocabulary is {self.vocabulary}, the output layers have {student} and {teacher} rows."
                )
            return self.vocabulary
        if student != teacher:
            raise SignalError(
                f"the student has {student} output rows, the teacher {teacher}.",
                fix="If they share a tokenizer, pass vocabulary=len(tokenizer); its ids are kept, padding is cut.",
            )
        return student


def _scored(values: Tensor, predicts: Tensor) -> Tensor:
    """The rows [N, K] of [..., K] at the scored positions, without a copy where all are scored."""
    return values.flatten(0, -2) if predicts.all() else values[predicts]


def _picked(weights: Tensor | None, predicts: Tensor) -> Tensor | None:
    if weights is None:
        return None
    picked = weights[predicts]
    if not bool(((picked >= 0) & (picked < torch.inf)).all()):
        raise SignalError("a weight is negative or not finite.", fix="Weights are numbers from 0 up.")
    return picked


def _token_weight(named: str | Mapping[str, Mapping[str, Any]] | None) -> TokenWeight | None:
    if named is None:
        return None
    chosen = {named: {}} if isinstance(named, str) else dict(named)
    if len(chosen) != 1:
        raise SignalError(
            f"token_weights names {len(chosen)} ways.", fix="Give one name, or {name: options}."
        )
    ((name, options),) = chosen.items()
    return TokenWeight.from_module(plugins.load("token_weights", name, options or {}), options)
