"""Each kind of signal as bytes and back: what is exact is exact, what is rounded keeps to its bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.losses import divergence
from potstill import divergences
from potstill.cache import bits, codecs
from potstill.cache.blocks import pack_fields, unpack_fields
from potstill.cache.codecs import Context, Entry
from potstill.cache.vectors import name_of, vectors_of
from potstill.errors import SignalError
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.given import Given
from potstill.signals.hidden import Hidden
from potstill.signals.sampled import Sampled
from potstill.signals.topk import TopK
from potstill.types import Head

QUICK = settings(max_examples=25, deadline=None)


def draw_logits(rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def stored(kind: str, signals, setting, vocabulary: int, head: Head | None = None):
    """Examples through bytes and back, joined."""
    codec = codecs.codec(kind)
    setting = codec.check(setting)
    entries = []
    for number, signal in enumerate(signals):
        payload = pack_fields(codec.encode(signal, setting, key(number), vocabulary), codec.FIELDS)
        entries.append(Entry(signal.rows, unpack_fields(payload, codec.FIELDS)))
    return codec.decode(entries, setting, Context(vocabulary, head))


# ── bits ──────────────────────────────────────────────────────────────────────────────────────────


@QUICK
@given(st.data())
@pytest.mark.parametrize("vocabulary", [2, 97, 2**17, 2**18, 151_936, 2**20])
def test_sets_of_ids_come_back_for_every_vocabulary(vocabulary, data):
    """65535, 70000 and 151643 among them: no id wraps, whatever the width."""
    edges = [i for i in (0, 65535, 65536, 70_000, 151_643, vocabulary - 1) if i < vocabulary]
    ids = st.one_of(st.sampled_from(edges), st.integers(0, vocabulary - 1))
    entries = data.draw(st.lists(st.lists(st.sets(ids, max_size=40), max_size=5), min_size=1, max_size=4))
    coded, flat, counts = [], [], []
    for entry in entries:
        part = np.array([i for one in entry for i in sorted(one)], np.int64)
        sizes = np.array([len(one) for one in entry], np.int64)
        coded.append(bits.encode_sets(part, sizes, vocabulary))
        flat.append(part)
        counts.append(sizes)
    back = bits.decode_sets(
        [unary for unary, _ in coded],
        [plain for _, plain in coded],
        np.concatenate(counts),
        np.array([len(entry) for entry in entries]),
    )
    np.testing.assert_array_equal(back, np.concatenate(flat))


@QUICK
@given(st.lists(st.lists(st.integers(1, 300), max_size=20), min_size=1, max_size=4))
def test_runs_come_back(entries):
    coded = [bits.encode_runs(np.array(one, np.int64)) for one in entries]
    back = bits.unary_runs(coded, np.array([len(one) for one in entries]))
    np.testing.assert_array_equal(back, np.array([n for one in entries for n in one], np.int64))


def test_an_id_outside_the_vocabulary_is_refused():
    signal = TopK(torch.tensor([[3, 97]]), torch.tensor([[-0.7, -0.8]]))
    with pytest.raises(SignalError, match="id 97.*97 ids"):
        stored("topk", [signal], {}, 97)


# ── hidden ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [32, 40, 7])
@pytest.mark.parametrize("largest", [8.0, 3.0e5])
def test_hidden_states_keep_to_the_rounding_of_their_format(width, largest):
    """Values beyond fp16's range are scaled and never become infinite."""
    hidden = torch.randn(9, width, generator=torch.Generator().manual_seed(1))
    hidden[0, 0] = largest
    head = Head(torch.randn(11, width), 11)
    back = stored("hidden", [Hidden(hidden[:4], head), Hidden(hidden[4:], head)], {}, 11, head)
    assert back.hidden.dtype == torch.float32
    torch.testing.assert_close(back.hidden[4:], hidden[4:], rtol=2**-11, atol=1e-7)
    torch.testing.assert_close(back.hidden[:4], hidden[:4], rtol=2**-11, atol=largest * 1e-7)
    eight = stored("hidden", [Hidden(hidden, head)], {"format": "int8"}, 11, head).hidden
    groups = hidden[1:].split(32, -1)
    for group, coded in zip(groups, eight[1:].split(32, -1), strict=True):
        span = group.amax(-1) - group.amin(-1)
        slack = 2e-3 * hidden.abs().amax() if largest > 100 else 2e-3 * group.abs().amax()
        assert ((group - coded).abs().amax(-1) <= 0.51 * span / 255 + slack).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_hidden_states_that_are_not_finite_are_refused(value):
    hidden = torch.zeros(3, 4)
    hidden[2, 1] = value
    with pytest.raises(SignalError, match="position 2 is not finite"):
        stored("hidden", [Hidden(hidden, Head(torch.zeros(5, 4), 5))], {}, 5)


