"""Terms of an objective from outside the package: with parameters of their own, and beside the token objective."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from builders.jobs import spec_of
from builders.steps import Pad, local_teacher
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.divergences import forward_kl
from potstill.errors import TrainingStopped
from potstill.objectives.token import Divergence, TokenLoss
from potstill.strategies.offline import Offline
from potstill.teachers.fixed import FixedTeacher
from potstill.train import checkpoint
from potstill.train.loop import Hooks, train
from potstill.train.optimizer import make_optimizer
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example, Loss, Reading

TOKENS = TokenLoss(Divergence.from_module(forward_kl))


class Imitation(nn.Module):
    """Mean squared error between projected hidden states and the teacher's; the projector is its own."""

    name, totals, needs = "imitation", ("imitation",), frozenset({"hidden"})

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(32, 32, bias=False)

    def forward(self, student, signal):
        per_token = (self.projector(student.hidden) - signal.hidden).square().mean(-1)
        return Loss(per_token.sum(), torch.tensor(signal.rows), {"imitation": per_token.detach().sum()})

    def check(self, sums, tokens):
        if sums["imitation"] < 0:
            raise TrainingStopped("a squared error is negative.")


def rows(n: int = 6) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 128, (8,), generator=generator).tolist() for _ in range(n)]
    return [Example(f"r{i}", tuple(row), tuple(j >= 3 for j in range(8))) for i, row in enumerate(ids)]


def step(module: StudentModule, terms) -> float:
    module.zero_grad(set_to_none=True)
    result = accumulate(module, local_teacher(), [collate(rows(), pad_id=0)], terms)
    assert result is not None
    return result.loss / result.weight


def test_the_parameters_of_a_term_train_and_never_belong_to_the_student(tmp_path):
    student, term = tiny_model(seed=0), Imitation()
    own = set(student.state_dict())
    module = StudentModule(student, 128, terms=[term])
    assert "terms.0.projector.weight" in dict(module.named_parameters())
    terms = [(1.0, TOKENS), (0.5, term)]
    before, first = term.projector.weight.clone(), step(module, terms)
    events, optimizer = [], make_optimizer(module, settings := spec_of(
        steps=6, learning_rate=1e-2, tokens_per_step=30, micro_batch_tokens=30
    ))  # fmt: skip
    train(
        module, rows(), local_teacher(), Offline(), Pad(), lambda step: terms, settings,
        Hooks(event=events.append), optimizer=optimizer,
    )  # fmt: skip
    assert not torch.equal(term.projector.weight, before)
    assert step(module, terms) < first
    assert {"divergence", "imitation"} <= set(events[-1])
    assert set(student.state_dict()) == own

    checkpoint.save(tmp_path, 6, module, optimizer, {})
    trained = term.projector.weight.clone()
    with torch.no_grad():
        term.projector.weight.zero_()
    checkpoint.restore(checkpoint.newest(tmp_path), module, optimizer)
    assert torch.equal(term.projector.weight, trained)


def test_terms_add_up_by_their_weights_over_one_denominator():
    module = StudentModule(tiny_model(seed=0), 128, terms=[term := Imitation()])
    tokens, imitation = step(module, TOKENS), step(module, term)
    assert step(module, [(1.0, TOKENS)]) == tokens
    assert step(module, [(0.25, TOKENS), (3.0, term)]) == pytest.approx(
        0.25 * tokens + 3.0 * imitation, rel=1e-6
    )


def test_a_term_whose_parameters_would_not_train_is_refused():
    with pytest.raises(ValueError, match=r"imitation owns parameters .* StudentModule\(terms=\)"):
        step(StudentModule(tiny_model(seed=0), 128), Imitation())


def test_a_term_that_needs_what_is_not_read_is_refused():
    term = Imitation()
    term.needs = frozenset({"hidden", "attention"})
    with pytest.raises(ValueError, match="imitation needs 'attention'"):
        step(StudentModule(tiny_model(seed=0), 128, terms=[term]), term)


def test_two_terms_with_one_metric_are_refused():
    with pytest.raises(ValueError, match="two terms report divergence"):
        step(StudentModule(tiny_model(seed=0), 128), [(1.0, TOKENS), (1.0, TOKENS)])


def test_every_term_checks_the_sums_of_the_step():
    class Negative(Imitation):
        def forward(self, student, signal):
            return Loss(
                student.hidden.sum() * 0, torch.tensor(signal.rows), {"imitation": torch.tensor(-1.0)}
            )

    with pytest.raises(TrainingStopped, match="a squared error is negative"):
        step(StudentModule(tiny_model(seed=0), 128, terms=[term := Negative()]), term)


def test_the_teacher_is_given_its_own_reading():
    plain = rows(2)
    read = [replace(e, reading=Reading((*(i + 1 for i in e.input_ids[:-1]), 7), e.scored)) for e in plain]
    module, given = StudentModule(tiny_model(seed=0), 128), []

    def logits(batch):
        given.append(batch)
        return torch.zeros(batch.count, 128)

    batch = collate(read, pad_id=0)
    result = accumulate(module, FixedTeacher(logits), [batch], TOKENS)
    assert torch.equal(given[0].input_ids, batch.teacher.input_ids)
    module.zero_grad(set_to_none=True)
    alone = accumulate(module, FixedTeacher(logits), [collate(plain, pad_id=0)], TOKENS)
    assert result == alone
