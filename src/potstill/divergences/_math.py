"""What the divergences share: differences without cancellation, products and mixtures without NaN.

Log-probabilities may be -inf. Mass is what does not underflow in the tensor's own precision: an id
whose probability is 0 there contributes 0 and a finite gradient, however its other side looks. Inputs
are neutralised before they are multiplied; repairing a NaN afterwards would leave it in the gradient.

Everything here runs over N x V elements, in blocks: a temporary costs more than the operation that fills it, so
an operation in place stands where nothing else reads its input. On a CPU, selecting by a mask costs ten times an arithmetic
operation, so clamps stand where a reader may expect masks, and one sum or maximum (a tenth of an
operation) decides whether a guard is needed at all. On a GPU such a question would wait for the device,
so the guarded way is always taken there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.devices import exact
from potstill.errors import RecipeError

FLOOR = -1e30  # stands for -inf where a difference of two must stay a number
SAFE = 80.0  # expm1 of more would overflow in fp32


@dataclass(frozen=True)
class Pair:
    """Student and teacher side by side, all [N, K]."""

    student_lp: Tensor
    p: Tensor  # teacher probabilities
    log_ratio: Tensor  # log q - log p in [-inf, inf], 0 where both are -inf
    gap: Tensor  # q - p

    @property
    def q(self) -> Tensor:
        """Student probabilities, computed anew."""
        return self.student_lp.exp()


def may_ask(values: Tensor) -> bool:
    """Whether a value may decide what is computed: not on a GPU, and not in a graph, which has one way."""
    return not values.is_cuda and not torch.compiler.is_compiling()


def product(weight: Tensor, x: Tensor) -> Tensor:
    """weight * x, and 0 where the weight is 0 whatever x is."""
    if may_ask(weight):
        plain = weight * x
        if plain.detach().sum().isfinite():
            return plain
    return weight * torch.where(weight > 0, x, 0.0)


def compare(student_lp: Tensor, teacher_lp: Tensor) -> Pair:
    """Exponentials, their log ratio, and their difference without cancellation."""
    p = teacher_lp.exp()
    d = student_lp - teacher_lp
    if not may_ask(d) or not d.detach().sum().isfinite():
        inf = math.inf
        # A NaN that came in stays one: it is in q or p, and the guarded difference reads both.
        d = d.nan_to_num(nan=0.0, posinf=inf, neginf=-inf)
        return Pair(student_lp, p, d, _guarded_difference(student_lp.exp(), p, d))
    gap = p * torch.expm1(d) if _is_safe(d) else _guarded_difference(student_lp.exp(), p, d)
    return Pair(student_lp, p, d, gap)


def difference(q: Tensor, p: Tensor, log_ratio: Tensor) -> Tensor:
    """q - p as p expm1(d), d = log(q / p). Where that may overflow it is cut at d = 1, and q - e p put on top."""
    return p * torch.expm1(log_ratio) if _is_safe(log_ratio) else _guarded_difference(q, p, log_ratio)


def _is_safe(log_ratio: Tensor) -> bool:
    """Whether expm1 does not overflow; False where asking takes longer than the guard."""
    return may_ask(log_ratio) and (log_ratio.numel() == 0 or bool(log_ratio.detach().amax() < SAFE))


def _guarded_difference(q: Tensor, p: Tensor, log_ratio: Tensor) -> Tensor:
    return p * torch.expm1(log_ratio.clamp(max=1)) + torch.sub(q, p, alpha=math.e).relu()


def forward(pair: Pair) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) [N], a sum of p (expm1(d) - d) >= 0, and its partial q - p."""
    terms = product(pair.p, pair.log_ratio).neg_().add_(pair.gap)
    return terms.clamp_(min=0).sum(-1), pair.gap


def reverse(pair: Pair) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) [N], a sum of q (expm1(-d) + d) >= 0, and its partial q d."""
    flow = product(pair.q, pair.log_ratio)
    return (flow - pair.gap).clamp_(min=0).sum(-1), flow


def blend(pair: Pair, cover: Tensor, seek: Tensor) -> tuple[Tensor, Tensor]:
    """cover KL(p ‖ q) + seek KL(q ‖ p) [N] by weights [N, 1], and its partial; a KL of weight 0 may be infinite."""
    (covering, gap), (seeking, flow) = forward(pair), reverse(pair)
    value = product(cover, covering.unsqueeze(-1)) + product(seek, seeking.unsqueeze(-1))
    return value.squeeze(-1), product(cover, gap) + product(seek, flow)


@dataclass(frozen=True)
class Mixture:
    """Both sides against m = share * p + (1 - share) * q, 0 < share < 1; tensors are [N, K]."""

    q: Tensor
    p: Tensor
    gap: Tensor  # q - p
    tilt: Tensor  # (q - p) / m, between -1/share and 1/(1-share)
    share: float  # the teacher's

    def q_over_m(self) -> Tensor:
        """log(q / m), finite: a side below the precision of m counts as that precision."""
        return _log1p_(self.share * self.tilt)

    def p_over_m(self) -> Tensor:
        """log(p / m), finite."""
        return _log1p_((self.share - 1) * self.tilt)


def mixture(student_lp: Tensor, teacher_lp: Tensor, share: float) -> Mixture:
    """Mix in probabilities; no log of m is taken, which may have underflowed."""
    q, p = student_lp.exp(), teacher_lp.exp()
    gap = q - p
    m = torch.lerp(p, q, 1 - share).clamp_(min=torch.finfo(p.dtype).tiny)
    return Mixture(q, p, gap, gap / m, share)


def _log1p_(x: Tensor) -> Tensor:
    return x.clamp_(min=torch.finfo(x.dtype).eps - 1).log1p_()


def alpha_beta(student_lp: Tensor, teacher_lp: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """The αβ-divergence [N], and its partial; α + β > 0.

    -1/(αβ) [p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β)], with limits reverse KL of the powers β over β²
    at α = 0 and forward KL of the powers α over α² at β = 0 (Cichocki, Cruces & Amari 2011).
    """
    if alpha == 0:
        value, partial = reverse(compare(beta * student_lp, beta * teacher_lp))
        return value / beta**2, partial / beta
    if beta == 0:
        value, partial = forward(compare(alpha * student_lp, alpha * teacher_lp))
        return value / alpha**2, partial / alpha
    dtype = student_lp.dtype
    if dtype != torch.float64 and min(abs(alpha), abs(beta)) < 1e-3:
        # Quotients by αβ whose difference fp32 cannot see; a schedule towards a limit passes here.
        value, partial = alpha_beta(exact.wide(student_lp), exact.wide(teacher_lp), alpha, beta)
        return exact.back(value, student_lp), exact.back(partial, student_lp)
    total = alpha + beta
    d = student_lp.clamp(min=FLOOR) - teacher_lp.clamp(min=FLOOR)
    q, p = (total * student_lp).exp(), (total * teacher_lp).exp()
    cross = (total * teacher_lp.clamp(min=FLOOR) + beta * d).exp()
    terms = difference(q, p, total * d) / (alpha * total) - difference(cross, p, beta * d) / (alpha * beta)
    return terms.clamp(min=0).sum(-1), difference(q, cross, alpha * d) / alpha


def require(ok: bool, option: str, value: float, allowed: str) -> None:
    """Refuse an option.

    Raises:
        RecipeError: `ok` is false; `option` reads "jsd.beta".
    """
    if not ok:
        name = option.rpartition(".")[2]
        raise RecipeError(f"{name} is {value!r}.", fix=f"Give {name} {allowed}.", path=option, value=value)
