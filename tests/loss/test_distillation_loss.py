"""The drop-in loss: the right value, mask, shift and denominator on one position that can be checked by hand.

Teacher logits [2, 1, 0] against student logits [1, 1, 1]: p = (0.665241, 0.244728, 0.090031), q = 1/3 each.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from potstill import DistillationLoss
from potstill.errors import PotstillError, SignalError
from potstill.signals.topk import TopK
from potstill.types import Head

TEACHER = torch.tensor([2.0, 1.0, 0.0])
STUDENT = torch.tensor([1.0, 1.0, 1.0])
FORWARD, REVERSE = 0.266217, 0.308994


def tiled(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """[1, n, 3] logits of both sides and a mask of ones."""
    return STUDENT.repeat(1, n, 1), TEACHER.repeat(1, n, 1), torch.ones(1, n, dtype=torch.bool)


@pytest.mark.parametrize(
    ("temperature", "raw", "scaled"), [(2.0, 0.078421, 0.313684), (4.0, 0.020513, 0.328203)]
)
def test_t_squared_comes_once_and_only_beside_a_hard_label_term(temperature, raw, scaled):
    s, t, mask = tiled(1)
    assert DistillationLoss(temperature=temperature).from_logits(s, t, mask).mean.item() == pytest.approx(
        raw, abs=1e-6
    )
    labels = torch.tensor([[-100, 0]])
    s, t, _ = tiled(2)
    mixed = DistillationLoss(temperature=temperature, ce_weight=0.5).from_logits(s, t, labels=labels)
    assert mixed.mean.item() == pytest.approx(0.5 * 1.098612 + 0.5 * scaled, abs=1e-6)
    assert mixed.metrics["divergence"].item() == pytest.approx(raw, abs=1e-6)


def test_the_gradient_carries_t_squared_as_the_value_does():
    student = STUDENT.repeat(1, 2, 1).requires_grad_()
    loss = DistillationLoss(temperature=2.0, ce_weight=1e-9)
    loss.from_logits(student, TEACHER.repeat(1, 2, 1), labels=torch.tensor([[-100, 0]])).sum.backward()
    assert student.grad[0, 0].tolist() == pytest.approx([-0.346294, 0.052275, 0.294019], abs=1e-5)


def test_half_cross_entropy_half_divergence():
    s, t, _ = tiled(2)
    out = DistillationLoss(ce_weight=0.5).from_logits(s, t, labels=torch.tensor([[-100, 0]]))
    assert out.mean.item() == pytest.approx(0.682415, abs=1e-6)


@pytest.mark.parametrize("n", [1, 10, 100])
def test_the_mean_does_not_shrink_with_the_number_of_tokens(n):
    out = DistillationLoss().from_logits(*tiled(n))
    assert out.mean.item() == pytest.approx(FORWARD, abs=1e-6)
    assert int(out.count) == n


def test_the_mean_is_over_tokens_and_not_over_the_vocabulary_too():
    s, t, mask = tiled(2)
    far = torch.full((1, 2, 1000), -1e4)
    wide = DistillationLoss().from_logits(torch.cat([s, far], -1), torch.cat([t, far], -1), mask)
    assert wide.mean.item() == pytest.approx(FORWARD, abs=1e-6)


def test_the_softmax_is_over_the_vocabulary_and_not_over_the_sequence():
    teacher = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    out = DistillationLoss().from_logits(torch.ones(1, 2, 3), teacher, torch.ones(1, 2))
    assert out.mean.item() == pytest.approx(0.133108, abs=1e-6)


def test_logits_are_taken_never_probabilities():
    """Softmax output in place of log-probabilities gave a loss of -1.33 that kept falling."""
    p, q = torch.tensor([[[0.3, 0.6, 0.1]]]), torch.tensor([[[0.4, 0.5, 0.1]]])
    assert DistillationLoss().from_logits(q.log(), p.log(), torch.ones(1, 1)).mean.item() == pytest.approx(
        0.023088, abs=1e-6
    )


@pytest.mark.parametrize("width", [3, 50])
def test_padding_does_not_change_the_loss(width):
    student, teacher = torch.randn(2, width, 3), torch.randn(2, width, 3)
    mask = torch.zeros(2, width, dtype=torch.bool)
    for row, n in ((0, 3), (1, 1)):
        student[row, :n], teacher[row, :n], mask[row, :n] = STUDENT, TEACHER, True
    assert DistillationLoss().from_logits(student, teacher, mask).mean.item() == pytest.approx(
        FORWARD, abs=1e-6
    )


def test_ignored_labels_shape_nothing():
    torch.manual_seed(0)
    labels = torch.tensor([[-100, -100, 5, 6, -100]])
    values, gradients = [], []
    for seed in (1, 2):
        noise = torch.Generator().manual_seed(seed)
        student, teacher = torch.zeros(1, 5, 8), torch.ones(1, 5, 8).cumsum(-1)
        for ignored in (0, 3, 4):  # logits at 1 and 2 predict the labels at 2 and 3
            student[0, ignored] = torch.randn(8, generator=noise)
            teacher[0, ignored] = torch.randn(8, generator=noise)
        student.requires_grad_()
        out = DistillationLoss().from_logits(student, teacher, labels=labels)
        out.sum.backward()
        values.append(out.sum.item())
        gradients.append(student.grad)
    assert values[0] == values[1]
    assert torch.equal(gradients[0][:, [1, 2]], gradients[1][:, [1, 2]])
    assert torch.count_nonzero(gradients[0][:, [0, 3, 4]]) == 0


def test_labels_are_shifted_once_and_a_mask_is_not():
    """Tokens p0 p1 r0 r1 eos with a prompt of 2: logits at 1, 2 and 3 are scored."""
    pairs = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.3, -0.9], [0.5, 1.9], [0.0, 0.0]])
    student, teacher = torch.zeros(1, 5, 2), pairs.unsqueeze(0)
    each = torch.stack(
        [
            DistillationLoss().from_logits(student[:, i : i + 1], teacher[:, i : i + 1], torch.ones(1, 1)).sum
            for i in range(5)
        ]
    )
    right = each[1:4].mean().item()
    labels = torch.tensor([[-100, -100, 0, 1, 0]])
    assert DistillationLoss().from_logits(student, teacher, labels=labels).mean.item() == pytest.approx(
        right, abs=1e-6
    )
    mask = torch.tensor([[False, True, True, True, False]])
    assert DistillationLoss().from_logits(student, teacher, mask).mean.item() == pytest.approx(
        right, abs=1e-6
    )
    assert each[2:5].mean().item() != pytest.approx(right, abs=1e-2)


def test_a_one_token_answer_has_exactly_one_scored_position():
    s, t, _ = tiled(3)
    out = DistillationLoss().from_logits(s, t, labels=torch.tensor([[-100, -100, 1]]))
    assert int(out.count) == 1


def test_nothing_scored_gives_zero_and_a_finite_gradient():
    student = torch.randn(1, 3, 4, requires_grad=True)
    out = DistillationLoss().from_logits(student, torch.randn(1, 3, 4), labels=torch.full((1, 3), -100))
    out.sum.backward()
    assert out.sum.item() == 0
    assert int(out.count) == 0
    assert torch.count_nonzero(student.grad) == 0


def test_hidden_states_and_logits_give_the_same():
    rows = 37
    torch.manual_seed(0)
    student = torch.nn.Linear(8, 50)
    teacher = torch.nn.Linear(12, 50)
    hs, ht = torch.randn(1, rows, 8), torch.randn(1, rows, 12)
    mask = torch.rand(1, rows) < 0.5
    for options in ({"divergence": "forward_kl"}, {"divergence": "jsd", "beta": 0.3, "temperature": 2.0}):
        loss = DistillationLoss(**options)
        fused, dense = loss(hs, student, ht, teacher, mask), loss.from_logits(student(hs), teacher(ht), mask)
        torch.testing.assert_close(fused.sum, dense.sum, atol=1e-5, rtol=1e-5)
        got = torch.autograd.grad(fused.sum, list(student.parameters()))
        want = torch.autograd.grad(dense.sum, list(student.parameters()))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "tvd", "skew_kl", "hellinger"])
def test_a_student_that_equals_its_teacher_has_no_loss(name):
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(16, 500), torch.randn(2, 9, 16)
    out = DistillationLoss(name)(hidden, head, hidden, head, torch.ones(2, 9))
    assert abs(out.mean.item()) <= 1e-6


def test_padded_rows_are_cut_before_the_softmax():
    """Teacher [2, 1, 0], student [1, 1, 1, 1]: over the shared ids 0.266217; filled with zeros it was 0.337589."""
    student, teacher = torch.ones(1, 1, 4), TEACHER.reshape(1, 1, 3)
    with pytest.raises(SignalError, match="4 output rows, the teacher 3"):
        DistillationLoss().from_logits(student, teacher, torch.ones(1, 1))
    cut = DistillationLoss(vocabulary=3).from_logits(student, teacher, torch.ones(1, 1))
    assert cut.mean.item() == pytest.approx(FORWARD, abs=1e-6)
    student = torch.ones(1, 1, 4, requires_grad=True)
    DistillationLoss(vocabulary=3).from_logits(student, teacher, torch.ones(1, 1)).sum.backward()
    assert student.grad[0, 0, 3] == 0


def test_a_softcapped_head_is_read_as_the_model_reads_it():
    assert (30 * torch.tanh(torch.tensor(40.0) / 30)).item() == pytest.approx(26.101851, abs=1e-5)
    weight, hidden = torch.tensor([[40.0], [0.0], [10.0]]), torch.ones(1, 1, 1)
    head = Head(weight, 3, softcap=30.0)
    target = torch.nn.Linear(1, 3, bias=False)
    torch.nn.init.zeros_(target.weight)
    logits = 30 * torch.tanh(weight.t().reshape(1, 1, 3) / 30)
    got = DistillationLoss("reverse_kl")(hidden, head, hidden, target, torch.ones(1, 1)).mean.item()
    want = (
        DistillationLoss("reverse_kl").from_logits(logits, torch.zeros(1, 1, 3), torch.ones(1, 1)).mean.item()
    )
    assert got == pytest.approx(want, abs=1e-6)


def test_dividing_a_log_probability_by_t_is_not_tempering():
    lp = torch.log_softmax(TEACHER, -1).unsqueeze(0)
    signal = TopK(torch.arange(3).unsqueeze(0), lp, {2.0: torch.logsumexp(lp / 2, -1)})
    out = DistillationLoss(temperature=2.0).from_logits(STUDENT.reshape(1, 1, 3), signal, torch.ones(1, 1))
    assert out.mean.item() == pytest.approx(0.078421, abs=1e-6)


def test_masks_and_labels_are_never_guessed():
    s, t, mask = tiled(2)
    with pytest.raises(SignalError, match="either mask or labels"):
        DistillationLoss().from_logits(s, t)
    with pytest.raises(SignalError, match="either mask or labels"):
        DistillationLoss().from_logits(s, t, mask, labels=mask.long())
    with pytest.raises(SignalError, match="needs labels"):
        DistillationLoss(ce_weight=0.5).from_logits(s, t, mask)
    with pytest.raises(SignalError, match="positions are"):
        DistillationLoss().from_logits(s, t, torch.ones(1, 5))


@pytest.mark.parametrize(
    "bad", [{"ce_weight": 1.5}, {"temperature": 0.0}, {"temperature": float("nan")}, {"temperature": -1.0}]
)
def test_values_that_mean_nothing_are_refused(bad):
    with pytest.raises(SignalError):
        DistillationLoss(**bad)


def test_wrong_names_and_options_are_refused_with_the_nearest():
    with pytest.raises(PotstillError, match="forward_kl"):
        DistillationLoss("froward_kl")
    with pytest.raises(PotstillError, match="beta"):
        DistillationLoss("jsd", bet=0.1)


def test_it_needs_neither_transformers_nor_pydantic():
    code = (
        "import sys\n"
        "for name in ('transformers', 'pydantic', 'datasets', 'typer'): sys.modules[name] = None\n"
        "import torch, potstill\n"
        "out = potstill.DistillationLoss('jsd', beta=0.1).from_logits(torch.ones(1, 1, 3), torch.tensor([[[2., 1., 0.]]]), torch.ones(1, 1))\n"
        "assert abs(float(out.mean) - 0.023992) < 1e-6\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
