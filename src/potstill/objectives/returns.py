"""Rewards of drawn tokens, their returns, and the weights of text that a mixture wrote. Pure functions.

Tokens stand in row-major order, as everywhere; `owners` [N] says which sequence each belongs to, so the
tokens of a sequence are neighbours. Sums start behind each token, never at the row's end: padding has no place.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Importance = Literal["none", "per_token", "cumulative"]


def returns(rewards: Tensor, owners: Tensor, discount: float) -> Tensor:
    """Sum the rewards [N] from each token to the end of its sequence: R_t = Σ_{t' ≥ t} γ^(t'-t) r_t'.

    R_t = r_t + γ R_{t+1} is computed backwards, so no power of γ is ever divided by another (γ^1000 is 0 in fp32).
    """
    grid, sequence, place = _grid(rewards, owners)
    for t in range(grid.shape[1] - 2, -1, -1):
        grid[:, t] += discount * grid[:, t + 1]
    return grid[sequence, place]


def remaining(owners: Tensor) -> Tensor:
    """Count the tokens from each token to the end of its sequence, itself included, [N]."""
    _, sequence, counts = torch.unique_consecutive(owners, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    return ends[sequence] - torch.arange(owners.shape[0], device=owners.device)


def log_weights(student_lp: Tensor, teacher_lp: Tensor, teacher_share: float) -> Tensor:
    """log(q / (α p + (1-α) q)) of drawn tokens [N]: the student against the mixture that wrote them.

    With a share α of 0 the student wrote alone, and the logs are 0.
    """
    if teacher_share == 0:
        return torch.zeros_like(student_lp)
    own = (
        student_lp + math.log1p(-teacher_share)
        if teacher_share < 1
        else torch.full_like(student_lp, -math.inf)
    )
    return student_lp - torch.logaddexp(teacher_lp + math.log(teacher_share), own)


def products(log_weights: Tensor, owners: Tensor, *, before: bool = False) -> Tensor:
    """The products [N] of the weights of each token and all before it in its sequence; `before`: of those alone."""
    grid, sequence, place = _grid(log_weights, owners)
    sums = grid.cumsum(1)
    if before:  # not by subtraction: a weight of 0 has no logarithm
        sums = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], 1)
    return sums[sequence, place].exp()


def moments(values: Tensor) -> Tensor:
    """Count, sum and sum of squares [3] of values [N]; such triples of several processes add up."""
    wide = values.double()
    return torch.stack([wide.new_tensor(float(wide.shape[0])), wide.sum(), wide.square().sum()])


def mean_and_deviation(summed: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of what `moments` summed; 0 and 1 below two values."""
    count, total, squares = summed.tolist()
    if count < 2:
        return 0.0, 1.0
    mean = total / count
    variance = max(0.0, squares / count - mean * mean) * count / (count - 1)
    return mean, math.sqrt(variance + 1e-8)


def _grid(values: Tensor, owners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values as [sequences, longest], 0 where a sequence has ended, and where each value [N] stands there."""
    _, sequence, counts = torch.unique_consecutive(owners, return_inverse=True, return_counts=True)
    begins = counts.cumsum(0) - counts
    place = torch.arange(owners.shape[0], device=owners.device) - begins[sequence]
    longest = int(counts.max()) if counts.numel() else 0
    grid = values.new_zeros(counts.shape[0], longest)
    grid[sequence, place] = values
    return grid, sequence, place
