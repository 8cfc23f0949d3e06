"""One vocabulary goes on behind the other: every path gives the float64 value over the shared ids, renormalised."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from builders.losses import divergence, normal
from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.adapters import TrainerLoss
from potstill.data.batch import collate
from potstill.errors import SignalError
from potstill.models.projection import Projection
from potstill.objectives.fused import linear_loss, logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.topk import TopK
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule
from potstill.types import Batch, Example, Head

N, H, SHARED, MORE = 7, 5, 11, 17
SIZES = [(MORE, SHARED), (SHARED, MORE), (MORE, MORE + 2)]  # of teacher and student
NAMES = ("forward_kl", "reverse_kl", "jsd")


def textbook(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The sum over rows, from log-probabilities, written out."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a.exp() * torch.where(a.exp() > 0, a - b, 0.0)).sum(-1)

    middle = torch.logaddexp(student, teacher) - math.log(2)
    values = {
        "forward_kl": kl(teacher, student),
        "reverse_kl": kl(student, teacher),
        "jsd": (kl(teacher, middle) + kl(student, middle)) / 2,
    }
    return values[name].sum()


def inputs(teacher: int, student: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and weights of student and teacher, float64; the ids that are not shared have large logits."""
    weights = [normal(rows, H, seed=rows + 50 * side) for side, rows in enumerate((student, teacher))]
    for weight in weights:
        weight[SHARED:] *= 4
    return (
        normal(N, H, seed=1).requires_grad_(),
        weights[0].requires_grad_(),
        normal(N, H, seed=2),
        weights[1],
    )


def shared(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return (hidden @ weight.t()[:, :SHARED] / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("teacher", "student"), SIZES)
@pytest.mark.parametrize("path", ["store", "recompute", "logits", "signal", "module"])
def test_the_divergence_is_that_of_the_shared_ids_renormalised(path, teacher, student, name, temperature):
    h, w, th, tw = inputs(teacher, student)
    mask = torch.ones(N)
    options: dict[str, Any] = {"beta": 0.5} if name == "jsd" else {}
    loss = DistillationLoss(
        name,
        temperature=temperature,
        vocabulary=SHARED,
        mode="recompute" if path == "recompute" else "store",
        **options,
    )
    if path in ("store", "recompute"):
        value = loss(h, w, th, tw, mask).sum
    elif path == "logits":
        value = loss.from_logits(h @ w.t(), th @ tw.t(), mask).sum
    else:
        # As in training: the student's head is cut, and the signal is the teacher's whole one.
        layer = nn.Linear(H, teacher, bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(tw)
        head = Head(tw, teacher) if path == "signal" else Head(None, teacher, module=layer)
        rows = loss.token_loss.rowwise(Hidden(th, head))
        value = linear_loss(h, Head(w, SHARED), rows).sum
    wanted = textbook(name, shared(h, w, temperature), shared(th, tw, temperature))
    tight = path != "module"  # a head of unknown form gives logits in fp32
    torch.testing.assert_close(value, wanted, rtol=1e-10 if tight else 1e-4, atol=1e-12)
    ours, exact = (torch.autograd.grad(v, (h, w)) for v in (value, wanted))
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8 if tight else 1e-3, atol=1e-10 if tight else 1e-5)
    assert torch.count_nonzero(ours[1][SHARED:]) == 0


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", NAMES)
def test_stored_ids_that_the_student_lacks_are_left_out_and_the_rest_is_renormalised(name, temperature):
    """All ids of the teacher alone are stored, so the value is exact: the shared distribution with its tail in one bucket."""
    h, w, th, tw = inputs(MORE, SHARED)
    logits, lp = (h @ w.t()).detach().requires_grad_(), (th @ tw.t()).log_softmax(-1)
    ids = torch.cat([lp[:, :SHARED].topk(4).indices, torch.arange(SHARED, MORE).expand(N, -1)], -1)
    ids = ids.gather(1, torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).argsort(-1))
    lse = {temperature: torch.logsumexp(lp / temperature, -1)}
    loss = DistillationLoss(name, temperature=temperature, vocabulary=SHARED)
    signal = TopK(ids, lp.gather(1, ids), lse, vocabulary=MORE)
    value = loss.from_logits(logits, signal, torch.ones(N)).sum

    def with_bucket(x: Tensor) -> Tensor:
        four = lp[:, :SHARED].topk(4).indices
        rest = x.scatter(1, four, -torch.inf).logsumexp(-1, True)
        return torch.cat([x.gather(1, four), rest], -1)

    sides = ((logits / temperature).log_softmax(-1), shared(th, tw, temperature))
    wanted = textbook(name, *map(with_bucket, sides))
    torch.testing.assert_close(value, wanted, rtol=1e-8, atol=1e-10)
    ours, exact = (torch.autograd.grad(v, logits)[0] for v in (value, wanted))
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("ids", "vocabulary", "message"),
    [
        ([[1, 12]], None, "id 12, the student's vocabulary has 11"),
        ([[1, 12]], 12, "id 12, the teacher's vocabulary has 12"),
    ],
)
def test_stored_ids_beyond_the_teachers_own_are_refused(ids, vocabulary, message):
    signal = TopK(torch.tensor(ids), torch.full((len(ids), 2), -1.0), vocabulary=vocabulary)
    with pytest.raises(SignalError, match=message):
        DistillationLoss().from_logits(torch.zeros(len(ids), SHARED), signal, torch.ones(len(ids)))


