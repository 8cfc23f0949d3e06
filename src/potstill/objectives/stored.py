"""Stored targets, looked through once: what no capture can have written is refused, unused places go last."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor

from potstill.errors import SignalError
from potstill.types import Sampled, TopK

Stored = TypeVar("Stored", TopK, Sampled)


def ready(signal: Stored) -> Stored:
    """The same targets with -1 in unused places, and these behind the used ones.

    Raises:
        SignalError: shapes disagree, a position has no id or one twice, log-probabilities lie above 0 or hold more mass
            than 1, a count is negative.
    """
    values = signal.lp if isinstance(signal, TopK) else signal.counts
    if signal.ids.shape != values.shape:
        raise SignalError(
            f"there are {tuple(signal.ids.shape)} ids and {tuple(values.shape)} values for them."
        )
    besides = signal.lse if isinstance(signal, TopK) else {"entropy": signal.entropy}
    for what, row in besides.items():
        if row is not None and row.shape != signal.ids.shape[:1]:
            raise SignalError(
                f"the targets have {signal.ids.shape[0]} rows, {tuple(row.shape)} values of "
                f"{what if isinstance(signal, Sampled) else f'log-sum-exp at T = {what}'} lie beside them."
            )
    used = signal.ids >= 0 if isinstance(signal, TopK) else (signal.ids >= 0) & (signal.counts != 0)
    order = torch.argsort((~used).to(torch.uint8), dim=-1, stable=True)
    ids = torch.where(used, signal.ids, -1).gather(-1, order)
    values = values.gather(-1, order)
    _refuse(ids, values, isinstance(signal, TopK))
    found: TopK | Sampled
    if isinstance(signal, TopK):
        found = TopK(ids, values, signal.lse)
    else:
        found = Sampled(ids, values, signal.entropy, signal.temperature)
    return cast(Stored, found)


def within(ids: Tensor, vocabulary: int) -> None:
    """Refuse ids that the student's vocabulary does not have.

    Raises:
        SignalError: names the largest.
    """
    largest = int(ids.max()) if ids.numel() else -1
    if largest >= vocabulary:
        raise SignalError(
            f"the targets hold id {largest}, the student's vocabulary has {vocabulary} ids.",
            fix="They were stored for another tokenizer, or before its padding was cut.",
        )


def _refuse(ids: Tensor, values: Tensor, log_probabilities: bool) -> None:
    used = ids >= 0
    in_order = ids.sort(-1).values
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    empty = ~used.any(-1) if ids.shape[1] else torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device)
    if log_probabilities:
        eps = torch.finfo(values.dtype).eps
        lp = torch.where(used, values.double(), -torch.inf)
        p = lp.exp()
        mass = p.sum(-1)
        # A rounded log-probability lp moves its p by p |lp| eps.
        rounding = 2 * eps * torch.where(p > 0, p * (1 - lp), 0.0).sum(-1)
        wrong = used & ~(values <= 4 * eps)
        heavy = mass > 1 + rounding + 1e-5
    else:
        wrong, heavy = used & ~(values > 0), torch.zeros_like(empty)
    # One question to the device for all of them.
    if not torch.stack([empty.any(), twice.any(), wrong.any(), heavy.any()]).any():
        return

    def first(rows: Tensor) -> int:
        return int(rows.nonzero()[0, 0])

    if empty.any():
        raise SignalError(f"position {first(empty)} of the targets has no id.", fix="Leave the position out.")
    if twice.any():
        row = first(twice.any(-1))
        again = int(in_order[row, 1:][twice[row]][0])
        raise SignalError(f"position {row} of the targets holds id {again} twice.")
    if wrong.any():
        row = first(wrong.any(-1))
        value = float(values[row][wrong[row]][0])
        what = "log-probability, which is at most 0" if log_probabilities else "count, which is at least 0"
        raise SignalError(
            f"position {row} of the targets holds {value:g} as a {what}.",
            fix="Give natural log-probabilities, normalised over the whole vocabulary."
            if log_probabilities
            else "",
        )
    row = first(heavy)
    raise SignalError(
        f"position {row} of the targets holds the mass {float(mass[row]):.3g}, and no distribution has more than 1.",
        fix="Normalise log-probabilities over the whole vocabulary, at T = 1.",
    )
