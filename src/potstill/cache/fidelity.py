"""Choose how a teacher is stored from a bound on the error or on the bytes: a sample is stored, read and compared.

The error of a position is KL(p ‖ p̂) in nats at T = 1, where p is the teacher and p̂ what a reader sees; the mass
outside stored ids is spread evenly over them. Drawn targets are unbiased, so the bound applies to their noise:
½ Σ (p̂ - p)², which is at most the KL (Pinsker) and half the expected squared error of the forward KL's gradient by
the logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache.blocks import DIRECTORY, pack_fields, unpack_fields
from potstill.cache.codecs import Context, Entry, codec
from potstill.cache.probabilities import pieces, width_of
from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.models.projection import plain_logits
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.sampled import Sampled
from potstill.signals.signal import Signal
from potstill.signals.topk import TopK
from potstill.types import Head

EXAMPLE = 128  # positions of an example of a sample that does not say where its examples end
_THRESHOLDS = (0.1, 0.05, 0.03, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)
_DRAWS = (4, 8, 16, 32, 50, 100, 200, 400)
_DRAWN = ("sampled", "topk_sampled")

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """How to store a teacher, and what that costs and keeps; `measured` is for the header's facts.

    `measured` holds kl_mean and kl_p99 (nats per token; the noise where targets are drawn), tail_mean, dlogp_mean
    (|stored - true| log-probability of stored ids) and bytes_per_token, over `tokens` positions.
    """

    kind: str
    setting: dict[str, Any]
    measured: dict[str, float]
    why: str


def choose(
    sample: Signal,
    kind: str = "auto",
    *,
    max_kl_nats: float | None = None,
    bytes_per_token: float | None = None,
    head: Head | None = None,
    divergences: Sequence[Divergence] = (),
    temperatures: Sequence[float] = (1.0,),
    examples: Sequence[int] | None = None,
    vocabulary: int | None = None,
) -> Choice:
    """Choose the smallest setting whose error on a sample meets a bound, or the best one within a budget.

    Args:
        sample: hidden states or logits of some hundred positions, of real rows.
        kind: one of `codecs.names()`, or auto.
        max_kl_nats: most of the mean error, 0.001 where nothing is said.
        bytes_per_token: a budget in place of it.
        head: reads hidden states; that of the sample where there is none.
        divergences: what will be trained on the cache; none for whole distributions (any divergence, evaluation).
        temperatures: at which they compare.
        examples: how many positions of the sample belong to each example.
        vocabulary: ids that the teacher knows, where the sample does not say.

    Raises:
        SignalError: no setting meets the bound; names the closest.
    """
    if max_kl_nats is not None and bytes_per_token is not None:
        raise SignalError("both max_kl_nats and bytes_per_token are given.", fix="Give one of them.")
    bound = 1e-3 if max_kl_nats is None else max_kl_nats
    if not sample.rows:
        raise SignalError("the sample has no positions to measure.")
    if isinstance(sample, Hidden) and head is not None:
        sample = Hidden(sample.hidden, head)
    if kind == "auto":
        kinds, why = _kinds(sample, divergences, temperatures, bytes_per_token)
    else:
        require_readable(kind, divergences, temperatures)
        kinds, why = [kind], f"{kind} was asked for"
    tried: list[Choice] = []
    for each in kinds:
        settings = candidates(each, temperatures)
        pairs = [(each, setting) for setting in settings]
        measured = measure(sample, pairs, examples=examples, vocabulary=vocabulary)
        tried += [Choice(each, s, facts, "") for s, facts in zip(settings, measured, strict=True)]
    best = _within(tried, bound, bytes_per_token)
    rank, limit = "smallest", f"{bound:g} nats"
    if bytes_per_token is not None:
        rank, limit = "best", f"{bytes_per_token:g} bytes a token"
    measured_on = (
        f"of {len(tried)} settings measured on {sample.rows} positions it is the {rank} within {limit}"
    )
    return replace(best, why=f"{why}; {measured_on}")


def _within(tried: Sequence[Choice], bound: float, budget: float | None) -> Choice:
    if budget is not None:
        fitting = [one for one in tried if one.measured["bytes_per_token"] <= budget]
        if fitting:
            return min(fitting, key=lambda one: one.measured["kl_mean"])
        least = min(tried, key=lambda one: one.measured["bytes_per_token"])
        raise SignalError(
            f"no setting of {least.kind} fits into {budget:g} bytes a token; the smallest takes "
            f"{least.measured['bytes_per_token']:.1f}.",
            fix="Raise bytes_per_token, or choose sampled or topk_sampled.",
        )
    fitting = [one for one in tried if one.measured["kl_mean"] <= bound]
    if fitting:
        return min(fitting, key=lambda one: one.measured["bytes_per_token"])
    best = min(tried, key=lambda one: one.measured["kl_mean"])
    raise SignalError(
        f"no setting keeps to {bound:g} nats a token; the best, {best.kind} {dict(best.setting)}, has "
        f"{best.measured['kl_mean']:.2g} at {best.measured['bytes_per_token']:.0f} bytes.",
        fix="Raise max_kl_nats, or choose hidden, which is exact to rounding.",
    )


def _kinds(
    sample: Signal, divergences: Sequence[Divergence], temperatures: Sequence[float], budget: float | None
) -> tuple[list[str], str]:
    """The kinds that auto considers, and the reason."""
    one_temperature = len({float(t) for t in temperatures}) == 1
    if divergences and all(one.linear for one in divergences) and one_temperature:
        names = ", ".join(one.name for one in divergences)
        return [
            "topk_sampled"
        ], f"{names} is linear in the teacher, so exact likely ids and unbiased draws serve it"
    stored = bool(divergences) and all("topk" in one.supports for one in divergences)
    whole = isinstance(sample, Hidden)
    if stored and (budget is not None or not whole):
        return (["hidden"] if whole else []) + ["topk"], "the divergences read stored ids with a tail bucket"
    if whole:
        kinds = ["hidden", "topk"] if stored else ["hidden"]
        return kinds, "hidden states serve every divergence, temperature and evaluation"
    if stored:
        return ["topk"], "the teacher gives no hidden states"
    raise SignalError(
        "the teacher gives no hidden states, and what is needed reads whole distributions.",
        fix="Choose a divergence that reads stored ids, or a teacher with weights here.",
    )


def require_readable(kind: str, divergences: Sequence[Divergence], temperatures: Sequence[float]) -> None:
    """Refuse a kind that a divergence or the temperatures cannot use.

    Raises:
        SignalError: names the divergence.
    """
    support = {"hidden": "dense", "topk": "topk", "sampled": "sampled", "topk_sampled": "sampled"}.get(kind)
    for one in divergences:
        if support is None or support not in one.supports:
            raise SignalError(
                f"{one.name} cannot be computed from a cache of the kind {kind}.",
                fix="Use hidden, or signal: auto.",
            )
    if kind in _DRAWN and len({float(t) for t in temperatures}) > 1:
        raise SignalError(f"a cache of the kind {kind} serves one temperature.", fix="Use topk or hidden.")


def candidates(kind: str, temperatures: Sequence[float] = (1.0,)) -> list[dict[str, Any]]:
    """The settings of a kind that are measured."""
    first = float(next(iter(temperatures), 1.0))
    others = sorted({float(t) for t in temperatures} - {1.0})
    every: dict[str, list[dict[str, Any]]] = {
        "hidden": [{"format": "int8"}, {"format": "fp16"}],
        "topk": [
            {"threshold": t, "most": 256, "bits": b, "temperatures": others}
            for b in (6, 8)
            for t in _THRESHOLDS
        ],
        "sampled": [{"draws": n, "temperature": first} for n in _DRAWS],
        "topk_sampled": [
            {"threshold": t, "most": 32, "draws": n, "temperature": first}
            for t in (0.1, 0.03, 0.01)
            for n in _DRAWS
        ],
        "token": [{"format": "fp32"}],
    }
    return [codec(kind).check(setting) for setting in every[kind]]


@torch.no_grad()
def measure(
    sample: Signal,
    settings: Sequence[tuple[str, Setting]],
    *,
    examples: Sequence[int] | None = None,
    vocabulary: int | None = None,
) -> list[dict[str, float]]:
    """Store a sample in each (kind, setting), read it, and compare both; as `Choice.measured`."""
    vocabulary = width_of(sample) if vocabulary is None else vocabulary
    tallies = [_Tally() for _ in settings]
    for number, rows in enumerate(_cut(sample.rows, examples)):
        part = sample.at(torch.arange(rows.start, rows.stop))
        lp = torch.cat([at(1.0) for _, at in pieces(part, vocabulary)])
        for tally, (kind, setting) in zip(tallies, settings, strict=True):
            given = part if kind == "hidden" else Dense(lp)
            fields = codec(kind).encode(given, setting, number.to_bytes(16, "little"), vocabulary)
            payload = pack_fields(fields, codec(kind).FIELDS)
            entry = Entry(part.rows, unpack_fields(payload, codec(kind).FIELDS))
            head = part.head if isinstance(part, Hidden) else None
            read: Any = codec(kind).decode([entry], setting, Context(vocabulary, head))
            tally.add(
                read if kind == "hidden" else read.whole(), lp, setting, len(payload) + DIRECTORY.itemsize
            )
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
