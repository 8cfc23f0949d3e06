"""Held-out figures against the plain dense formula, with padded heads and any batching."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from builders.tiny import tiny_model
from potstill.divergences import forward_kl, reverse_kl
from potstill.evaluate import agreement, likelihood, scores
from potstill.evaluate.subject import Subject
from potstill.objectives.token import Divergence
from potstill.signals.topk import TopK
from potstill.teachers.local import LocalTeacher
from potstill.types import Example

KLS = "forward_kl", "reverse_kl"


def rows() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    return [
        Example(
            f"r{n}",
            tuple(torch.randint(4, 128, (n,), generator=generator).tolist()),
            tuple(i >= n // 2 for i in range(n)),
        )
        for n in (5, 9, 14, 6)
    ]


def measure(student, teacher, examples=None, **changes):
    forward, reverse = Divergence.from_module(forward_kl), Divergence.from_module(reverse_kl)
    base = {"vocabulary": 128, "pad_id": 0, "forward_kl": forward, "reverse_kl": reverse}
    other = LocalTeacher(copy.deepcopy(teacher), vocabulary=128, fingerprint="t")
    return scores.score(student, other, examples or rows(), **(base | changes))


def test_every_figure_equals_the_dense_formula():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1, vocab=160)
    result = measure(student, teacher)
    with torch.no_grad():
        for index, row in enumerate(rows()):
            ids = torch.tensor([row.input_ids])
            q = torch.log_softmax(student(ids).logits[0, :-1, :128].double(), -1)
            p = torch.log_softmax(teacher(ids).logits[0, :-1, :128].double(), -1)
            on = torch.tensor(row.scored[1:])
            target = ids[0, 1:]
            want = {
                "forward_kl": (p.exp() * (p - q)).sum(-1),
                "reverse_kl": (q.exp() * (q - p)).sum(-1),
                "cross_entropy": -q.gather(1, target[:, None])[:, 0],
                "teacher_cross_entropy": -p.gather(1, target[:, None])[:, 0],
                "agreement": (q.argmax(-1) == p.argmax(-1)).double(),
                "agreement_top5": (q.topk(5).indices == p.argmax(-1, keepdim=True)).any(-1).double(),
            }
            assert result.tokens[index] == row.count
            for name, values in want.items():
                assert result.sums[name][index] == pytest.approx(float(values[on].sum()), abs=1e-4), name


@pytest.mark.parametrize("changes", [{"batch_tokens": 10}, {"batch_tokens": 10_000}, {"chunk_bytes": 1}])
def test_batching_and_chunks_change_nothing(changes):
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    one, other = measure(student, teacher), measure(student, teacher, **changes)
    for name in scores.NAMES:
        assert one.sums[name] == pytest.approx(other.sums[name], abs=1e-4)


def test_turns_of_one_conversation_are_one_prompt_of_the_interval():
    """Drawn one by one they would pass for independent prompts, and the interval would be too narrow."""
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    first, *rest = rows()
    turns = [first, *(replace(turn, id=f"talk#{n}", part_of="talk") for n, turn in enumerate(rest, 1))]
    apart, together = measure(student, teacher), measure(student, teacher, turns, batch_tokens=20)
    assert together.row_ids == (first.id, "talk")
    assert together.tokens == (first.count, sum(turn.count for turn in rest))
    for name in scores.NAMES:
        want = apart.sums[name]
        assert together.sums[name] == pytest.approx((want[0], sum(want[1:])), abs=1e-4), name
    for metric in (likelihood, agreement):
        assert {figure.n for figure in metric.measure(Subject("after", scores=together))} == {2}


def test_a_model_against_itself_is_perfect_and_stays_in_its_mode():
    model = tiny_model(seed=0).train()
    result = measure(model, model)
    subject = Subject("after", scores=result)
    forward, reverse, perplexity = likelihood.measure(subject)
    assert (forward.value, reverse.value) == pytest.approx((0, 0), abs=1e-6)
    assert [figure.value for figure in agreement.measure(subject)] == [1, 1]
    assert perplexity.value == likelihood.measure(Subject("teacher", scores=result.of_teacher()))[-1].value
    assert model.training


class Likeliest:
    """A teacher that states its k likeliest ids alone."""

    provides = frozenset({"topk"})

    def __init__(self, model, k, vocabulary=128):
        self.whole, self.k = LocalTeacher(copy.deepcopy(model), vocabulary=vocabulary, fingerprint="t"), k
        self.vocabulary = vocabulary

    def signal(self, batch):
        logits = _logits(self.whole, batch, self.vocabulary)
        lp, ids = torch.log_softmax(logits.double(), -1).topk(self.k, -1)
        return TopK(ids, lp.float(), vocabulary=self.vocabulary)


def _logits(teacher, batch, vocabulary):
    """Its logits [N, vocabulary] at the scored positions."""
    like = torch.zeros(batch.count, vocabulary)
    chunk = teacher.signal(batch).chunks(Divergence.from_module(forward_kl), "bucket")(
        slice(0, batch.count), like
    )
    return chunk.logits[:, :vocabulary]


@pytest.mark.parametrize("k", [1, 4, 128])
def test_of_stated_ids_both_kls_are_those_of_the_coarser_distributions_and_never_above_the_whole_ones(k):
    student, model = tiny_model(seed=0), tiny_model(seed=1)
    forward, reverse = Divergence.from_module(forward_kl), Divergence.from_module(reverse_kl)
    coarse = scores.score(
        student, Likeliest(model, k), rows(), vocabulary=128, pad_id=0, forward_kl=forward, reverse_kl=reverse
    )
    whole = measure(student, model)
    assert set(coarse.sums) == set(scores.COARSE)
    assert coarse.sums["cross_entropy"] == pytest.approx(whole.sums["cross_entropy"], abs=1e-4)
    for index, row in enumerate(rows()):
        with torch.no_grad():
            ids = torch.tensor([row.input_ids])
            q = torch.softmax(student(ids).logits[0, :-1, :128].double(), -1)
            p = torch.softmax(model(ids).logits[0, :-1, :128].double(), -1)
        on = torch.tensor(row.scored[1:])
        stated = p.topk(k, -1).indices
        inside_p, inside_q = p.gather(1, stated), q.gather(1, stated)
        parts_p, parts_q = inside_p, inside_q
        if k < 128:
            parts_p = torch.cat([inside_p, 1 - inside_p.sum(-1, keepdim=True)], -1)
            parts_q = torch.cat([inside_q, 1 - inside_q.sum(-1, keepdim=True)], -1)
        want = {
            "forward_kl_bucket": (parts_p * (parts_p / parts_q).log()).sum(-1),
            "reverse_kl_bucket": (parts_q * (parts_q / parts_p).log()).sum(-1),
            "stated_mass": inside_p.sum(-1),
        }
        for name, values in want.items():
            assert coarse.sums[name][index] == pytest.approx(float(values[on].sum()), abs=1e-3), name
        for direction in ("forward_kl", "reverse_kl"):
            assert coarse.sums[f"{direction}_bucket"][index] <= whole.sums[direction][index] + 1e-3


def test_bounds_are_figures_of_a_teacher_that_states_few_ids_and_of_no_other():
    student, model = tiny_model(seed=0), tiny_model(seed=1)
    forward, reverse = Divergence.from_module(forward_kl), Divergence.from_module(reverse_kl)
    coarse = scores.score(
        student, Likeliest(model, 4), rows(), vocabulary=128, pad_id=0, forward_kl=forward, reverse_kl=reverse
    )
    bounds = {figure.key for figure in likelihood.COARSE}
    for measured, given in ((coarse, True), (measure(student, model), False)):
        subject = Subject("after", rows(), scores=measured, foreign="" if not given else "why")
        figures = {figure.key: figure for figure in likelihood.measure(subject)}
        assert bool(bounds & set(figures)) == given
        assert (figures["forward_kl"].value is None) == given


def test_a_token_of_which_only_foreign_ids_are_stated_counts_as_0_in_both_bounds_and_is_counted():
    """A student of 128 ids beside a teacher of 160 that states its two likeliest: at some tokens both are its own."""
    student, model = tiny_model(seed=0), tiny_model(seed=1, vocab=160)
    teacher = Likeliest(model, 2, 160)
    kls = {name: Divergence.from_module(one) for name, one in zip(KLS, (forward_kl, reverse_kl), strict=True)}
    measured = scores.score(student, teacher, rows(), vocabulary=128, own_ids=128, pad_id=0, **kls)
    wanted = {name: [] for name in measured.sums}
    for row in rows():
        with torch.no_grad():
            ids = torch.tensor([row.input_ids])
            q = torch.softmax(student(ids).logits[0, :-1].double(), -1)
            p = torch.softmax(model(ids).logits[0, :-1].double(), -1)
        sums = dict.fromkeys(wanted, 0.0)
        for at in [place for place, on in enumerate(row.scored[1:]) if on]:
            stated = p[at].topk(2).indices
            shared = stated[stated < 128]
            inside_p = p[at, shared] / (1 - p[at, stated[stated >= 128]].sum())
            coarse_p = torch.cat([inside_p, 1 - inside_p.sum(0, keepdim=True)])
            coarse_q = torch.cat([q[at, shared], 1 - q[at, shared].sum(0, keepdim=True)])
            sums["cross_entropy"] -= float(q[at, row.input_ids[at + 1]].log())
            sums["forward_kl_bucket"] += float((coarse_p * (coarse_p / coarse_q).log()).sum())
            sums["reverse_kl_bucket"] += float((coarse_q * (coarse_q / coarse_p).log()).sum())
            sums["stated_mass"] += float(inside_p.sum())
            sums["unstated"] += not len(shared)
        for name, value in sums.items():
            wanted[name].append(value)
    assert sum(wanted["unstated"]) > 0
    for name, values in wanted.items():
        assert measured.sums[name] == pytest.approx(values, abs=1e-4), name
    subject = Subject("after", rows(), scores=measured, foreign="why")
    figures = {figure.key: figure for figure in likelihood.measure(subject)}
    tokens = sum(measured.tokens)
    assert figures["unstated"].value == pytest.approx(sum(wanted["unstated"]) / tokens)
    assert figures["stated_mass"].value == pytest.approx(sum(wanted["stated_mass"]) / tokens, abs=1e-4)
