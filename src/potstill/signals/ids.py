"""Checks that every signal of stored ids shares."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from potstill.errors import SignalError


def require_shapes(ids: Tensor, values: Tensor, rows: Mapping[str, Tensor | None]) -> None:
    """Refuse values that are not [N, k] as the ids are, or named values of the rows that are not [N].

    Raises:
        SignalError: names both shapes.
    """
    if ids.shape != values.shape:
        raise SignalError(f"there are {tuple(ids.shape)} ids and {tuple(values.shape)} values for them.")
    for name, of_rows in rows.items():
        if of_rows is not None and of_rows.shape != ids.shape[:1]:
            raise SignalError(
                f"the targets have {ids.shape[0]} rows, {tuple(of_rows.shape)} values of {name} belong to them."
            )


def used_first(ids: Tensor, values: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Put unused places last, with id -1.

    Raises:
        SignalError: a position has no id, or one twice.
    """
    ids, values = unused_last(ids, values, used)
    in_order = ids.sort(-1).values
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    empty = ~used.any(-1)
    if torch.stack([empty.any(), twice.any()]).any():  # one question to the device for both
        if empty.any():
            raise SignalError(
                f"position {first(empty)} of the targets has no id.", fix="Leave the position out."
            )
        row = first(twice.any(-1))
        again = int(in_order[row, 1:][twice[row]][0])
        raise SignalError(f"position {row} of the targets holds id {again} twice.")
    return ids, values


def unused_last(ids: Tensor, values: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Put unused places last, with id -1; a position may have no other."""
    order = torch.argsort((~used).to(torch.uint8), dim=-1, stable=True)
    return torch.where(used, ids, -1).gather(-1, order), values.gather(-1, order)


def require_within(ids: Tensor, vocabulary: int, who: str = "student") -> None:
    """Refuse ids that a vocabulary does not have.

    Raises:
        SignalError: names the largest.
    """
    largest = int(ids.max()) if ids.numel() else -1
    if largest >= vocabulary:
        raise SignalError(
            f"the targets hold id {largest}, the {who}'s vocabulary has {vocabulary} ids.",
            fix="They were stored for another tokenizer, or before its padding was cut. Where the teacher has more ids "
            "than both share, top-k targets say how many: TopK(vocabulary=…).",
        )


def first(rows: Tensor) -> int:
    """Index the first row that is true."""
    return int(rows.nonzero()[0, 0])
