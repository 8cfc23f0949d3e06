"""Terms on the tokens of one origin, and what a step divides them by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from builders.losses import normal, token_loss
from builders.rollouts import batch_of, gradient, row, view
from builders.steps import local_teacher, ragged_rows
from builders.tiny import tiny_model
from potstill.errors import TrainingStopped
from potstill.objectives.by_origin import ByOrigin
from potstill.objectives.terms import prepared
from potstill.signals.dense import Dense
from potstill.signals.sampled import Sampled
from potstill.signals.text import Text
from potstill.signals.topk import TopK
from potstill.token_weights import position
from potstill.token_weights._token_weight import TokenWeight
from potstill.train.step import StudentModule, accumulate
from potstill.types import Loss

OWN = row("own", (1, 2), (3, 4, 5))
DATA = row("data", (1,), (2, 3), origin="data")
LOGITS, TEACHER = normal(5, 7), normal(5, 7, seed=1)
STUDENTS = torch.tensor([True, True, True, False, False])


@pytest.mark.parametrize("of_student", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_a_term_reads_the_tokens_of_one_origin_alone(of_student, packed):
    mine = of_student == STUDENTS
    batch = batch_of(OWN, DATA, packed=packed)
    term = token_loss("jsd", ce_weight=0.3)
    loss, grad = gradient(ByOrigin(term, of_student), batch, LOGITS, TEACHER)
    alone = batch_of(OWN if of_student else DATA)
    wanted, by_logits = gradient(term, alone, LOGITS[mine], TEACHER[mine])
    assert float(loss.sum) == pytest.approx(float(wanted.sum))
    torch.testing.assert_close(grad[mine], by_logits)
    assert float(grad[~mine].abs().max()) == 0


def test_cross_entropy_never_reads_the_students_own_tokens():
    """Field case 17: half of the loss is a hard-label term, and the student equals its teacher."""
    term = token_loss("forward_kl", ce_weight=0.5)
    loss, grad = gradient(term, batch_of(OWN), LOGITS[:3], LOGITS[:3])
    assert float(loss.sum) == pytest.approx(0.0, abs=1e-12)
    assert float(grad.abs().max()) < 1e-12
    supervised = ByOrigin(term, of_student=False)
    loss, grad = gradient(supervised, batch_of(OWN), LOGITS[:3], LOGITS[:3])
    assert (float(loss.sum), float(grad.abs().max())) == (0.0, 0.0)


def test_an_own_mean_divides_by_the_weight_of_the_tokens_that_are_read():
    weighted = replace(DATA, weight=3.0)
    batches = [batch_of(OWN, weighted), batch_of(replace(OWN, id="more"))]
    ((_, term),) = prepared(ByOrigin(token_loss(), False, own_mean=True), batches)
    assert term.factor == pytest.approx((6 + 3 + 3) / 6)
    assert term.spread == pytest.approx(8 / 2)
    ((_, other),) = prepared(ByOrigin(token_loss(), False), batches)
    assert other.factor == 1.0
    ((_, nothing),) = prepared(ByOrigin(token_loss(), False, own_mean=True), [batch_of(OWN)])
    assert (nothing.factor, nothing.spread) == (0.0, 0.0)


def test_a_step_divides_by_the_tokens_really_generated():
    """One row ended early, one is empty: three tokens in all."""
    rows = [row("short", (1, 5), (6, 2)), row("empty", (1, 7), ()), row("one", (1, 8), (2,))]
    module = StudentModule(tiny_model(seed=0), 128)
    terms = [(1.0, ByOrigin(token_loss("reverse_kl"), True))]
    result = accumulate(module, local_teacher(), [batch_of(*rows)], terms)
    assert (result.tokens, result.weight) == (3, 3.0)
    module.zero_grad(set_to_none=True)
    plain = accumulate(module, local_teacher(), [batch_of(*rows)], token_loss("reverse_kl"))
    assert result.loss == pytest.approx(plain.loss)


def test_metrics_are_means_over_the_tokens_that_are_read():
    own = [replace(one, origin="student") for one in ragged_rows(4)]
    data = [replace(one, id=f"d{one.id}") for one in ragged_rows(3)]
    module = StudentModule(tiny_model(seed=0), 128)
    terms = [
        (1.0, ByOrigin(token_loss("reverse_kl"), True)),
        (0.5, ByOrigin(token_loss("forward_kl"), False, "supervised_")),
    ]
    batches = [batch_of(*own, *data)]
    means = accumulate(module, local_teacher(), batches, terms).means()
    for name, rows, loss in (
        ("divergence", own, "reverse_kl"),
        ("supervised_divergence", data, "forward_kl"),
    ):
        module.zero_grad(set_to_none=True)
        alone = accumulate(module, local_teacher(), [batch_of(*rows)], token_loss(loss)).means()
        assert means[name] == pytest.approx(alone["divergence"], rel=1e-5)


def test_a_step_without_such_tokens_reports_no_figure_of_theirs():
    module = StudentModule(tiny_model(seed=0), 128)
    terms = [(1.0, ByOrigin(token_loss(), True)), (1.0, ByOrigin(token_loss(), False, "supervised_"))]
    result = accumulate(module, local_teacher(), [batch_of(*ragged_rows(2))], terms)
    assert set(result.metrics) == {"supervised_divergence"}


@pytest.mark.parametrize("importance", ["per_token", "cumulative"])
def test_the_text_of_a_mixture_is_weighed_and_other_text_is_not(importance):
    lps = {"student": (-1.0, -2.0, -0.5), "teacher": (-2.0, -1.0, -0.5)}
    written = row("own", (1, 2), (3, 4, 5), **lps)
    term = ByOrigin(token_loss("reverse_kl"), True, importance=importance, teacher_share=0.2)
    loss, _ = gradient(term, batch_of(written, DATA), LOGITS, TEACHER)
    each = token_loss("reverse_kl").divergence.value(LOGITS[:3].log_softmax(-1), TEACHER[:3].log_softmax(-1))
    q, p = (torch.tensor(lps[side]).double().exp() for side in ("student", "teacher"))
    w = q / (0.2 * p + 0.8 * q)
    if importance == "cumulative":
        w = torch.stack([torch.ones(()).double(), w[0], w[0] * w[1]])
    assert float(loss.sum) == pytest.approx(float((w * each).sum()), rel=1e-6)
    nothing, _ = gradient(term, batch_of(DATA), LOGITS[3:], TEACHER[3:])
    assert float(nothing.sum) == 0.0
    with pytest.raises(ValueError, match="were not scored"):
        gradient(term, batch_of(OWN), LOGITS[:3], TEACHER[:3])


def test_a_check_reads_the_terms_own_figures():
    class Wrong:
        name, totals, needs = "wrong", ("divergence",), frozenset({"hidden"})

        def __call__(self, student, signal):
            return Loss(student.hidden.sum(), torch.tensor(1), {"divergence": torch.tensor(-1.0)})

        def check(self, sums, tokens):
            token_loss().check(sums, tokens)

    term = ByOrigin(Wrong(), False, "supervised_")
    with pytest.raises(TrainingStopped, match="no divergence can be"):
        term.check({"divergence": 1.0, "supervised_divergence": -1.0}, 1)
    term.check({"divergence": -1.0, "supervised_divergence": 1.0}, 1)


def test_every_kind_of_signal_is_cut_with_its_tokens():
    keep = torch.tensor([True, False, True])
    top = TopK(torch.tensor([[0], [1], [2]]), torch.zeros(3, 1), {2.0: torch.zeros(3)})
    drawn = Sampled(torch.tensor([[0], [1], [2]]), torch.ones(3, 1), torch.zeros(3))
    assert top.at(keep).ids.tolist() == drawn.at(keep).ids.tolist() == [[0], [2]]
    assert (top.at(keep).lse[2.0].shape, drawn.at(keep).entropy.shape) == ((2,), (2,))
    assert Dense(LOGITS).at(STUDENTS).rows == 3
    assert Text().at(keep).rows == 0


def test_places_in_answers_are_those_of_the_whole_row():
    batch = batch_of(OWN, DATA)
    term = token_loss(weigh=TokenWeight.from_module(position))
    whole = term(view(batch, LOGITS), Dense(TEACHER)).sum
    parts = [ByOrigin(term, side)(view(batch, LOGITS), Dense(TEACHER)).sum for side in (True, False)]
    assert float(whole) == pytest.approx(float(sum(parts)))