# ── topk ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [6, 7, 8, 16])
def test_topk_keeps_ids_masses_and_the_bound_of_its_bits(width):
    logits = draw_logits(40, 500)
    lp = logits.double().log_softmax(-1)
    setting = {"threshold": 2e-3, "most": 60, "bits": width, "temperatures": (2.0,)}
    packed = stored("topk", [Dense(logits[:15]), Dense(logits[15:])], setting, 500)
    back = packed.whole().checked()
    used = back.ids >= 0
    assert used.sum(-1).max() <= 60
    exact = lp.gather(1, back.ids.clamp(min=0))
    assert (exact[used] > np.log(2e-3) - 1e-6).all() or used.sum(-1).min() == 1
    step = 6.3 / (2**width - 1)
    assert (back.lp.double() - exact)[used].abs().max() <= 1.1 * step
    inside = torch.where(used, exact, -torch.inf).exp().sum(-1)
    torch.testing.assert_close(back.lp.double().exp().sum(-1), inside, rtol=0, atol=2e-4)
    at_two = (logits.double() / 2).log_softmax(-1)
    share = torch.where(used, at_two.gather(1, back.ids.clamp(min=0)), -torch.inf).exp().sum(-1)
    read = torch.where(used, back.lp.double() / 2 - back.lse[2.0].double()[:, None], -torch.inf).exp().sum(-1)
    torch.testing.assert_close(read, share, rtol=0, atol=2e-4)


def test_topk_rows_that_are_stored_already_come_back():
    """As an engine gives them: unused places anywhere, other numbers of ids."""
    signal = TopK(
        torch.tensor([[-1, 9, 4], [7, 2, 0]]), torch.tensor([[0.0, -0.5, -1.5], [-0.2, -2.0, -4.0]])
    )
    back = stored("topk", [signal], {"bits": 32, "most": 3}, 10).whole()
    assert back.ids.tolist() == [[4, 9, -1], [0, 2, 7]]
    torch.testing.assert_close(back.lp, torch.tensor([[-1.5, -0.5, -torch.inf], [-4.0, -2.0, -0.2]]))


@pytest.mark.parametrize("name", [n for n in divergences.names() if "topk" in divergence(n).supports])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_full_support_gives_the_live_loss_to_1e_5(name, temperature):
    """Cached top-V equals the online loss over the whole vocabulary; one row late fails loudly."""
    teacher, student = draw_logits(12, 40, 1), draw_logits(12, 40, 2)
    setting = {"threshold": 0.0, "most": 40, "bits": 32, "temperatures": (2.0,)}
    packed = stored("topk", [Dense(teacher[:5]), Dense(teacher[5:])], setting, 40)
    loss = TokenLoss(divergence(name), temperature=temperature)
    live = logits_loss(student, loss.rowwise(Dense(teacher))).mean.item()
    cached = logits_loss(student, loss.rowwise(packed)).mean.item()
    assert cached == pytest.approx(live, rel=1e-5, abs=1e-5)
    late = stored("topk", [Dense(teacher.roll(1, 0))], setting, 40)
    assert abs(logits_loss(student, loss.rowwise(late)).mean.item() - live) > 1e-3


