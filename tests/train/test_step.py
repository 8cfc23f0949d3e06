"""One step on whole models: its gradient is that of the plain formula, however the student is set up."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from builders.losses import token_loss
from builders.steps import local_teacher, ragged_rows
from builders.tiny import tiny_model, tiny_tokenizer
from potstill.data.batch import collate
from potstill.data.examples import encode
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.models.anatomy import head_of
from potstill.train import parallel
from potstill.train.step import StudentModule, accumulate, each_row_once, one_row_each
from potstill.types import Batch, Example


def dense_loss(student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Forward KL per scored token from the models' own logits."""
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "position_ids")}
    q = student(**inputs).logits[batch.predicts].log_softmax(-1)
    p = teacher(**inputs).logits[batch.predicts].log_softmax(-1).detach()
    return (p.exp() * (p - q)).sum() / batch.count


def assert_step_equals_dense(student: Any, teacher: Any, **kinds: torch.dtype) -> None:
    """A training step's gradient is that of the plain formula on the models' logits."""
    batch = collate(ragged_rows(4), pad_id=0)
    reference = copy.deepcopy(student)
    dense_loss(reference, teacher, batch).backward()
    module = StudentModule(student, 128)
    accumulate(module, local_teacher(teacher), [batch], token_loss())
    wanted = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    got = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            got[name], gradient, atol=2e-6, rtol=1e-4, msg=lambda t, n=name: f"{n}: {t}"
        )


def test_a_tied_embedding_of_a_whole_model_gets_both_gradients():
    """Through a whole model whose head is its embedding."""
    assert_step_equals_dense(tiny_model(seed=0, tie=True), tiny_model(seed=1))


def test_an_adapter_on_the_head_is_part_of_the_loss():
    """LoRA on the head and on a block: loss and gradients of the adapters are the model's own."""
    student = tiny_model(seed=0)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), student)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert head_of(student, 128).lora is not None
    assert_step_equals_dense(student, tiny_model(seed=1))
    trained = {n for n, p in student.named_parameters() if p.grad is not None}
    assert all("lora_" in n for n in trained)
    assert any(n.startswith("lm_head") for n in trained)


def test_a_bf16_forward_pass_changes_no_more_than_its_rounding():
    """A student run under autocast: loss and gradient stay near those in single precision, and are single."""
    batch, results = collate(ragged_rows(4), pad_id=0), []
    teacher = local_teacher()
    for dtype in (None, torch.bfloat16):
        module = StudentModule(tiny_model(seed=0), 128, autocast=dtype)
        result = accumulate(module, teacher, [batch], token_loss())
        head = module.student.lm_head.weight.grad
        assert head.dtype == torch.float32
        results.append((result.means()["loss"], head))
    assert results[1][0] == pytest.approx(results[0][0], rel=0.05)
    assert (results[1][1] - results[0][1]).norm() <= 0.1 * results[0][1].norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_cast_once_a_step_give_the_gradient_of_weights_cast_in_every_micro_batch(
    monkeypatch, checkpointing
):
    """Three micro-batches under autocast, after a step with other weights."""
    batches, teacher = [collate([row], pad_id=0) for row in ragged_rows(3)], local_teacher()

    def gradients():
        student = tiny_model(seed=0, tie=True)
        if checkpointing:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module = StudentModule(student, 128, autocast=torch.bfloat16)
        module.train()
        accumulate(module, teacher, batches, token_loss())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.5)
        module.zero_grad(set_to_none=True)
        accumulate(module, teacher, batches, token_loss())
        return [p.grad for p in module.parameters()]

    once = gradients()
    monkeypatch.setattr(parallel, "cast_once", lambda *_: contextlib.nullcontext())
    for kept, again in zip(once, gradients(), strict=True):
        assert torch.equal(kept, again)


def test_activation_checkpointing_keeps_the_gradient_of_hard_labels_and_jsd():
    """A mixed loss through a model that recomputes its blocks."""
    results, batch = [], collate(ragged_rows(4), pad_id=0)
    teacher = local_teacher()
    for on in (False, True):
        student = tiny_model(seed=0, tie=True)
        if on:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module = StudentModule(student, 128)
        module.train()
        accumulate(module, teacher, [batch], token_loss("jsd", 2.0, ce_weight=0.4))
        results.append([p.grad for p in module.parameters()])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain)


def test_hard_labels_leave_out_what_the_student_wrote():
    """Rows written by the student, a share of hard labels, and a teacher equal to it: no loss and no gradient."""
    written = [Example(r.id, r.input_ids, r.scored, origin="student") for r in ragged_rows(4)]
    module = StudentModule(tiny_model(seed=1), 128)
    teacher = local_teacher()
    result = accumulate(module, teacher, [collate(written, pad_id=0)], token_loss(ce_weight=0.5))
    assert abs(result.means()["loss"]) <= 1e-6
    assert max(p.grad.abs().max() for p in module.parameters()) <= 1e-5
    mixed = accumulate(
        module, teacher, [collate([*ragged_rows(1), *written[1:]], pad_id=0)], token_loss(ce_weight=0.5)
    )
    assert mixed.means()["loss"] > 0.1


def test_a_different_teacher_gives_every_block_a_gradient():
    module = StudentModule(tiny_model(seed=0), 128)
    accumulate(module, local_teacher(), [collate(ragged_rows(4), pad_id=0)], token_loss())
    norms = [sum(float(p.grad.norm()) for p in layer.parameters()) for layer in module.student.model.layers]
    assert min(norms) > 1e-4


@pytest.mark.parametrize("how", ["rows", "hook"])
def test_a_step_without_any_weight_is_skipped(how):
    module, teacher = StudentModule(tiny_model(), 128), local_teacher()
    row = Example("a", (1, 10, 11, 20), (False, False, False, True), weight=0.0 if how == "rows" else 1.0)
    weigh = (lambda s, t, place: 0.0 * place) if how == "hook" else None
    batch = collate([row], pad_id=0)
    assert accumulate(module, teacher, [batch], token_loss(weigh=weigh)) is None


def test_named_weights_refuse_a_gradient_from_before():
    """The division by the sum of weights at the end would divide the older gradient too."""
    module, teacher = StudentModule(tiny_model(), 128), local_teacher()
    batch = collate(ragged_rows(4), pad_id=0)
    loss = token_loss(weigh=lambda s, t, place: 0 * place + 0.25)
    accumulate(module, teacher, [batch], loss)
    with pytest.raises(ValueError, match="zero_grad"):
        accumulate(module, teacher, [batch], loss)


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
