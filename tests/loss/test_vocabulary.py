"""Output layers of different widths, vocabularies that only look the same, and ids beyond sixteen bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from builders.tiny import save_tiny, tiny_model
from potstill import DistillationLoss
from potstill.data.batch import collate
from potstill.divergences import forward_kl
from potstill.errors import ModelError, SignalError, VocabularyError
from potstill.models import loading, vocabulary
from potstill.objectives.token import Divergence, TokenLoss
from potstill.signals.topk import TopK
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example

NARROW, WIDE, KNOWN = 151_936, 152_064, 151_665


def heads(student: int, teacher: int) -> tuple[Tensor, Tensor]:
    """Two output layers [rows, 2] that agree on nothing, padding included."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(WIDE, 2, generator=generator), torch.randn(WIDE, 2, generator=generator)
    return wide[0][:student].clone().requires_grad_(), wide[1][:teacher]


@pytest.mark.parametrize(("student", "teacher"), [(NARROW, WIDE), (WIDE, NARROW)])
def test_widths_that_differ_by_padding_give_the_loss_over_real_ids(student, teacher):
    """151,936 rows against 152,064: the value over the ids that exist, no gradient on padding."""
    weight, other = heads(student, teacher)
    hidden, teacher_hidden = torch.randn(3, 2), torch.randn(3, 2)
    loss = DistillationLoss(vocabulary=KNOWN)
    out = loss(hidden, weight, teacher_hidden, other, torch.ones(3))
    p, q = (
        (h @ w[:KNOWN].t()).log_softmax(-1) for h, w in ((teacher_hidden, other), (hidden, weight.detach()))
    )
    assert out.sum.item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-4)
    dense = loss.from_logits(hidden @ weight.detach().t(), teacher_hidden @ other.t(), torch.ones(3))
    assert dense.sum.item() == pytest.approx(out.sum.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(out.sum, weight)
    assert gradient[:KNOWN].abs().max() > 0
    assert torch.count_nonzero(gradient[KNOWN:]) == 0
    with pytest.raises(SignalError, match=f"{student} output rows, the teacher {teacher}"):
        DistillationLoss()(hidden, weight, teacher_hidden, other, torch.ones(3))


def test_a_vocabulary_wider_than_a_head_is_refused():
    """Asking for more ids than an output layer has rows is refused with both numbers."""
    with pytest.raises(SignalError, match="vocabulary is 9, the output layers have 5 and 7 rows"):
        DistillationLoss(vocabulary=9).from_logits(torch.zeros(1, 5), torch.zeros(1, 7), torch.ones(1))


def test_two_vocabularies_of_32000_that_differ_are_refused():
    """Equal sizes prove nothing: the first id that means something else is named."""
    one = vocabulary.Vocabulary({i: f"a{i}" for i in range(32_000)}, {"bos": 1, "eos": 2, "unk": 0})
    other = vocabulary.Vocabulary({i: f"a{i}" if i < 259 else f"b{i}" for i in range(32_000)}, one.special)
    assert one.size == other.size == 32_000
    with pytest.raises(VocabularyError, match="id 259 is 'a259' for the teacher and 'b259' for the student"):
        vocabulary.require_shared(one, other)


def rows() -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(4, 128, (n,), generator=generator).tolist() for n in (6, 9)]
    return [Example(f"r{i}", tuple(x), tuple(j > 3 for j in range(len(x)))) for i, x in enumerate(ids)]


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize(("student", "teacher"), [(128, 160), (160, 128), (160, 160)])
def test_a_padded_output_layer_does_not_shape_the_student(student, teacher, dtypes):
    """One tokenizer of 128 ids, output layers of 128 and 160: the loss over 128, and padding is never trained."""
    small, large = tiny_model(student, seed=0).to(dtypes[0]), tiny_model(teacher, seed=1).to(dtypes[1])
    for model in (small, large):
        model.lm_head.weight.data[128:] *= 50  # ids that do not exist would take most of the mass
    batch, module = collate(rows(), pad_id=0), StudentModule(small, 128)
    result = accumulate(
        module,
        LocalTeacher(large, vocabulary=128, fingerprint="t"),
        [batch],
        TokenLoss(Divergence.from_module(forward_kl)),
    )
    q, p = (
        m(batch.input_ids, batch.attention_mask).logits.float()[batch.predicts][:, :128].log_softmax(-1)
        for m in (small, large)
    )
    rounding = 1e-4 if dtypes[1] == torch.float32 else 0.05
    assert result.means()["loss"] == pytest.approx(
        (p.exp() * (p - q)).sum().item() / batch.count, rel=rounding
    )
    gradient = small.lm_head.weight.grad
    assert gradient[:128].abs().max() > 1e-4
    assert torch.count_nonzero(gradient[128:]) == 0


