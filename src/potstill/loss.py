"""DistillationLoss: potstill's objective as a drop-in for anyone's own training loop. Needs torch only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from potstill import anatomy, resolve, streaming
from potstill.errors import SignalError
from potstill.fused import DEFAULT_CHUNK_BYTES, Mode, Rowwise, linear_loss, logits_loss
from potstill.objectives.token import Divergence, TokenLoss, Weigh, require_possible, weigh_by
from potstill.types import Dense, Head, Hidden, Loss, Sampled, Signal, TopK

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
        token_weights: a weight of each token by name, "entropy" or "position", or {name: options}; divide
            by `metrics["weight"]`, their sum, instead of the count then.
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
        module = resolve.load("divergences", divergence, options)
        compared = Divergence.from_module(module, options)
        weigh = _weigh(token_weights)
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
            weights: [B, S] of each position's loss.

        Raises:
            SignalError: shapes disagree, or padded widths differ and no vocabulary was given.
            NotFinite: a target is impossible for the student, or something is NaN (not seen on a GPU).
            TrainingStopped: a divergence that cannot be negative is.
        """
        predicts, targets = self._select(student_hidden, teacher_hidden, mask, labels, weights)
        vocabulary = self._shared(_rows(student_head), _rows(teacher_head))
        signal = Hidden(teacher_hidden[predicts].detach(), _as_head(teacher_head, vocabulary))
        head, hidden = _as_head(student_head, vocabulary), student_hidden[predicts]
        if self._mode == "eval" and not streaming.unable(head, signal, self.token_loss):
            picked = None if weights is None else weights[predicts]
            return self._checked(
                streaming.streamed_loss(
                    hidden, head, signal, self.token_loss, targets, weights=picked, metrics=metrics
                )
            )
        rowwise = self._rowwise(signal, targets, weights, predicts, metrics)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._mode != "eval"):
            mode: Mode = "recompute" if self._mode == "recompute" else "store"
            out = linear_loss(hidden, head, rowwise, chunk_bytes=self._chunk_bytes, mode=mode)
        return self._checked(out)

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
        if isinstance(teacher, Tensor):
            width = self._shared(student_logits.shape[-1], teacher.shape[-1])
            signal: Signal = Dense(teacher[predicts].detach()[:, :width])
        else:
            width = self._shared(student_logits.shape[-1], self._vocabulary or student_logits.shape[-1])
            signal = teacher
        rowwise = self._rowwise(signal, targets, weights, predicts, metrics)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._mode != "eval"):
            out = logits_loss(student_logits[predicts][:, :width], rowwise, chunk_bytes=self._chunk_bytes)
        return out if isinstance(signal, Sampled) else self._checked(out)

    def _checked(self, out: Loss) -> Loss:
        if "divergence" in out.metrics:
            require_possible(float(out.metrics["divergence"]), int(out.count), self.token_loss)
        return out

    def _rowwise(
        self, signal: Signal, targets: Tensor | None, weights: Tensor | None, predicts: Tensor, metrics: bool
    ) -> Rowwise:
        picked = None if weights is None else weights[predicts]
        place = None if self.token_loss.weigh is None else (predicts.cumsum(-1) - 1)[predicts]
        return self.token_loss.rowwise(signal, targets, weights=picked, place=place, metrics=metrics)

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
            return given.bool(), None
        following = torch.full_like(labels, IGNORE)
        following[..., :-1] = labels[..., 1:]
        predicts = following != IGNORE
        return predicts, following[predicts]

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


def _weigh(named: str | Mapping[str, Mapping[str, Any]] | None) -> Weigh | None:
    if named is None:
        return None
    chosen = {named: {}} if isinstance(named, str) else dict(named)
    if len(chosen) != 1:
        raise SignalError(
            f"token_weights names {len(chosen)} ways.", fix="Give one name, or {name: options}."
        )
    ((name, options),) = chosen.items()
    return weigh_by(resolve.load("token_weights", name, options or {}).weights, options or {})


def _rows(head: nn.Module | Tensor | Head) -> int:
    if isinstance(head, Head):
        return head.vocabulary
    return (head if isinstance(head, Tensor) else cast(Tensor, head.weight)).shape[0]


def _as_head(head: nn.Module | Tensor | Head, vocabulary: int) -> Head:
    if isinstance(head, Head):
        return replace(head, vocabulary=vocabulary)
    return Head(head, vocabulary) if isinstance(head, Tensor) else anatomy.read_head(head, vocabulary)
