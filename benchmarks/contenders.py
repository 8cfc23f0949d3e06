"""The loss layer of every contender, on the same tensors.

Each is a function of a `Case` and β that returns the mean over scored positions of the generalised JSD
(β = 0 forward KL, β = 1 reverse KL), ready for backward(). A peer gets what it gets in its own trainer:
one that computes unscored positions too does so here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from protocol import installed

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from torch import Tensor

from potstill import DistillationLoss
from potstill.objectives.fused import chunk_rows

BETAS = (0.0, 0.5, 1.0)
TRL_CHUNK = 256  # what TRL's trainer uses
Contender = Callable[["Case", float], Tensor]


@dataclass(frozen=True)
class Case:
    """Final hidden states of one row of S positions, and the heads that read them."""

    student_hidden: Tensor  # [S, Hs], a leaf
    student_head: Tensor  # [V, Hs], a leaf
    teacher_hidden: Tensor  # [S, Ht]
    teacher_head: Tensor  # [V, Ht]
    scored: Tensor  # [S] bool

    def to(self, dtype: torch.dtype) -> Case:
        """The same values in another dtype, as new leaves."""
        return Case(
            self.student_hidden.detach().to(dtype).requires_grad_(),
            self.student_head.detach().to(dtype).requires_grad_(self.student_head.requires_grad),
            self.teacher_hidden.to(dtype),
            self.teacher_head.to(dtype),
            self.scored,
        )

    def frozen(self) -> Case:
        """The same with a student head that is not trained."""
        return replace(self, student_head=self.student_head.detach())

    def forget(self) -> None:
        """Drop the gradients."""
        self.student_hidden.grad = self.student_head.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """What backward() left: dh, and dW of a trained head."""
        found = {"dh": self.student_hidden.grad, "dW": self.student_head.grad}
        return {name: grad for name, grad in found.items() if grad is not None}


def make_case(
    positions: int,
    share: float,
    student_width: int,
    teacher_width: int,
    vocabulary: int,
    *,
    near: bool = False,
) -> Case:
    """A seeded case in fp32: the last `share` of the positions is scored, logits have a spread of 2.

    `near`: the teacher's logits are the student's plus noise of spread 0.22 (a JSD of about 6e-3), as late
    in training; else the teacher knows nothing of the student.
    """
    made = torch.Generator().manual_seed(0)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return torch.empty(shape).normal_(std=spread, generator=made)

    hidden = normal(positions, student_width)
    head = normal(vocabulary, student_width, spread=2 / student_width**0.5)
    if near:
        rest = teacher_width - student_width
        teacher_hidden = torch.cat([hidden, normal(positions, rest)], 1)
        teacher_head = torch.cat([head, normal(vocabulary, rest, spread=0.22 / rest**0.5)], 1)
    else:
        teacher_hidden = normal(positions, teacher_width)
        teacher_head = normal(vocabulary, teacher_width, spread=2 / teacher_width**0.5)
    scored = torch.arange(positions) >= positions - round(share * positions)
    return Case(hidden.requires_grad_(), head.requires_grad_(), teacher_hidden, teacher_head, scored)


def ours(case: Case, beta: float, chunk: int | None = None) -> Tensor:
    """potstill's fused loss, with its own budget for a chunk or with `chunk` rows."""
    chunk_bytes = None if chunk is None else 2 * chunk * case.student_head.shape[0] * 4
    heads = (case.student_head, case.teacher_hidden, case.teacher_head)
    return distillation_loss(beta, chunk_bytes)(case.student_hidden, *heads, case.scored).mean


@cache
def distillation_loss(beta: float, chunk_bytes: int | None, compile: bool = False) -> DistillationLoss:
    """potstill's loss of the generalised JSD, 0 and 1 being the two KLs."""
    if beta in (0, 1):
        name = "reverse_kl" if beta else "forward_kl"
        return DistillationLoss(name, chunk_bytes=chunk_bytes, compile=compile)
    return DistillationLoss("jsd", beta=beta, chunk_bytes=chunk_bytes, compile=compile)


