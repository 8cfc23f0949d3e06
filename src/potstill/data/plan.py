"""Which rows an optimizer step trains on, cut into micro-batches and shared among ranks."""

from __future__ import annotations

import random
from collections.abc import Sequence
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
    """One epoch: steps -> micro-batches -> row indices. Every row stands in it exactly once.

    Args:
        lengths: tokens of each row.
        counts: scored tokens of each row.
        tokens_per_step: a step gathers shuffled rows until its scored tokens reach this; the last is
            what remains.
        micro_batch_tokens: most padded tokens (rows x longest) of a micro-batch; a longer row stands alone.
        packing: rows stand end to end, so a micro-batch counts its own tokens only.
        seed, epoch: the plan depends on these and the sizes alone.
    """
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    steps: list[Step] = []
    rows: list[int] = []
    gathered = 0
    for row in order:
        rows.append(row)
        gathered += counts[row]
        if gathered >= tokens_per_step:
            steps.append(_cut(rows, lengths, micro_batch_tokens, packing))
            rows, gathered = [], 0
    if rows:
        steps.append(_cut(rows, lengths, micro_batch_tokens, packing))
    return steps


def _cut(rows: Sequence[int], lengths: Sequence[int], budget: int, packing: bool) -> Step:
    """Micro-batches of like lengths, the longest first, so that memory peaks at once."""
    step: Step = []
    for row in sorted(rows, key=lambda row: lengths[row], reverse=True):
        if step and padded([*step[-1], row], lengths, packing) <= budget:
            step[-1].append(row)
        else:
            step.append([row])
    return step


def padded(micro: Micro, lengths: Sequence[int], packing: bool = False) -> int:
    """Tokens of a micro-batch with its padding, of which a packed one has none."""
    if packing:
        return sum(lengths[row] for row in micro)
    return len(micro) * max((lengths[row] for row in micro), default=0)


def shard(step: Step, rank: int, world: int, *, lengths: Sequence[int]) -> Step:
    """This rank's micro-batches of a step: as many as every other rank's, padded tokens in balance.

    Micro-batches are halved until they can be dealt out evenly; where rows run out, some are empty.
    None is larger than one of `step`.
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