def test_half_precision_targets_keep_their_mass_when_they_are_cut():
    """Stored in fp16, the copy of the teacher is at 0 within the rounding of what was stored."""
    _, _, th, tw = inputs(MORE, SHARED)
    lp = (th @ tw.t()).log_softmax(-1)
    signal = TopK(torch.arange(MORE).expand(N, -1), lp.half(), vocabulary=MORE)
    student = shared(th, tw, 1.0)
    value = DistillationLoss().from_logits(student, signal, torch.ones(N)).mean
    assert abs(float(value)) < 1e-3


def test_a_cut_head_is_a_view_of_its_rows():
    weight, bias = normal(MORE, H), normal(MORE)
    lora = (normal(2, H), normal(MORE, 2), 0.5)
    cut = Projection(Head(weight, MORE, bias, lora=lora).cut(SHARED), torch.float64)
    assert cut.weight.data_ptr() == weight.data_ptr()
    assert cut.bias.data_ptr() == bias.data_ptr()
    assert cut.lora[1].data_ptr() == lora[1].data_ptr()


@pytest.mark.parametrize("kind", ["dense", "hidden"])
def test_the_mass_of_what_is_left_out_is_that_of_the_whole_softmax(kind):
    _, _, th, tw = inputs(MORE, SHARED)
    signal = Dense(th @ tw.t()) if kind == "dense" else Hidden(th, Head(tw, MORE))
    wanted = (th @ tw.t()).softmax(-1)[1:5, SHARED:].sum(-1)
    torch.testing.assert_close(signal.mass_beyond(SHARED, slice(1, 5)), wanted)
    assert signal.mass_beyond(MORE, slice(1, 5)) is None


@pytest.mark.parametrize("kind", ["dense", "hidden"])
def test_a_teacher_with_fewer_ids_than_the_student_is_compared_with_is_refused(kind):
    signal = (
        Dense(normal(N, SHARED)) if kind == "dense" else Hidden(normal(N, H), Head(normal(SHARED, H), SHARED))
    )
    with pytest.raises(SignalError, match=f"{SHARED}.*{MORE}"):
        logits_loss(normal(N, MORE), TokenLoss(divergence("forward_kl")).rowwise(signal))


# Heads of whole models, as they are trained and evaluated.

SMALL = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
)  # fmt: skip
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "softcap": (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 1.5, "head_dim": 16}),
    "scale": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    "division": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 8.0}),
    "bias": (PhiConfig, PhiForCausalLM, {}),
}
HEADS = ["plain", "tied", *KINDS, "adapter"]


