"""An enumerable world: 5 ids, answers of at most 4 tokens, a bigram student and teacher in float64.

Expectations are sums over every answer, weighted by its probability, through the product's own step:
`expected_gradient` weighs each answer's tokens by it. So an estimator is unbiased to rounding, or it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.data.batch import collate
from potstill.models.anatomy import HeadForm
from potstill.objectives.terms import Terms
from potstill.teachers.local import LocalTeacher
from potstill.train.scoring import score
from potstill.train.step import StudentModule, accumulate
from potstill.types import Batch, Example, Loss

VOCABULARY, LENGTH = 5, 4
SCALE = 1.25  # of the teacher's logits
BEGIN, END = 5, 4  # the prompt; in the variant with an end token the last id ends an answer


class LastId(nn.Module):
    """Hidden states that say which id came last: a bigram model's."""

    width = VOCABULARY + 1

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(input_ids, self.width).double())


class WholePrefix(nn.Module):
    """Hidden states that say everything that came before: any distribution over answers has such a table."""

    width = sum(VOCABULARY**n for n in range(LENGTH + 1))

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        number = torch.zeros_like(input_ids)  # the empty prefix is 0, and each id numbers its children
        for place in range(1, input_ids.shape[1]):
            number[:, place] = number[:, place - 1] * VOCABULARY + input_ids[:, place] + 1
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(number, self.width).double())


