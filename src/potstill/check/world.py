"""A world small enough to enumerate: five ids behind a row's prompt, and all answers of two tokens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.data.batch import collate
from potstill.models.anatomy import HeadForm
from potstill.objectives.terms import Terms
from potstill.objectives.token import TokenLoss
from potstill.teachers.local import LocalTeacher
from potstill.train.scoring import score
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example

IDS, LENGTH = 5, 2


class _Bigram(nn.Module):
    """A model of a few ids by a table of logits [1 + ids, ids]: behind the prompt, and behind each id."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.base_model = _LastId()
        self.head = nn.Linear(IDS + 1, IDS, bias=False, dtype=torch.float64)
        self.head.weight.data.copy_(table.double().t())

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


class _LastId(nn.Module):
    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(input_ids, IDS + 1).double())


@dataclass(frozen=True)
class World:
    """Tables of logits [6, 5] of student and teacher; the last row stands for the prompt."""

    student: Tensor
    teacher: Tensor

    def probabilities(self, share: float) -> Tensor:
        """Of each answer [25], as text that the teacher draws with this share writes it."""
        rows = share * self.teacher.softmax(-1) + (1 - share) * self.student.softmax(-1)
        return (rows[IDS].unsqueeze(1) * rows[:IDS]).flatten()

    def expected(self, terms: Terms, share: float) -> Tensor:
        """The expected gradient [6, 5] of a step's terms, by its own code."""
        module = StudentModule(_Bigram(self.student), IDS, form=HeadForm())
        teacher = LocalTeacher(_Bigram(self.teacher), vocabulary=IDS, fingerprint="world", form=HeadForm())
        answers = itertools.product(range(IDS), repeat=LENGTH)
        rows = [
            Example(str(n), (IDS, *ids), (False, *[True] * LENGTH), "student")
            for n, ids in enumerate(answers)
        ]
        scored = score(module, teacher, rows, pad_id=0, micro_batch_tokens=10**6)
        batch = collate(scored, pad_id=0)
        student_lp, teacher_lp = (  # a batch keeps 32 bits of what was scored
            torch.tensor([lp for row in scored for lp in getattr(row, side)], dtype=torch.float64)
            for side in ("student_lp", "teacher_lp")
        )
        weights = self.probabilities(share).repeat_interleave(LENGTH)
        batch = replace(batch, weights=weights, student_lp=student_lp, teacher_lp=teacher_lp)
        result = accumulate(module, teacher, [batch], terms)
        (table,) = module.parameters()
        if result is None or table.grad is None:
            return torch.zeros_like(self.student)
        return table.grad.t() * result.weight

    def whole_answers(self) -> Tensor:
        """The gradient of KL(student ‖ teacher) of whole answers."""
        leaf = self.student.clone().requires_grad_()
        q, p = leaf.log_softmax(-1), self.teacher.log_softmax(-1)
        q, p = (lp[IDS].unsqueeze(1) + lp[:IDS] for lp in (q, p))
        (q.exp() * (q - p)).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    def token_level(self, loss: TokenLoss, share: float) -> Tensor:
        """The gradient of a divergence at each token with the text held still, by autograd through its value."""
        first = share * self.teacher.softmax(-1)[IDS] + (1 - share) * self.student.softmax(-1)[IDS]
        weights = torch.cat([first, torch.ones(1, dtype=torch.float64)])  # of each context
        leaf = self.student.clone().requires_grad_()
        q, p = ((table / loss.temperature).log_softmax(-1) for table in (leaf, self.teacher))
        if loss.weigh is not None:
            places = (torch.arange(IDS + 1) < IDS).long()
            weights = weights * loss.weigh(q.detach(), p, places)
        values = loss.divergence.value(q, p, tail=False)
        (loss.scale * (1 - loss.ce_weight) * (weights * values).sum()).backward()
        assert leaf.grad is not None
        return leaf.grad


def world_of(
    student: nn.Module, teacher: nn.Module, prompt: Tensor, vocabulary: int, theirs: Tensor | None = None
) -> World:
    """Both models' logits behind a prompt [1, S], and behind each of the ids that they find likeliest there.

    Args:
        theirs: the prompt [1, S'] as the teacher reads it, where that is another one.
    """
    pairs = ((student, prompt), (teacher, prompt if theirs is None else theirs))
    with torch.no_grad():
        first = [model(read).logits[0, -1, :vocabulary].double() for model, read in pairs]
        ids = torch.stack(first).softmax(-1).sum(0).topk(IDS).indices
        later = [
            model(torch.cat([read.expand(IDS, -1), ids.unsqueeze(1)], 1)).logits[:, -1, ids].double()
            for model, read in pairs
        ]
    tables = (
        torch.cat([after, begin[ids].unsqueeze(0)]).cpu() for begin, after in zip(first, later, strict=True)
    )
    return World(*tables)
