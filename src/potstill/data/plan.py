"""Rows cut into batches: by length, into optimizer steps, and among ranks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Micro: TypeAlias = list[int]
Step: TypeAlias = list[Micro]


def plan_steps(
    lengths: Sequence[int],
    counts: Sequence[int],
    *,
    tokens_per_step: int,
    micro_batch_tokens: int,
    seed: int,
    epoch: int,
    packing: bool = False,
) -> list[Step]:
    """Plan one epoch: steps -> micro-batches -> row indices. Every row occurs exactly once.

    Args:
        lengths: tokens of each row.
        counts: scored tokens of each row.
        tokens_per_step: a step gathers shuffled rows until its scored tokens reach this; the last step has
            the rest.
        micro_batch_tokens: most padded tokens (rows x longest) of a micro-batch; a longer row is alone.
        packing: rows follow each other without padding, so a micro-batch counts its own tokens only.
        seed, epoch: the plan depends on these and the sizes alone.
    """
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    groups: list[list[int]] = [[]]
    gathered = 0
    for row in order:
        groups[-1].append(row)
        gathered += counts[row]
        if gathered >= tokens_per_step:
            groups.append([])
            gathered = 0
    # The longest rows come first, so that memory peaks at once.
    return [
        by_length(lengths, micro_batch_tokens, rows=rows, longest_first=True, packing=packing)
        for rows in groups
        if rows
    ]


def by_length(
    lengths: Sequence[int],
    tokens: int,
    *,
    rows: Iterable[int] | None = None,
    longest_first: bool = False,
    packing: bool = False,
) -> list[Micro]:
    """Cut rows (all without `rows`) into batches of similar lengths, of at most `tokens` padded tokens each.

    A row longer than that is a batch of its own.
    """
    batches: list[Micro] = []
    rows = range(len(lengths)) if rows is None else rows
    for row in sorted(rows, key=lambda row: lengths[row], reverse=longest_first):
        if batches and padded([*batches[-1], row], lengths, packing) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(micro: Micro, lengths: Sequence[int], packing: bool = False) -> int:
    """Count the tokens of a micro-batch with its padding; a packed one has none."""
    if packing:
        return sum(lengths[row] for row in micro)
    return len(micro) * max((lengths[row] for row in micro), default=0)


def shard(step: Step, rank: int, world: int, *, lengths: Sequence[int]) -> Step:
    """Select this rank's micro-batches of a step: every rank gets as many, with padded tokens in balance.

    Micro-batches are halved until their number is a multiple of `world`; where rows run out, some are
    empty. None is larger than one of `step`.
    """

    def size(micro: Micro) -> int:
        return padded(micro, lengths)

    micros = [list(micro) for micro in step]
    while len(micros) % world:
        largest = max((micro for micro in micros if len(micro) > 1), key=size, default=None)
        if largest is None:
            micros.append([])
            continue
        micros.remove(largest)
        half = len(largest) // 2
        micros += [largest[:half], largest[half:]]
    shares: list[Step] = [[] for _ in range(world)]
    for micro in sorted(micros, key=size, reverse=True):
        open_shares = [share for share in shares if len(share) < len(micros) // world]
        min(open_shares, key=lambda share: sum(map(size, share))).append(micro)
    return shares[rank]
