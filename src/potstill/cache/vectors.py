"""The vectors of a frozen student head, made from a teacher's whole distributions, and what identifies that head."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from potstill.cache import heads
from potstill.cache.probabilities import pieces
from potstill.models.projection import wide
from potstill.signals.signal import Signal
from potstill.signals.vector import KlVector
from potstill.types import Head

ROWS = 8192  # of a head that are widened at a time


def name_of(head: Head) -> str:
    """What identifies a head: sha256 of its numbers and form."""
    return hashlib.sha256(heads.content_of(head)).hexdigest()


@torch.no_grad()
def vectors_of(signal: Signal, head: Head, temperature: float = 1.0) -> KlVector:
    """softmax(z_T / T) W_S of each position, [N, H_S], with the mean bias and the entropy.

    Raises:
        SignalError: the signal holds no whole distribution.
    """
    assert head.weight is not None
    weight = head.weight.detach()[: head.vocabulary]
    weight = weight.to(wide(weight.dtype))
    bias = None if head.bias is None else head.bias.detach()[: head.vocabulary].to(weight.dtype)
    parts = [_mean(at(temperature), weight, bias) for _, at in pieces(signal, head.vocabulary)]
    if not parts:
        parts = [(weight.new_zeros(0, weight.shape[1]), weight.new_zeros(0), weight.new_zeros(0))]
    vectors, shift, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return KlVector(vectors, shift, entropy, head.vocabulary, temperature)


def _mean(lp: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    p = lp.exp()
    places = p.to(weight)
    shift = places.new_zeros(len(places)) if bias is None else places @ bias
    return places @ weight, shift, -torch.where(p > 0, p * lp, 0.0).sum(-1).to(weight)


@torch.no_grad()
def spread_of(weight: Tensor) -> Tensor:
    """(W' W)⁺ [H_S, H_S] of a head's rows W, in double."""
    wide_rows = (part.double() for part in weight.split(ROWS))
    square = sum((part.t() @ part for part in wide_rows), weight.new_zeros((), dtype=torch.float64))
    return torch.linalg.pinv(square, hermitian=True)


@torch.no_grad()
def noise(exact: Tensor, read: Tensor, spread: Tensor) -> Tensor:
    """½ |e|² [N] of the smallest change e of the probabilities with e W = read - exact: as of drawn ids at most a KL
    (Pinsker), and half the squared error of forward KL's gradient by the logits. `spread` is that of W."""
    difference = (read - exact).double()
    return ((difference @ spread) * difference).sum(-1) / 2
