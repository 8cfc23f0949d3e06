"""The edges of the loss: rarely used heads, weights, stored targets and labels."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from builders.jobs import FORWARD
from builders.tiny import tiny_model, tiny_tokenizer
from potstill import DistillationLoss
from potstill.adapters import TrainerLoss
from potstill.data.batch import collate
from potstill.data.examples import encode
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.divergences import adaptive_kl, alpha_divergence
from potstill.errors import RecipeError, SignalError
from potstill.objectives.token import TokenLoss, TokenWeight
from potstill.recipe import plugins
from potstill.signals.sampled import Sampled
from potstill.signals.topk import TopK
from potstill.train.step import each_row_once, one_row_each
from potstill.types import Example, Head


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_adaptive_kl_keeps_the_bucket_out_of_the_head_where_little_is_stored():
    p, q = torch.tensor([[0.25, 0.15, 0.6]]).double(), torch.tensor([[0.1, 0.4, 0.5]]).double()
    value, partial = adaptive_kl.value_and_partial(q.log(), p.log(), True, head_mass=0.5)
    forward, reverse = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
    a, b = 0.15 + 0.25, 0.1  # the head is what is stored, the tail is the bucket
    torch.testing.assert_close(value[0], (a * forward + b * reverse) / (a + b))
    torch.testing.assert_close(partial, (a * (q - p) + b * q * (q / p).log()) / (a + b))


@pytest.mark.parametrize("mode", ["store", "recompute", "eval"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_head_with_fewer_rows_than_its_vocabulary_is_refused(mode, side):
    """Without the check, memory beyond the weight is read."""
    loss = DistillationLoss("forward_kl", vocabulary=60, mode=mode)
    small, large = normal(50, 8, seed=1), normal(60, 8, seed=2)
    heads = (small, large) if side == "student" else (large, small)
    with pytest.raises(SignalError, match=r"60.*50|50 rows"):
        loss(
            normal(1, 3, 8),
            Head(heads[0], 60),
            normal(1, 3, 8, seed=3),
            Head(heads[1], 60),
            labels=torch.tensor([[1, 2, 3]]),
        )


@pytest.mark.parametrize("kind", ["bias", "lora"])
def test_a_part_of_a_head_with_too_few_rows_is_refused(kind):
    part = {"bias": normal(50)} if kind == "bias" else {"lora": (normal(2, 8), normal(50, 2), 1.0)}
    with pytest.raises(SignalError, match="50 rows, fewer than its vocabulary of 60"):
        Head(normal(60, 8), 60, **part)


def test_the_entropy_weight_ignores_the_padding_of_stored_ids():
    named = TokenWeight.from_module(plugins.load("token_weights", "entropy", {}), {"floor": 0.0})
    logits = normal(2, 7)
    lp = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.3, 0.2]]).double().log()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    sums = []
    for unused in (0, 3):
        wide = TopK(
            torch.cat([ids, torch.full((2, unused), -1)], 1), torch.cat([lp, lp.new_zeros(2, unused)], 1)
        )
        rowwise = TokenLoss(FORWARD, weigh=named).rowwise(wide, place=torch.zeros(2))
        sums.append(float(rowwise(logits.clone(), slice(0, 2), False)[1]["weight"]))
    p = torch.cat([lp.exp(), 1 - lp.exp().sum(1, keepdim=True)], 1)
    wanted = float((-(p * p.log()).sum(1) / math.log(4)).sum())
    assert sums == pytest.approx([wanted, wanted])


def test_an_entropy_weight_is_refused_for_drawn_ids():
    named = TokenWeight.from_module(plugins.load("token_weights", "entropy", {}), {})
    drawn = Sampled(torch.tensor([[1, 2]]), torch.tensor([[3.0, 1.0]]), torch.tensor([1.0]))
    with pytest.raises(SignalError, match="entropy cannot be read from sampled signals"):
        TokenLoss(FORWARD, weigh=named).rowwise(drawn, place=torch.zeros(1))
    named = TokenWeight.from_module(plugins.load("token_weights", "position", {}), {})
    TokenLoss(FORWARD, weigh=named).rowwise(drawn, place=torch.zeros(1))


def test_a_conversation_of_several_examples_counts_as_one_row_under_sequence_mean():
    """A template that rewrites earlier turns makes an example of each; together they are one row."""
    rewriting = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}| "
        "{% if loop.last %}{{ m.content }}{% else %}w50{% endif %}{{ eos_token }}"
        "{% else %}{{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}|{% endif %}"
    )
    talk = [("user", "w20"), ("assistant", "w21 w22"), ("user", "w23"), ("assistant", "w24 w25 w26 w27")]
    row = Row("talk", tuple({"role": role, "content": text} for role, text in talk))
    templater = Templater(tiny_tokenizer(template=rewriting))
    parts = encode([row], templater, max_length=None).examples
    assert [(p.id, p.row_id, p.count) for p in parts] == [("talk#1", "talk", 3), ("talk#2", "talk", 5)]
    assert [p.share for p in parts] == pytest.approx([3 / 8, 5 / 8])
    weights = each_row_once(collate(one_row_each(parts), pad_id=0)).weights
    assert weights.tolist() == pytest.approx([1 / 8] * 8)
    longest = max(len(p.input_ids) for p in parts)
    (kept,) = encode([row], templater, max_length=longest - 1).examples
    assert kept.share == 1.0  # what is dropped takes no share


@pytest.mark.parametrize("packed", [False, True])
def test_places_start_again_in_each_answer_of_a_conversation(packed):
    two = Example("a", (1, 10, 20, 21, 10, 22, 23, 24), tuple(i in (2, 3, 5, 6, 7) for i in range(8)))
    one = Example("b", (1, 10, 20, 21), (False, False, True, True))
    place, count = collate([two, one], pad_id=0, packed=packed).places()
    assert place.tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert count.tolist() == [5] * 5 + [2] * 2


def test_flat_hidden_states_keep_the_position_weights_of_their_rows():
    loss = DistillationLoss("forward_kl", token_weights={"position": {"half_life": 2.0}})
    student, teacher, head, other = (
        normal(*s, seed=i) for i, s in enumerate([(3, 5, 8), (3, 5, 8), (20, 8), (20, 8)])
    )
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]).bool()
    whole = loss(student, head, teacher, other, mask).mean
    flat = loss(student.flatten(0, 1), head, teacher.flatten(0, 1), other, mask.flatten()).mean
    torch.testing.assert_close(flat, whole)


def test_a_mask_that_is_true_at_a_rows_end_does_not_join_the_next_row():
    """Whoever has cut the last logit off scores the last column."""
    loss = DistillationLoss("forward_kl", token_weights={"position": {"half_life": 2.0}})
    student, teacher = normal(2, 4, 20), normal(2, 4, 20, seed=1)
    mask = torch.ones(2, 4).bool()
    both = loss.from_logits(student, teacher, mask)
    apart = [loss.from_logits(student[i : i + 1], teacher[i : i + 1], mask[:1]) for i in range(2)]
    torch.testing.assert_close(both.sum, apart[0].sum + apart[1].sum)
    torch.testing.assert_close(both.metrics["weight"], sum(one.metrics["weight"] for one in apart))


def test_recomputing_inside_autocast_gives_the_stored_gradient():
    lora = (
        normal(2, 8, seed=4).float().requires_grad_(),
        normal(20, 2, seed=5).float().requires_grad_(),
        0.5,
    )
    hidden = normal(2, 4, 8).float()
    gradients = []
    for mode in ("store", "recompute"):
        student = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            head = Head(normal(20, 8, seed=1).float(), 20, lora=lora)
            loss = DistillationLoss("forward_kl", mode=mode)
            out = loss(student, head, hidden.flip(0), normal(20, 8, seed=2).float(), torch.ones(2, 4).bool())
            out.mean.backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mode", ["store", "eval"])
@pytest.mark.parametrize("wide", ["student", "teacher"])
def test_one_side_may_be_in_fp64(mode, wide):
    parts = [normal(*shape, seed=seed) for seed, shape in enumerate([(2, 4, 8), (20, 8), (2, 4, 8), (20, 8)])]
    mask = torch.ones(2, 4).bool()
    exact = DistillationLoss("forward_kl", mode=mode)(*parts, mask).mean
    narrow = slice(2, 4) if wide == "student" else slice(0, 2)
    parts[narrow] = [part.float() for part in parts[narrow]]
    assert float(DistillationLoss("forward_kl", mode=mode)(*parts, mask).mean) == pytest.approx(
        float(exact), 1e-5
    )


class Packed(nn.Module):
    """Like a 4-bit layer: its weight's shape says nothing of what comes out."""

    def __init__(self, weight: torch.Tensor, sized: bool) -> None:
        super().__init__()
        self.full = weight
        self.weight = nn.Parameter(weight.flatten().clone().unsqueeze(-1), requires_grad=False)
        if sized:
            self.out_features = weight.shape[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.full.t()


def test_a_head_with_a_packed_weight_says_its_size_by_out_features():
    weight, teacher = normal(30, 8, seed=1), normal(30, 8, seed=2)
    hidden, mask = normal(2, 4, 8), torch.ones(2, 4).bool()
    loss = DistillationLoss("forward_kl")
    wanted = loss(hidden, weight, hidden, teacher, mask).mean
    torch.testing.assert_close(
        loss(hidden, Packed(weight, True), hidden, teacher, mask).mean.double(), wanted
    )


def test_a_head_that_cannot_say_its_size_is_refused_with_a_way_on():
    loss = DistillationLoss("forward_kl")
    with pytest.raises(SignalError, match="does not say how many ids"):
        loss(normal(1, 2, 8), nn.Identity(), normal(1, 2, 8), normal(30, 8), torch.ones(1, 2).bool())


@pytest.mark.parametrize("mode", ["store", "eval"])
@pytest.mark.parametrize("ce_weight", [0.0, 1.0])
def test_a_negative_label_is_refused(mode, ce_weight):
    loss = DistillationLoss("forward_kl", mode=mode, ce_weight=ce_weight)
    with pytest.raises(SignalError, match="labels hold -1"):
        loss(
            normal(1, 4, 8),
            normal(20, 8),
            normal(1, 4, 8),
            normal(20, 8),
            labels=torch.tensor([[3, 4, -1, -100]]),
        )


def test_labels_in_the_place_of_the_mask_are_refused():
    """Taken as a mask, labels score every position, since -100 and ids are all true."""
    labels = torch.tensor([[-100, 4, 5]])
    parts = normal(1, 3, 8), normal(20, 8), normal(1, 3, 8), normal(20, 8)
    with pytest.raises(SignalError, match="mask holds more than 0 and 1"):
        DistillationLoss()(*parts, labels)
    ones = DistillationLoss()(*parts, torch.tensor([[0, 1, 1]])).sum
    torch.testing.assert_close(ones, DistillationLoss()(*parts, torch.tensor([[False, True, True]])).sum)


@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("kind", ["lse", "entropy"])
def test_values_beside_stored_ids_must_have_as_many_rows(rows, kind):
    ids = torch.tensor([[1], [2]])
    values = torch.zeros(rows)
    signal = (
        TopK(ids, torch.full((2, 1), -1.0), {2.0: values})
        if kind == "lse"
        else Sampled(ids, torch.ones(2, 1), values)
    )
    with pytest.raises(SignalError, match=r"2 rows, \(\d,\) values"):
        signal.checked()


def test_weights_that_are_all_zero_give_a_loss_of_zero():
    hidden = normal(1, 4, 8).requires_grad_()
    sure = torch.zeros(20, 8).double()
    sure[0] = 1e4
    teacher = torch.ones(1, 4, 8).double()
    loss = DistillationLoss("forward_kl", token_weights={"entropy": {"floor": 0.0}})
    out = loss(hidden, normal(20, 8), teacher, sure, torch.ones(1, 4).bool())
    assert float(out.metrics["weight"]) == 0
    out.mean.backward()
    assert float(out.mean.detach()) == 0
    assert not hidden.grad.any()


def test_the_mean_of_weighted_tokens_divides_by_their_weights():
    parts = normal(2, 4, 8), normal(20, 8, seed=1), normal(2, 4, 8, seed=2), normal(20, 8, seed=3)
    mask, ones = torch.ones(2, 4).bool(), torch.ones(2, 4)
    for mode in ("store", "eval"):
        loss = DistillationLoss("forward_kl", mode=mode)
        torch.testing.assert_close(
            loss(*parts, mask, weights=2 * ones).mean, loss(*parts, mask, weights=ones).mean
        )


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_negative_or_not_finite_is_refused(value):
    weights = torch.ones(1, 3)
    weights[0, 1] = value
    parts = normal(1, 3, 8), normal(20, 8), normal(1, 3, 8), normal(20, 8)
    with pytest.raises(SignalError, match="a weight is negative or not finite"):
        DistillationLoss()(*parts, torch.ones(1, 3).bool(), weights=weights)
    DistillationLoss()(*parts, torch.tensor([[True, False, True]]), weights=weights)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"vocabulary": 0}, SignalError),
        ({"vocabulary": -3}, SignalError),
        ({"divergence": "jsd", "beta": 2.0}, RecipeError),
        ({"divergence": "renyi", "r": -1.0}, RecipeError),
        ({"ce_weight": 1.0, "token_weights": "entropy"}, SignalError),
    ],
)
def test_settings_out_of_range_are_refused_when_the_loss_is_made(given, error):
    with pytest.raises(error):
        DistillationLoss(**given)