class Table(nn.Module):
    """A model whose logits stand in a table [contexts, 5], one row for each of its hidden states."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.base_model = LastId() if logits.shape[0] == LastId.width else WholePrefix()
        self.head = nn.Linear(logits.shape[0], VOCABULARY, bias=False, dtype=torch.float64)
        self.head.weight.data.copy_(logits.t())

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def table(seed: int, contexts: int, scale: float) -> Tensor:
    """Normal logits [contexts, 5] from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(contexts, VOCABULARY, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Toy:
    """A bigram student and a teacher by their tables; `ends` says whether an id ends answers."""

    student: Tensor
    teacher: Tensor
    ends: bool = False

    @staticmethod
    def of(seed: int = 0, *, ends: bool = False) -> Toy:
        """A student, and a teacher that no bigram model can equal."""
        return Toy(table(2 * seed, LastId.width, 1.0), table(2 * seed + 1, WholePrefix.width, SCALE), ends)

    @property
    def answers(self) -> list[tuple[int, ...]]:
        """Every answer: 625, or 341 with an end token."""
        every = itertools.product(range(VOCABULARY), repeat=LENGTH)
        if not self.ends:
            return list(every)
        return list(dict.fromkeys(y[: y.index(END) + 1] if END in y else y for y in every))

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """log of each answer's probability [answers] under a table; differentiable."""
        return self._answers(logits.log_softmax(-1)[self._contexts(logits)])

    def _contexts(self, logits: Tensor) -> Tensor:
        """The row of a table that each position of each answer reads, [answers, 4]."""
        hidden = Table(logits.detach()).base_model(self._ids()[:, :-1]).last_hidden_state
        return hidden.argmax(-1)

    def _ids(self) -> Tensor:
        """Prompt and answers [answers, 5], with 0 behind an end."""
        return torch.tensor([(BEGIN, *y, *[0] * (LENGTH - len(y))) for y in self.answers])

    def _answers(self, lp: Tensor) -> Tensor:
        """Sum log-probabilities [answers, 4, 5] of each answer's own ids."""
        lengths = torch.tensor([len(y) for y in self.answers]).unsqueeze(-1)
        own = lp.gather(-1, self._ids()[:, 1:].unsqueeze(-1)).squeeze(-1)
        return torch.where(torch.arange(LENGTH) < lengths, own, 0.0).sum(-1)

    def truth(self, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The gradient by the student's table of a number of both models' log-probabilities of all answers."""
        leaf = self.student.clone().requires_grad_()
        of(self.log_probabilities(leaf), self.log_probabilities(self.teacher)).backward()
        assert leaf.grad is not None
        return leaf.grad

    def reverse_kl(self) -> Tensor:
        """The gradient of KL(student ‖ teacher) of whole answers."""
        return self.truth(lambda q, p: (q.exp() * (q - p)).sum())

    def forward_kl(self) -> Tensor:
        """The gradient of KL(teacher ‖ student) of whole answers."""
        return self.truth(lambda q, p: (p.exp() * (p - q)).sum())

    def module(self) -> StudentModule:
        return StudentModule(Table(self.student), VOCABULARY, form=HeadForm())

    def source(self) -> LocalTeacher:
        return LocalTeacher(Table(self.teacher), vocabulary=VOCABULARY, fingerprint="toy", form=HeadForm())

    def mixture(self, share: float) -> Tensor:
        """Probabilities [answers] of text whose every token p with this share, else q draws."""
        p, q = (logits.softmax(-1)[self._contexts(logits)] for logits in (self.teacher, self.student))
        return self._answers((share * p + (1 - share) * q).log()).exp()

    def rows(self, origin: Any = "student") -> list[Example]:
        """Every answer as a row."""
        return [
            Example(str(i), (BEGIN, *y), (False, *[True] * len(y)), origin)
            for i, y in enumerate(self.answers)
        ]

    def batch(self, probabilities: Tensor, rows: Sequence[Example] | None = None) -> Batch:
        """Every answer, scored by the product, with its probability as the weight of its tokens."""
        scored = score(self.module(), self.source(), rows or self.rows(), pad_id=0, micro_batch_tokens=10**6)
        batch = collate(scored, pad_id=0)
        return replace(  # a batch keeps 32 bits of what was scored
            batch,
            weights=probabilities[batch.owners()],
            student_lp=torch.tensor([lp for r in scored for lp in r.student_lp or ()], dtype=torch.float64),
            teacher_lp=torch.tensor([lp for r in scored for lp in r.teacher_lp or ()], dtype=torch.float64),
        )

    def expected(self, terms: Terms, probabilities: Tensor | None = None) -> Tensor:
        """The expected gradient [6, 5] of a step's summed loss over answers with these probabilities (the student's)."""
        batch = self.batch(self.mixture(0.0) if probabilities is None else probabilities)
        return self.gradient(terms, [batch])

    def gradient(self, terms: Terms, batches: Sequence[Batch]) -> Tensor:
        """The gradient [6, 5] of the summed loss of batches, through one step."""
        module = self.module()
        result = accumulate(module, self.source(), batches, terms)
        assert result is not None
        (weight,) = module.parameters()
        assert weight.grad is not None
        return weight.grad.t() * result.weight

    def noise(self, terms: Terms, batch: Batch, every: int = 1) -> float:
        """The summed variance of a step's gradient on one answer that the student draws; over each `every`-th."""
        probabilities, total = self.mixture(0.0), torch.zeros(())
        mean = self.gradient(terms, [batch])
        for index in range(0, len(probabilities), every):
            total = (
                total
                + probabilities[index] * (self.gradient(terms, [alone(batch, index)]) - mean).square().sum()
            )
        return float(total)


@dataclass(frozen=True)
class Naive:
    """An estimate of the KL as it is written down, back-propagated directly: a term of log q by autograd alone.

    Args:
        estimate: (log q, log p) of tokens or of whole answers -> its value.
        whole: of whole answers, else of each token.
    """

    estimate: Callable[[Tensor, Tensor], Tensor]
    whole: bool = False

    name = "naive"
    needs = frozenset({"hidden"})
    totals = ()

    def __call__(self, student: Any, signal: Any) -> Loss:
        batch = student.batch
        lp = (student.hidden @ student.head.weight.t()).log_softmax(-1)
        q = lp.gather(1, batch.targets.unsqueeze(-1)).squeeze(-1)
        p, weights = batch.teacher_lp, batch.weights
        if self.whole:
            owners = batch.owners()
            nothing = q.new_zeros(len(batch.row_ids))
            q, p = nothing.index_add(0, owners, q), nothing.index_add(0, owners, p)
            weights = nothing.index_add(0, owners, weights / batch.example_counts())
        return Loss((weights * self.estimate(q, p)).sum(), torch.tensor(batch.count))

    def check(self, sums: Any, tokens: int) -> None:
        """Nothing is refused."""


def alone(batch: Batch, index: int) -> Batch:
    """One answer of a batch, with weight 1."""
    one = batch.only(batch.owners() == index)
    rows = ("input_ids", "attention_mask", "position_ids", "predicts")
    cut = {name: getattr(one, name)[index : index + 1] for name in rows}
    ids = {"row_ids": batch.row_ids[index : index + 1], "asked_by": batch.asked_by[index : index + 1]}
    return replace(one, weights=None, **cut, **ids)


def error(got: Tensor, wanted: Tensor) -> float:
    """The distance by the length of what is wanted."""
    return float((got - wanted).norm() / wanted.norm())