@pytest.mark.parametrize("name", [n for n in divergences.names() if "dense" in divergence(n).supports])
def test_hidden_states_in_fp16_give_the_live_loss_to_1e_4(name):
    generator = torch.Generator().manual_seed(3)
    head = Head(torch.randn(60, 32, generator=generator) / 4, 57)
    hidden, student = torch.randn(20, 32, generator=generator), draw_logits(20, 57, 5, scale=1.0)
    loss = TokenLoss(divergence(name))
    live = logits_loss(student, loss.rowwise(Hidden(hidden, head))).mean.item()
    cached = logits_loss(
        student, loss.rowwise(stored("hidden", [Hidden(hidden, head)], {}, 57, head))
    ).mean.item()
    assert cached == pytest.approx(live, rel=1e-4, abs=1e-4)


def test_chunks_of_any_size_see_the_same_rows():
    """Bytes are read a chunk at a time: cuts inside, at and across examples change nothing."""
    teacher, student = draw_logits(23, 50, 1), draw_logits(23, 50, 2)
    parts = [Dense(part) for part in teacher.split([4, 1, 7, 11])]
    packed = stored("topk", parts, {"threshold": 0.01, "most": 10}, 50)
    whole = packed.whole()
    for size in (1, 3, 4, 12, 23):
        chunks = packed.chunks(divergence("forward_kl"), "bucket")
        for start in range(0, 23, size):
            rows = slice(start, min(start + size, 23))
            beside = chunks(rows, student[rows]).beside(student[rows], slice(0, rows.stop - start), 1.0)
            wanted = whole.at(rows).beside(student[rows], slice(0, rows.stop - start), 1.0)
            kept = wanted.ids >= 0
            torch.testing.assert_close(
                beside.ids[kept[:, : beside.ids.shape[1]].nonzero(as_tuple=True)], wanted.ids[kept]
            )
            torch.testing.assert_close(beside.teacher_lp[:, -1], wanted.teacher_lp[:, -1])
    torch.testing.assert_close(packed.at(torch.tensor([3, 20])).lp, whole.at(torch.tensor([3, 20])).lp)


# ── sampled, topk_sampled ─────────────────────────────────────────────────────────────────────────


def pooled_z(weights: Tensor, p: Tensor) -> Tensor:
    """z of the mean weight of each cell over rows [n, V] beside p [V]; cells that expect too little are pooled."""
    order = p.argsort(descending=True)
    weights, p = weights[:, order], p[order]
    rare = p * weights.shape[0] < 5
    if rare.any():
        weights = torch.cat([weights[:, ~rare], weights[:, rare].sum(-1, keepdim=True)], -1)
        p = torch.cat([p[~rare], p[rare].sum()[None]])
    error = weights.std(0) / weights.shape[0] ** 0.5
    return (weights.mean(0) - p) / error.clamp(min=2e-4)


def as_weights(signal: Sampled, vocabulary: int) -> Tensor:
    weights = torch.zeros(signal.rows, vocabulary, dtype=torch.float64)
    values = (signal.counts / signal.counts.sum(-1, keepdim=True)).double()
    return weights.scatter_add_(1, signal.ids.clamp(min=0), torch.where(signal.ids >= 0, values, 0.0))


