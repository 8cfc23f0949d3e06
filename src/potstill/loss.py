"""DistillationLoss: potstill's objective as a drop-in for anyone's own training loop. Needs torch only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill.errors import SignalError
from potstill.models import anatomy
from potstill.objectives import streaming
from potstill.objectives.fused import DEFAULT_CHUNK_BYTES, Mode, Rowwise, linear_loss, logits_loss
from potstill.objectives.token import Divergence, TokenLoss, Weigh, require_possible, weigh_by
from potstill.recipe import resolve
from potstill.types import Dense, Head, Hidden, Loss, Sampled, Signal, TopK, places_in_answers

IGNORE = -100


class DistillationLoss:
    """A divergence between teacher and student, summed over scored tokens.

    Args:
        divergence: name of a divergence (`potstill.divergences.names()`), or `package.module:function`.
        temperature: T > 0, for both sides.
        ce_weight: share in [0, 1] of hard-label cross-entropy at T = 1. With a share above 0 the
            divergence is multiplied by T^2 (T for total variation), to keep the balance.
        vocabulary: number of ids that both models know; needed when the two output layers are padded
            to different widths. Wider rows are cut before the softmax.
        chunk_bytes: memory for a chunk's logits, student's and teacher's together.
        mode: "store" computes gradients in the forward pass; "recompute" computes everything again in the
            backward pass instead, for heads whose gradient would not fit beside the activations; "eval"
            has no gradient and goes over tiles of the vocabulary, so memory does not depend on its size
            (divergences that are no sum over outcomes go over rows).
        token_weights: a weight of each token by name, "entropy" or "position", or {name: options}. With
            weights of any kind divide by `metrics["weight"]`, their sum, instead of the count.
        **options: the divergence's own, `beta=0.1` for jsd.

    Who shifts: logits at position i predict token i + 1. Give either `mask` [B, S], true where the
    position's *next* token is scored (you have shifted), or `labels` [B, S] as transformers writes
    them, -100 where nothing is scored and not shifted (this class shifts, once).

    Returns of a call: `Loss` with `sum`, `count` and `metrics`. Divide the sum by the count of the
    whole optimizer step, over all micro-batches and ranks; `out.mean` divides by this call's own.

    Example:
        >>> loss = DistillationLoss("forward_kl")
        >>> out = loss(student_hidden, student.lm_head, teacher_hidden, teacher.lm_head, labels=labels)
        >>> (out.sum / tokens_in_step).backward()
    """

    def __init__(
        self,
        divergence: str = "forward_kl",
        *,
        temperature: float = 1.0,
        ce_weight: float = 0.0,
        vocabulary: int | None = None,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        mode: Literal["store", "recompute", "eval"] = "store",
        token_weights: str | Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
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
        module = resolve.load("divergences", divergence, options)
        compared = Divergence.from_module(module, options)
        even = torch.full((1, 2), 0.5).log()
        compared.value(even, even, **options)  # refuses options out of range now
        weigh = _weigh(token_weights)
        if weigh is not None and ce_weight == 1.0:
            raise SignalError(
                "token_weights need the teacher's distribution, and ce_weight 1 leaves it out.",
                fix="Lower ce_weight, or pass weights=.",
            )
        self.token_loss = TokenLoss(compared, temperature, ce_weight, weigh=weigh)
        self._vocabulary = vocabulary
        self._chunk_bytes = chunk_bytes
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
            student_head, teacher_head: the output layers; a `Head` where logits are scaled or capped.
            mask, labels: which positions are scored, see above.
            weights: [B, S] of each position's loss; `out.mean` divides by their sum.

        Neighbouring scored positions are one answer, to token weights that go by the place in it.

        Raises:
            SignalError: shapes disagree, labels or weights are none, or padded widths differ and no vocabulary was given.
            NotFinite: a target is impossible for the student, or something is NaN (not seen on a GPU).
            TrainingStopped: a divergence that cannot be negative is.
        """
        predicts, targets = self._select(student_hidden, teacher_hidden, mask, labels, weights)
        vocabulary = self._shared(_rows(student_head), _rows(teacher_head))
        picked = _picked(weights, predicts)
        signal = Hidden(teacher_hidden[predicts].detach(), _as_head(teacher_head, vocabulary))
        head, hidden = _as_head(student_head, vocabulary), student_hidden[predicts]
        if self._mode == "eval" and not streaming.unable(head, signal, self.token_loss):
            return self._checked(
                streaming.streamed_loss(
                    hidden, head, signal, self.token_loss, targets, weights=picked, metrics=metrics
                ),
                picked,
            )
        rowwise = self._rowwise(signal, targets, picked, predicts, metrics)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._mode != "eval"):
            mode: Mode = "recompute" if self._mode == "recompute" else "store"
            out = linear_loss(hidden, head, rowwise, chunk_bytes=self._chunk_bytes, mode=mode)
        return self._checked(out, picked)

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
        N scored positions. The same `mask` / `labels` rule: logits at i predict token i + 1.

        Raises:
            SignalError: shapes disagree, or widths differ and no vocabulary was given.
        """
        other = teacher if isinstance(teacher, Tensor) else None
        predicts, targets = self._select(student_logits, other, mask, labels, weights)
        picked = _picked(weights, predicts)
        if isinstance(teacher, Tensor):
            width = self._shared(student_logits.shape[-1], teacher.shape[-1])
            signal: Signal = Dense(teacher[predicts].detach()[:, :width])
        else:
            width = self._shared(student_logits.shape[-1], self._vocabulary or student_logits.shape[-1])
            signal = teacher
        rowwise = self._rowwise(signal, targets, picked, predicts, metrics)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._mode != "eval"):
            out = logits_loss(student_logits[predicts][:, :width], rowwise, chunk_bytes=self._chunk_bytes)
        return self._checked(out, picked, drawn=isinstance(signal, Sampled))

    def _checked(self, out: Loss, weights: Tensor | None, drawn: bool = False) -> Loss:
        if "divergence" in out.metrics and not drawn:
            require_possible(float(out.metrics["divergence"]), int(out.count), self.token_loss)
        if weights is None or "weight" in out.metrics:
            return out
        return replace(out, metrics={**out.metrics, "weight": weights.sum(dtype=torch.float64)})

    def _rowwise(
        self, signal: Signal, targets: Tensor | None, weights: Tensor | None, predicts: Tensor, metrics: bool
    ) -> Rowwise:
        place = None if self.token_loss.weigh is None else places_in_answers(predicts)
        return self.token_loss.rowwise(signal, targets, weights=weights, place=place, metrics=metrics)

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
        given = mask if labels is None else labels
        assert given is not None
        shapes = {"mask or labels": given.shape, "weights": None if weights is None else weights.shape}
        shapes["the teacher's positions"] = None if teacher is None else teacher.shape[:-1]
        for what, shape in shapes.items():
            if shape is not None and shape != lead:
                raise SignalError(f"{what} are {tuple(shape)}, the student's positions are {tuple(lead)}.")
        if labels is None:
            if self.token_loss.ce_weight:
                raise SignalError("ce_weight needs labels, a mask has no targets.", fix="Pass labels=.")
            if given.dtype != torch.bool and not ((given == 0) | (given == 1)).all():
                raise SignalError("mask holds more than 0 and 1.", fix="Labels go by name: labels=.")
            return given.bool(), None
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
        if self._vocabulary is not None:
            if self._vocabulary > min(student, teacher):
                raise SignalError(
                    f"vocabulary is {self._vocabulary}, the output layers have {student} and {teacher} rows."
                )
            return self._vocabulary
        if student != teacher:
            raise SignalError(
                f"the student has {student} output rows, the teacher {teacher}.",
                fix="If they share a tokenizer, pass vocabulary=len(tokenizer); its ids are kept, padding is cut.",
            )
        return student


def _picked(weights: Tensor | None, predicts: Tensor) -> Tensor | None:
    if weights is None:
        return None
    picked = weights[predicts]
    if not bool(((picked >= 0) & (picked < torch.inf)).all()):
        raise SignalError("a weight is negative or not finite.", fix="Weights are numbers from 0 up.")
    return picked


def _weigh(named: str | Mapping[str, Mapping[str, Any]] | None) -> Weigh | None:
    if named is None:
        return None
    chosen = {named: {}} if isinstance(named, str) else dict(named)
    if len(chosen) != 1:
        raise SignalError(
            f"token_weights names {len(chosen)} ways.", fix="Give one name, or {name: options}."
        )
    ((name, options),) = chosen.items()
    return weigh_by(resolve.load("token_weights", name, options or {}), name, options or {})


def _rows(head: nn.Module | Tensor | Head) -> int:
    if isinstance(head, Head):
        return head.vocabulary
    if isinstance(head, Tensor):
        return head.shape[0]
    # The weight of a quantised layer may be packed, and then its shape says nothing.
    rows = getattr(head, "out_features", None)
    if rows is None:
        weight = getattr(head, "weight", None)
        rows = weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else None
    if rows is None:
        raise SignalError(
            f"a {type(head).__name__} does not say how many ids it knows.",
            fix="Pass a Head(None, vocabulary, module=layer).",
        )
    return int(rows)


def _as_head(head: nn.Module | Tensor | Head, vocabulary: int) -> Head:
    if isinstance(head, Head):
        return replace(head, vocabulary=vocabulary)
    return Head(head, vocabulary) if isinstance(head, Tensor) else anatomy.read_head(head, vocabulary)