def test_ids_that_one_side_lacks_are_cut_not_filled():
    """160 ids against 128 with one logit at 5: zero-filling gave ids that do not exist 0.104094 of the mass."""
    teacher = torch.zeros(1, 128)
    teacher[0, 7] = 5.0
    filled = torch.cat([teacher, torch.zeros(1, 32)], -1).softmax(-1)[0, 128:].sum()
    assert filled.item() == pytest.approx(0.104094, abs=1e-6)
    student = torch.zeros(1, 160, requires_grad=True)
    out = DistillationLoss(vocabulary=128).from_logits(student, teacher, torch.ones(1))
    p = teacher.log_softmax(-1)
    assert out.sum.item() == pytest.approx((p.exp() * (p + math.log(128))).sum().item(), abs=1e-5)
    assert torch.autograd.grad(out.sum, student)[0][0, 128:].abs().max() == 0


def test_a_head_wider_than_its_config_says_is_refused(tmp_path):
    """A config of 128 ids beside a head of 136 rows is an error, not 128 rows or random ones."""
    folder = save_tiny(tmp_path / "m")
    model = tiny_model()
    model.lm_head = nn.Linear(32, 136, bias=False)
    model.save_pretrained(folder)
    with pytest.raises(ModelError):
        loading.load(loading.find_source(str(folder)), dtype=torch.float32)


def test_ids_beyond_sixteen_bits_keep_their_place():
    """Stored ids 70,000 and 151,643 keep their place: the gradient falls there and nowhere near 4,464 or 20,571."""
    ids = torch.tensor([[70_000, 151_643]])
    student = torch.zeros(1, NARROW, requires_grad=True)
    out = DistillationLoss().from_logits(student, TopK(ids, torch.tensor([[0.6, 0.3]]).log()), torch.ones(1))
    (gradient,) = torch.autograd.grad(out.sum, student)
    assert gradient[0].argsort()[:2].tolist() == [70_000, 151_643]
    assert gradient[0, ids[0]].tolist() == pytest.approx([-0.6, -0.3], abs=1e-4)
    assert gradient[0, [4_464, 20_571, 65_535]].min() > 0


def test_each_scored_span_is_compared_with_its_own_teacher_positions():
    """With several scored spans in one row, each scored position is compared with its own teacher position."""
    scored = [bool(int(c)) for c in "0011001110"]
    labels = torch.tensor([[5 if s else -100 for s in scored]])
    # Position i of the teacher says log-odds 0.1 i; the student says 0 everywhere.
    teacher = torch.stack([0.1 * torch.arange(10.0), torch.zeros(10)], -1).unsqueeze(0)
    student = torch.zeros(1, 10, 2, requires_grad=True)
    out = DistillationLoss().from_logits(student, teacher, labels=labels)
    (gradient,) = torch.autograd.grad(out.sum, student)
    for i in range(10):
        follows = i + 1 < 10 and scored[i + 1]
        expected = 0.5 - torch.sigmoid(torch.tensor(0.1 * i)).item() if follows else 0.0
        assert gradient[0, i, 0].item() == pytest.approx(expected, abs=1e-6)
    assert int(out.count) == 5