def test_draws_are_unbiased_and_a_cut_distribution_is_not():
    rows, vocabulary = 4000, 60
    logits = draw_logits(1, vocabulary, 4, scale=1.3)
    p = logits[0].double().softmax(-1)
    same = [Dense(logits.expand(rows // 10, -1)) for _ in range(10)]
    drawn = stored("sampled", same, {"draws": 12}, vocabulary).whole()
    hybrid = stored("topk_sampled", same, {"threshold": 0.05, "most": 8, "draws": 12}, vocabulary).whole()
    for signal in (drawn, hybrid):
        assert pooled_z(as_weights(signal, vocabulary), p).abs().max() < 4
        torch.testing.assert_close(signal.entropy[0].double(), -(p * p.log()).sum(), rtol=0, atol=1e-4)
    cut = stored("topk", same, {"threshold": 0.0, "most": 8}, vocabulary).whole()
    naive = Sampled(cut.ids, cut.lp.exp())
    assert pooled_z(as_weights(naive, vocabulary), p).abs().max() > 100


@pytest.mark.parametrize("kind", ["sampled", "topk_sampled"])
def test_the_mean_gradient_of_drawn_targets_is_that_of_the_teacher(kind):
    """A student equal to its teacher: the mean gradient is 0 within 4 standard errors."""
    rows, vocabulary = 3000, 30
    logits = draw_logits(1, vocabulary, 8, scale=1.5).expand(rows, -1).contiguous()
    packed = stored(kind, [Dense(logits)], {"draws": 8}, vocabulary)
    student = logits.clone().requires_grad_()
    out = logits_loss(student, TokenLoss(divergence("forward_kl")).rowwise(packed))
    (gradient,) = torch.autograd.grad(out.sum, student)
    error = gradient.std(0) / rows**0.5
    assert ((gradient.mean(0).abs() - 1e-5) / error.clamp(min=1e-6)).max() < 4
    assert abs(out.mean.item()) < 0.05


def test_draws_depend_on_the_example_alone():
    """Whatever stands beside an example, and wherever it is cut into pieces, its targets are the same."""
    logits = draw_logits(9, 70, 3)
    alone = stored("sampled", [Dense(logits)], {"draws": 20}, 70).whole()
    beside = stored("sampled", [Dense(logits), Dense(draw_logits(5, 70, 6))], {"draws": 20}, 70).whole()
    assert torch.equal(as_weights(beside, 70)[:9], as_weights(alone, 70))


def test_systematic_draws_vary_less_than_independent_ones():
    logits = draw_logits(1, 40, 2, scale=1.5).expand(3000, -1)
    p = logits[0].double().softmax(-1)
    weights = as_weights(stored("sampled", [Dense(logits)], {"draws": 16}, 40).whole(), 40)
    independent = p * (1 - p) / 16
    assert (weights.var(0) <= 1.15 * independent + 1e-5).all()
    assert weights.var(0).sum() < 0.8 * independent.sum()


def test_drawn_ids_from_elsewhere_come_back():
    signal = Sampled(
        torch.tensor([[5, 2, -1], [0, 1, 9]]),
        torch.tensor([[3.0, 1, 0], [1, 1, 2]]),
        torch.tensor([0.5, 1.0]),
    )
    back = stored("sampled", [signal], {"draws": 4}, 10).whole()
    assert torch.equal(as_weights(back, 10), as_weights(signal, 10))
    torch.testing.assert_close(back.entropy, signal.entropy, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["topk", "sampled", "topk_sampled"])
def test_any_dense_signal_can_be_stored(kind):
    """Such as several teachers, each tempered before they are averaged: it is read as a loss reads it."""

    @dataclass(frozen=True)
    class Warm:
        logits: Tensor
        kind: str = "dense"
        rows: int = 5

        def chunks(self, divergence, tail):
            return Dense(self.logits).chunks(divergence, tail)

    logits = draw_logits(5, 30)
    setting = {"temperature": 2.0} if kind != "topk" else {"temperatures": (2.0,)}
    ours, plain = (stored(kind, [signal], setting, 30).whole() for signal in (Warm(logits), Dense(logits)))
    assert torch.equal(ours.ids, plain.ids)


# ── token ─────────────────────────────────────────────────────────────────────────────────────────


def test_log_probabilities_of_the_given_tokens_come_back():
    logits, targets = draw_logits(9, 30), torch.arange(9)
    signal = Given.of(logits, targets)
    back = stored("token", [signal.at(slice(0, 4)), signal.at(slice(4, 9))], {}, 30)
    torch.testing.assert_close(back.lp, logits.log_softmax(-1)[torch.arange(9), targets])
    with pytest.raises(SignalError, match="no log-probability"):
        stored("token", [Given(torch.tensor([0.2]))], {}, 30)
    with pytest.raises(SignalError, match="policy_gradient"):
        back.chunks(divergence("forward_kl"), "bucket")


@QUICK
@given(st.integers(0, 2**30), st.sampled_from(["fp16", "int8"]), st.sampled_from([1.0, 2.5]))
def test_vectors_keep_to_the_rounding_of_their_format(seed, to, temperature):
    """The entropy and the mean bias are floats, and the setting says whose head it is."""
    numbers = draw_logits(9, 40, seed, 1.0)
    head = Head(draw_logits(40, 33, seed + 1, 0.5), 40, draw_logits(1, 40, seed + 2)[0])
    signal = vectors_of(Dense(numbers), head, temperature)
    setting = {"format": to, "temperature": temperature, "head": name_of(head)}
    back = stored("kl_vector", [signal.at(slice(0, 4)), signal.at(slice(4, 9))], setting, 40)
    assert (back.temperature, back.vocabulary) == (temperature, 40)
    assert torch.equal(back.shift, signal.shift)
    assert torch.equal(back.entropy, signal.entropy)
    span = signal.vectors.abs().amax(-1, keepdim=True)
    most = span * 2**-10 if to == "fp16" else span * 2 / 250
    assert ((back.vectors - signal.vectors).abs() <= most).all()


def test_vectors_of_another_head_or_temperature_are_not_stored():
    head = Head(torch.eye(6, 4), 6)
    signal = vectors_of(Dense(torch.eye(2, 6)), head)
    for what, setting, words in (
        (signal, {"temperature": 2.0}, "do not fit into a cache of 6 ids at T=2.0"),
        (Dense(torch.eye(2, 6)), {}, "cannot be stored as kl_vector"),
        (signal, {"head": "mine"}, "head of a cache of the kind kl_vector is 'mine'"),
        (signal, {"format": "fp8"}, "have no format 'fp8'"),
    ):
        with pytest.raises(SignalError, match=words):
            stored("kl_vector", [what], setting, 6)


@pytest.mark.parametrize("kind", codecs.names())
def test_an_example_without_scored_positions_is_stored_and_read(kind):
    head = Head(torch.zeros(6, 4), 6)
    none = {"hidden": Hidden(torch.zeros(0, 4), head), "token": Given(torch.zeros(0))}.get(
        kind, Dense(torch.zeros(0, 6))
    )
    some = {"hidden": Hidden(torch.ones(2, 4), head), "token": Given(-torch.ones(2))}.get(
        kind, Dense(torch.eye(2, 6))
    )
    if kind == "kl_vector":
        none, some = (vectors_of(one, head) for one in (none, some))
    assert stored(kind, [none, some, none], {}, 6, head).rows == 2
    assert stored(kind, [none], {}, 6, head).rows == 0
    nothing = stored(kind, [], {}, 6, head)
    assert getattr(nothing, "whole", lambda: nothing)().rows == 0


@pytest.mark.parametrize("kind", codecs.names())
def test_unknown_settings_are_refused_with_the_known_ones(kind):
    with pytest.raises(SignalError, match="no setting 'depth'.*It has"):
        codecs.codec(kind).check({"depth": 3})


def test_the_likeliest_id_of_an_even_distribution_keeps_its_probability():
    """Its tail rounds to 1: what is left says nothing of the id."""
    kind, vocabulary = codecs.codec("topk"), 49_152
    setting = kind.check({"threshold": 1e-3})
    fields = kind.encode(Dense(torch.zeros(3, vocabulary)), setting, bytes(16), vocabulary)
    read = kind.decode([Entry(3, fields)], setting, Context(vocabulary)).whole()
    torch.testing.assert_close(read.lp[:, 0], torch.full((3,), -float(np.log(vocabulary))), atol=0.05, rtol=0)