def trl_chunked(case: Case, beta: float, chunk: int = TRL_CHUNK) -> Tensor:
    """TRL's DistillationTrainer: scored positions packed, every chunk checkpointed."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    return _chunked_divergence_loss(
        case.student_hidden.unsqueeze(0),
        case.teacher_hidden.unsqueeze(0),
        case.student_head,
        case.teacher_head,
        case.scored.unsqueeze(0).int(),
        beta,
        chunk,
    )[0]


def trl_liger(case: Case, beta: float, chunk: int = 1024, compiled: bool = False) -> Tensor:
    """TRL's copy of Liger's chunked JSD as its trainers call it; it computes unscored positions too."""
    from trl.losses import FusedLinearJSDLoss

    loss = FusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=compiled, chunk_size=chunk
    )
    labels = torch.where(case.scored, 0, -100)
    return loss(case.student_hidden, case.student_head, case.teacher_hidden, case.teacher_head, labels)


def trl_gkd(case: Case, beta: float) -> Tensor:
    """TRL's GKD: the logits of all positions, and the divergence before the mask."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher = _logits(case)
    labels = torch.where(case.scored, 0, -100)
    return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels[None], beta=beta)


def plain(case: Case, beta: float) -> Tensor:
    """A plain loop's `F.kl_div` on the scored rows of dense logits; forward KL only."""
    assert beta == 0
    student, teacher = (F.log_softmax(z[case.scored].float(), -1) for z in _logits(case))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _logits(case: Case) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        teacher = F.linear(case.teacher_hidden, case.teacher_head)
    return F.linear(case.student_hidden, case.student_head), teacher


def dense(case: Case, beta: float) -> Tensor:
    """The definition, without any care for time or memory: what the others are checked against."""
    student, teacher = (torch.log_softmax(z[case.scored], -1) for z in _logits(case))
    q, p = student.exp(), teacher.exp()
    if beta == 0:
        return (p * (teacher - student)).sum(-1).mean()
    if beta == 1:
        return (q * (student - teacher)).sum(-1).mean()
    mixture = (beta * p + (1 - beta) * q).log()
    return (beta * p * (teacher - mixture) + (1 - beta) * q * (student - mixture)).sum(-1).mean()


def gemm_floor(case: Case) -> Callable[[], None]:
    """The products alone, chunked as potstill chunks, into memory that exists already.

    Two for the logits, one for dh, and one for dW of a trained head. It computes no loss.
    """
    scored, weight = case.scored, case.student_head.detach()
    student, teacher = case.student_hidden.detach()[scored], case.teacher_hidden[scored]
    vocabulary, count = weight.shape[0], student.shape[0]
    rows = min(count, chunk_rows(vocabulary, torch.float32))
    out, other = (torch.zeros(rows, vocabulary, dtype=weight.dtype) for _ in range(2))
    d_hidden, d_weight = torch.zeros_like(student), torch.zeros_like(weight)

    def products() -> None:
        for start in range(0, count, rows):
            chunk = slice(start, min(start + rows, count))
            size = chunk.stop - chunk.start
            torch.mm(student[chunk], weight.t(), out=out[:size])
            torch.mm(teacher[chunk], case.teacher_head.t(), out=other[:size])
            torch.mm(out[:size], weight, out=d_hidden[chunk])
            if case.student_head.requires_grad:
                d_weight.addmm_(out[:size].t(), student[chunk])

    return products


def everyone(chunk: int | None = None) -> Mapping[str, Contender]:
    """Every contender that is installed, by name; `chunk` fixes the rows of those that chunk."""
    found: dict[str, Contender] = {"ours": partial(ours, chunk=chunk), "plain_kl_div": plain}
    if installed("trl"):
        found["trl_liger"] = trl_liger if chunk is None else partial(trl_liger, chunk=chunk)
        found["trl_gkd_dense"] = trl_gkd
        if chunk is None:
            # Its own 256, and 64, with which it computes no position that is not scored.
            found |= {f"trl_chunked_{c}": partial(trl_chunked, chunk=c) for c in (64, TRL_CHUNK)}
        else:
            found["trl_chunked"] = partial(trl_chunked, chunk=chunk)
    return found


def run(contender: Contender, case: Case, beta: float) -> Tensor:
    """Forward and backward; the gradients are new. Returns the loss."""
    case.forget()
    loss = contender(case, beta)
    loss.backward()
    return loss.detach()


Truth = tuple[Tensor, Mapping[str, Tensor]]


def truth(case: Case, beta: float) -> Truth:
    """Loss and gradients by the definition, in float64."""
    exact = case.to(torch.float64)
    return run(dense, exact, beta), exact.gradients()


def errors(contender: Contender, case: Case, beta: float, exact: Truth) -> dict[str, float]:
    """Relative error of the loss, dh and dW (Frobenius norm)."""
    loss = run(contender, case, beta)
    found = {"loss": float((loss.double() - exact[0]).abs() / exact[0].abs())}
    for name, grad in case.gradients().items():
        found[name] = float((grad.double() - exact[1][name]).norm() / exact[1][name].norm())
    return found