@pytest.mark.parametrize("alpha", [1e-6, 1e-4, 1 - 1e-6])
def test_alpha_divergence_near_a_limit_is_exact_in_single_precision(alpha):
    teacher = torch.log_softmax(normal(4, 50), -1)
    student = torch.log_softmax(normal(4, 50) + 0.02 * normal(4, 50, seed=1), -1)
    exact = alpha_divergence.value(student, teacher, alpha=alpha)
    rough = alpha_divergence.value(student.float(), teacher.float(), alpha=alpha).double()
    torch.testing.assert_close(rough, exact, rtol=2e-3, atol=0)


def test_inputs_are_moved_to_the_teachers_device():
    """The Trainer moves the student only, and the teacher reads the student's inputs."""
    student, teacher = tiny_model(), tiny_model(seed=1)
    loss = TrainerLoss(student, teacher, DistillationLoss())
    ids = torch.tensor([[1, 10, 11, 20]])
    outputs = student(input_ids=ids)
    wanted = loss(outputs, ids)
    moved = []

    class Elsewhere:
        shape = ids.shape

        def to(self, device):
            moved.append(device)
            return ids

    loss._inputs = {"input_ids": Elsewhere()}
    torch.testing.assert_close(loss(outputs, ids), wanted)
    assert moved == [torch.device("cpu")]


def test_replicas_in_one_process_are_refused():
    student = tiny_model()
    loss = TrainerLoss(student, tiny_model(seed=1), DistillationLoss())
    ids = torch.tensor([[1, 10, 11, 20], [1, 10, 11, 21], [1, 12, 11, 20], [1, 13, 11, 21]])
    halves = [student(input_ids=half).logits for half in ids.split(2)]
    with pytest.raises(SignalError, match="torchrun"):
        loss(SimpleNamespace(logits=torch.cat(halves)), ids)
