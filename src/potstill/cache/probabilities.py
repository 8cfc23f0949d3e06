"""Whole distributions, a few rows at a time, and systematic draws from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from potstill.divergences import forward_kl
from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.models.projection import plain_logits
from potstill.signals.dense import Dense
from potstill.signals.ensemble import Ensemble
from potstill.signals.hidden import Hidden
from potstill.signals.signal import Chunk, Signal
from potstill.signals.support import tempered

PIECE_BYTES = 64 * 2**20  # of one piece's logits in fp32


At: TypeAlias = Callable[[float], Tensor]
"""T -> log-probabilities [c, V] of a few rows at that temperature, at least in fp32."""


def is_whole(signal: Signal) -> bool:
    """Whether it holds whole distributions."""
    return signal.kind == "dense"


def width_of(signal: Signal) -> int:
    """The ids that a whole distribution covers.

    Raises:
        SignalError: the signal does not say.
    """
    if isinstance(signal, Hidden):
        return signal.head.vocabulary
    if isinstance(signal, Dense):
        return signal.logits.shape[1]
    raise SignalError(
        f"a {type(signal).__name__} does not say how many ids it covers.", fix="Give vocabulary=…"
    )


@torch.no_grad()
def pieces(signal: Signal, vocabulary: int) -> Iterator[tuple[slice, At]]:
    """Some rows after the others, and their log-probabilities on the first `vocabulary` ids at a temperature.

    A signal of any other kind that is dense (several teachers, each tempered before they are averaged) is asked
    through what it gives to a loss.

    Raises:
        SignalError: the signal holds no whole distribution, or has fewer ids.
    """
    if not is_whole(signal):
        raise SignalError(
            f"a {signal.kind} signal holds no whole distribution to store.",
            fix="Give hidden states or logits, or a signal of the cache's own kind.",
        )
    step = max(1, PIECE_BYTES // (4 * vocabulary))
    known = isinstance(signal, Dense | Hidden)
    if known and width_of(signal) < vocabulary:
        raise SignalError(f"the teacher gives {width_of(signal)} ids, the cache is for {vocabulary}.")
    place = signal.weights.device if isinstance(signal, Ensemble) else None
    chunks = None if known else signal.chunks(Divergence.from_module(forward_kl), "bucket")
    for start in range(0, signal.rows, step):
        rows = slice(start, min(start + step, signal.rows))
        if chunks is not None:
            nothing = torch.zeros(rows.stop - start, vocabulary, device=place)
            yield rows, partial(_beside, chunks(rows, nothing), nothing)
        elif isinstance(signal, Hidden):
            yield rows, partial(tempered, plain_logits(signal.head, signal.hidden[rows])[:, :vocabulary])
        elif isinstance(signal, Dense):
            yield rows, partial(tempered, signal.logits[rows, :vocabulary])


def _beside(chunk: Chunk, nothing: Tensor, temperature: float) -> Tensor:
    """What a teacher says beside a student whose logits [c, V] are 0."""
    return chunk.beside(nothing, slice(0, len(nothing)), temperature).teacher_lp


def uniforms(key: bytes, count: int) -> np.ndarray:
    """A number in [0, 1) for each position of an example, [count]: Philox seeded by its key.

    They depend on the example alone, never on its place in a file or a batch.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)


def draw(p: Tensor, counts: Tensor, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw systematically from distributions p [n, V], which need not be normalised: counts[i] ids of row i.

    The ids at the points (u + j) / N of the cumulated distribution, j = 0 … N - 1, with one uniform u a row. The
    expected count of an id is N p, as with independent draws, and its variance f (1 - f), where f is the fraction of
    N p, is never above theirs, N p (1 - p) (Madow & Madow 1944).

    Returns:
        how many different ids each row has [n], the ids ascending in each row, and how often each was drawn.
    """
    cumulated = p.double().cumsum(-1)
    total = cumulated[:, -1:].contiguous()
    most = int(counts.max()) if len(counts) else 0
    order = torch.arange(most, device=p.device).double()
    used = order < counts.unsqueeze(-1)
    points = torch.from_numpy(uniform).to(p.device).unsqueeze(-1) + order
    points = points / counts.unsqueeze(-1).clamp(min=1) * total
    # A point on the border of two ids draws the second; rounding must not reach beyond the last id with mass.
    found = torch.searchsorted(cumulated, points, right=True)
    ids = torch.minimum(found, torch.searchsorted(cumulated, total)).cpu().numpy()
    used_here = used.cpu().numpy()
    new = used_here.copy()
    new[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    flat = np.flatnonzero(new[used_here])
    times = np.diff(np.append(flat, int(used_here.sum())))
    return new.sum(1), ids[new], times