def model(kind: str, vocab: int, seed: int) -> Any:
    if kind in ("plain", "tied"):
        return tiny_model(vocab, seed=seed, tie=kind == "tied")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "adapter":
            adapted = get_peft_model(
                tiny_model(vocab, seed=seed), LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
            )
            nn.init.normal_(adapted.base_model.model.lm_head.lora_B["default"].weight)
            return adapted.eval()
        config, whole, options = KINDS[kind]
        made = whole(config(vocab_size=vocab, **SMALL, **options, tie_word_embeddings=False)).eval()
        if getattr(made.lm_head, "bias", None) is not None:
            nn.init.normal_(made.lm_head.bias)
        return made


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(4, 128, (n,), generator=generator).tolist() for n in (6, 9)]
    rows = [Example(f"r{i}", tuple(x), tuple(j > 3 for j in range(len(x)))) for i, x in enumerate(ids)]
    return collate(rows, pad_id=0)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("teacher", "student"), [(160, 128), (128, 160), (160, 192)])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_every_kind_of_head_is_cut_to_the_shared_ids(kind, teacher, student, side):
    one = model(kind if side == "student" else "plain", student, 0)
    other = model(kind if side == "teacher" else "plain", teacher, 1)
    rows = batch()
    with torch.no_grad():
        p = other(rows.input_ids, rows.attention_mask).logits[rows.predicts][:, :128].double().log_softmax(-1)
    trained = [parameter for parameter in one.parameters() if parameter.requires_grad]
    q = one(rows.input_ids, rows.attention_mask).logits[rows.predicts][:, :128].double().log_softmax(-1)
    wanted = textbook("forward_kl", q, p)
    exact = torch.autograd.grad(wanted, trained, allow_unused=True)
    signal = LocalTeacher(other, vocabulary=teacher, fingerprint="t").signal(rows)
    value, _, _ = StudentModule(one, 128)(rows, signal, TokenLoss(divergence("forward_kl")))
    torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(value, trained, allow_unused=True)
    scale = max(float(g.abs().max()) for g in exact if g is not None)
    for a, b in zip(ours, exact, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * scale)
    if kind != "tied" and side == "student" and student > 128 and kind != "adapter":
        gradient = dict(zip(trained, ours, strict=True))[one.get_output_embeddings().weight]
        assert torch.count_nonzero(gradient[128:]) == 0


@pytest.mark.parametrize(("teacher", "student"), [(160, 128), (128, 160)])
def test_a_trainers_loss_is_that_of_the_shared_ids(teacher, student):
    """The student pads with an id of its own, which its mask hides and the teacher does not have."""
    one, other = tiny_model(student, seed=0), tiny_model(teacher, seed=1)
    ids = torch.tensor([[1, 10, 11, 20, 21, 2], [1, 12, 11, 22, 0, 0]])
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    labels = torch.where(mask == 1, ids, -100)
    given = torch.where(mask == 0, student - 1, ids)
    loss = TrainerLoss(one, other, DistillationLoss(vocabulary=128))
    value = loss(one(input_ids=given, attention_mask=mask), labels)
    q, p = (
        m(input_ids=ids, attention_mask=mask)
        .logits[:, :-1][labels[:, 1:] != -100][:, :128]
        .double()
        .log_softmax(-1)
        for m in (one, other)
    )
    torch.testing.assert_close(value.double(), textbook("forward_kl", q, p) / len(p), rtol=1e-5, atol=1e-6)


def test_a_trainers_row_with_an_id_that_is_not_shared_is_refused():
    one, other = tiny_model(160, seed=0), tiny_model(128, seed=1)
    loss, ids = TrainerLoss(one, other, DistillationLoss(vocabulary=128)), torch.tensor([[1, 10, 130, 2]])
    with pytest.raises(
        SignalError, match=r"id 130, and the models share 128 ids\. Leave rows with other ids out"
    ):
        loss(one(input_ids=ids), ids)
