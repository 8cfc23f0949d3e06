"""The error of a stored sample: what is read beside what was given, position by position.

The error of a position is KL(p ‖ p̂) in nats at T = 1, where p is the teacher and p̂ what a reader sees; the mass
outside stored ids is spread evenly over them. Drawn targets are unbiased, so their error is their noise,
½ Σ (p̂ - p)²: at most the KL (Pinsker) and half the expected squared error of the forward KL's gradient by the
logits. Of vectors of a student's head it is the same number of the smallest change of p that explains the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache.blocks import DIRECTORY, pack_fields, unpack_fields
from potstill.cache.codecs import Context, Entry, codec
from potstill.cache.probabilities import pieces, width_of
from potstill.cache.vectors import noise, spread_of, vectors_of
from potstill.models.projection import plain_logits
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.sampled import Sampled
from potstill.signals.signal import Signal
from potstill.signals.topk import TopK
from potstill.types import Head

EXAMPLE = 128  # positions of an example of a sample that does not say where its examples end

Setting = Mapping[str, Any]


@torch.no_grad()
def measure(
    sample: Signal,
    settings: Sequence[tuple[str, Setting]],
    *,
    examples: Sequence[int] | None = None,
    vocabulary: int | None = None,
    student: Head | None = None,
) -> list[dict[str, float]]:
    """Store a sample in each (kind, setting), read it, and compare both; as `fidelity.Choice.measured`.

    Args:
        student: the frozen head that vectors are made with.
    """
    vocabulary = width_of(sample) if vocabulary is None else vocabulary
    tallies = [_Tally() for _ in settings]
    spread = None
    if student is not None and any(kind == "kl_vector" for kind, _ in settings):
        assert student.weight is not None
        spread = spread_of(student.weight.detach()[: student.vocabulary])
    for number, rows in enumerate(_cut(sample.rows, examples)):
        part = sample.at(torch.arange(rows.start, rows.stop))
        lp = torch.cat([at(1.0) for _, at in pieces(part, vocabulary)])
        for tally, (kind, setting) in zip(tallies, settings, strict=True):
            given: Any = part if kind == "hidden" else Dense(lp)
            if kind == "kl_vector":
                assert student is not None
                given = vectors_of(Dense(lp), student, setting["temperature"])
            fields = codec(kind).encode(given, setting, number.to_bytes(16, "little"), vocabulary)
            payload = pack_fields(fields, codec(kind).FIELDS)
            entry = Entry(part.rows, unpack_fields(payload, codec(kind).FIELDS))
            head = part.head if isinstance(part, Hidden) else None
            read: Any = codec(kind).decode([entry], setting, Context(vocabulary, head))
            size = len(payload) + DIRECTORY.itemsize
            if kind == "kl_vector":
                assert spread is not None
                tally.add_errors(noise(given.vectors, read.vectors, spread), size)
            else:
                tally.add(read if kind == "hidden" else read.whole(), lp, setting, size)
    return [tally.result() for tally in tallies]


class _Tally:
    """Errors of the positions so far."""

    def __init__(self) -> None:
        self._errors: list[Tensor] = []
        self._differences: list[Tensor] = []
        self._tails: list[Tensor] = []
        self._bytes = 0

    def add(self, read: Hidden | TopK | Sampled, lp: Tensor, setting: Setting, size: int) -> None:
        self._bytes += size
        if isinstance(read, Hidden):
            other = plain_logits(read.head, read.hidden).float().log_softmax(-1)
            self._errors.append(_kl(lp, other))
            likeliest = lp.argmax(-1, keepdim=True)
            self._differences.append((lp - other).gather(1, likeliest).abs().flatten())
        elif isinstance(read, TopK):
            self._add_topk(read, lp)
        else:
            tempered = (lp / setting["temperature"]).log_softmax(-1)
            weights = read.counts.double() / read.counts.sum(-1, keepdim=True)
            error = (-tempered.double().exp()).scatter_add(1, read.ids.clamp(min=0), torch.where(read.ids >= 0, weights, 0.0))  # fmt: skip
            self._errors.append(error.square().sum(-1) / 2)

    def add_errors(self, errors: Tensor, size: int) -> None:
        """Errors that are known, of an example of so many bytes."""
        self._bytes += size
        self._errors.append(errors)

    def _add_topk(self, read: TopK, lp: Tensor) -> None:
        used = read.ids >= 0
        places = torch.where(used, read.ids, read.ids[:, :1])
        true = lp.gather(1, places)
        self._differences.append((read.lp - true)[used].abs())
        inside = torch.where(used, true.double().exp(), 0.0).sum(-1)
        tail = (1 - inside).clamp(min=0)
        self._tails.append(tail)
        stored_tail = (1 - torch.where(used, read.lp.double().exp(), 0.0).sum(-1)).clamp(min=1e-12)
        ids_in_tail = (lp.shape[1] - used.sum(-1)).clamp(min=1)
        even = (stored_tail / ids_in_tail).log().unsqueeze(-1)
        other = even.expand(-1, lp.shape[1]).scatter(1, places, torch.where(used, read.lp.double(), read.lp[:, :1].double()))  # fmt: skip
        self._errors.append(_kl(lp, other))

    def result(self) -> dict[str, float]:
        errors = torch.cat(self._errors).double()
        values = {
            "kl_mean": float(errors.mean()),
            "kl_p99": float(np.quantile(errors.numpy(), 0.99)),
            "bytes_per_token": self._bytes / len(errors),
            "tokens": float(len(errors)),
        }
        if self._tails:
            values["tail_mean"] = float(torch.cat(self._tails).mean())
        if self._differences:
            values["dlogp_mean"] = float(torch.cat(self._differences).double().mean())
        return {name: _rounded(value) for name, value in values.items()}


def _kl(lp: Tensor, other: Tensor) -> Tensor:
    """KL(p ‖ p̂) in the form that is never negative: Σ p (expm1(d) - d), d = log p̂ - log p."""
    p = lp.double().exp()
    d = torch.where(p > 0, other.double() - lp.double(), 0.0)
    return (p * (torch.expm1(d) - d)).sum(-1)


def _cut(rows: int, examples: Sequence[int] | None) -> list[slice]:
    lengths = list(examples) if examples is not None else [EXAMPLE] * math.ceil(rows / EXAMPLE)
    ends = np.minimum(np.cumsum(lengths), rows).tolist()
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True) if b > a]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
