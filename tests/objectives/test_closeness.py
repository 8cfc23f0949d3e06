"""What a step says of teacher and student on the student's own tokens, against plain formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.divergences._divergence import Divergence
from potstill.models import anatomy
from potstill.objectives.closeness import SUMS, Closeness, figures
from potstill.objectives.terms import StudentView
from potstill.recipe import plugins
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.text import Text
from potstill.signals.topk import TopK
from potstill.types import Example, Head

V, H = 40, 8
TERM = Closeness(Divergence.from_module(plugins.load("divergences", "forward_kl")))


def example(name: str, prompt: int, answer: int, origin: str = "student") -> Example:
    ids = tuple(4 + (i * 7) % 30 for i in range(prompt + answer))
    return Example(name, ids, (False,) * prompt + (True,) * answer, origin)  # type: ignore[arg-type]


ROWS = [example("a", 3, 10), example("b", 2, 7, "data"), example("c", 4, 5)]


def measure(rows, signal=None, hidden=None, scale=1.0):
    batch = collate(rows, pad_id=0)
    torch.manual_seed(0)
    hidden = torch.randn(batch.count, H) if hidden is None else hidden
    head = Head(torch.randn(V, H) * scale, V)
    teacher = Dense(torch.randn(batch.count, V)) if signal is None else signal
    view = StudentView(hidden, head, batch, 2**12)
    return TERM(view, teacher), hidden @ head.weight.T, teacher


def places(rows):
    """(row of the batch, place, length) of each scored token."""
    out = []
    for row in rows:
        out += [(row, place, row.count) for place in range(row.count)]
    return out


def test_the_sums_are_those_of_every_fourth_token_that_the_student_wrote():
    loss, logits, teacher = measure(ROWS)
    q, p = logits.log_softmax(-1).double(), teacher.logits.log_softmax(-1).double()
    spots = [
        (i, place, n)
        for i, (row, place, n) in enumerate(places(ROWS))
        if row.origin == "student" and place % 4 == 0
    ]
    rows = [i for i, _, _ in spots]
    kl = (q.exp() * (q - p)).sum(-1)
    assert float(loss.sum) == 0.0
    assert int(loss.metrics["own_positions"]) == len(rows) == 5
    torch.testing.assert_close(
        loss.metrics["own_student_entropy"], -(q.exp() * q).sum(-1)[rows].sum(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        loss.metrics["own_teacher_entropy"], -(p.exp() * p).sum(-1)[rows].sum(), rtol=1e-5, atol=0
    )
    late = [i for i, place, n in spots if 2 * place >= n]
    early = [i for i, place, n in spots if 2 * place < n]
    assert int(loss.metrics["own_late"]) == len(late)
    torch.testing.assert_close(loss.metrics["own_late_kl"], kl[late].sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.metrics["own_early_kl"], kl[early].sum(), rtol=1e-5, atol=0)


def test_the_overlap_counts_the_teachers_likeliest_ids_among_the_students():
    loss, logits, teacher = measure([ROWS[0]])
    shares = [
        len(set(logits[i].topk(16).indices.tolist()) & set(teacher.logits[i].topk(16).indices.tolist())) / 16
        for i in (0, 4, 8)
    ]
    assert float(loss.metrics["own_overlap"]) == pytest.approx(sum(shares))


def test_a_student_that_equals_its_teacher_shares_everything_and_is_at_zero():
    batch = collate(ROWS, pad_id=0)
    torch.manual_seed(0)
    hidden, head = torch.randn(batch.count, H), Head(torch.randn(V, H), V)
    values = figures(
        {
            k: float(v)
            for k, v in TERM(StudentView(hidden, head, batch, 2**20), Hidden(hidden, head)).metrics.items()
        }
    )
    assert values["overlap"] == 1.0
    assert values["entropy_ratio"] == pytest.approx(1.0)
    assert values["early_kl"] == pytest.approx(0.0, abs=1e-6)
    assert values["late_kl"] == pytest.approx(0.0, abs=1e-6)


def test_stored_ids_are_compared_as_the_dense_teacher_is():
    dense, _, teacher = measure(ROWS)
    lp = teacher.logits.log_softmax(-1)
    top = lp.topk(V)
    stored, _, _ = measure(ROWS, TopK(top.indices, top.values))
    assert float(stored.metrics["own_overlap"]) == pytest.approx(float(dense.metrics["own_overlap"]))
    top = lp.topk(20)
    cut, _, _ = measure(ROWS, TopK(top.indices, top.values))
    assert float(cut.metrics["own_overlap"]) == pytest.approx(float(dense.metrics["own_overlap"]))


@pytest.mark.parametrize("split", [[[0], [1], [2]], [[2, 0], [1]]])
def test_the_sums_do_not_depend_on_how_rows_are_cut_into_batches(split):
    model = tiny_model()
    head = anatomy.head_of(model, 128, anatomy.head_form(model))

    def sums(rows):
        batch = collate(rows, pad_id=0)
        states = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        hidden = states[batch.predicts]
        loss = TERM(StudentView(hidden, head, batch, 2**20), Hidden(hidden * 0.5, head))
        return torch.stack([loss.metrics[name].double() for name in SUMS])

    torch.testing.assert_close(
        sum(sums([ROWS[i] for i in part]) for part in split), sums(ROWS), rtol=1e-5, atol=1e-6
    )


def test_packed_rows_measure_the_same_tokens():
    padded, packed = (collate(ROWS, pad_id=0, packed=packed) for packed in (False, True))
    torch.manual_seed(0)
    hidden, head = torch.randn(padded.count, H), Head(torch.randn(V, H), V)
    one, other = (
        TERM(StudentView(hidden, head, batch, 2**20), Hidden(hidden * 0.5, head)).metrics
        for batch in (padded, packed)
    )
    assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in other.items()})


@pytest.mark.parametrize("rows", [[ROWS[1]], [ROWS[0].silent()]])
def test_a_batch_without_the_students_tokens_has_zeros_and_no_figures(rows):
    loss, _, _ = measure(rows)
    assert {name: float(value) for name, value in loss.metrics.items()} == dict.fromkeys(SUMS, 0.0)
    assert figures({name: float(value) for name, value in loss.metrics.items()}) == {}


def test_a_teacher_of_text_alone_measures_nothing():
    loss, _, _ = measure(ROWS, Text())
    assert float(loss.metrics["own_positions"]) == 0.0


def test_an_id_that_the_teacher_forbids_leaves_the_figures_finite():
    batch = collate(ROWS, pad_id=0)
    logits = torch.randn(batch.count, V)
    logits[:, 5] = -torch.inf
    loss, _, _ = measure(ROWS, Dense(logits))
    assert all(torch.isfinite(value) for value in loss.metrics.values())


def test_nothing_of_it_reaches_a_gradient():
    batch = collate(ROWS, pad_id=0)
    hidden = torch.randn(batch.count, H, requires_grad=True)
    weight = torch.randn(V, H, requires_grad=True)
    loss = TERM(StudentView(hidden, Head(weight, V), batch, 2**20), Dense(torch.randn(batch.count, V)))
    assert not loss.sum.requires_grad
    assert replace(loss).metrics.keys() == set(SUMS)
