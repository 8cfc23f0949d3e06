"""Features of the loss in combination: weights, adapters, dtypes, stored targets, evaluation."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from builders import places
from builders.cli import potstill
from builders.jobs import spec_of
from builders.steps import ragged_rows
from builders.tiny import save_tiny, tiny_model
from potstill import DistillationLoss
from potstill.adapters import TrainerLoss
from potstill.data.answers import Written
from potstill.data.batch import collate
from potstill.data.questions import questions
from potstill.errors import ModelError, NotFinite, RecipeError, RecipeErrors, SignalError
from potstill.models.anatomy import head_form
from potstill.objectives.token import Divergence, TokenLoss
from potstill.recipe import plugins
from potstill.signals.topk import TopK
from potstill.stages._objective import objective_of
from potstill.stages.distill import Distill
from potstill.teachers.local import LocalTeacher
from potstill.train import checkpoint
from potstill.train.loop import make_optimizer
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example, Head

FORWARD = Divergence.from_module(plugins.load("divergences", "forward_kl", {}))


def pair() -> tuple[StudentModule, LocalTeacher]:
    return StudentModule(tiny_model(), 128), LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")


def test_new_checkpoints_are_kept_beside_damaged_ones_of_later_steps(tmp_path):
    """Pruning by step number alone deleted each new checkpoint."""
    module, _ = pair()
    optimizer = make_optimizer(module, spec_of(learning_rate=1e-3))
    for step in (20, 30):
        saved = checkpoint.save(tmp_path, step, module, optimizer, {})
        (saved / "weights.safetensors").write_bytes(b"x")
    assert checkpoint.newest(tmp_path) is None
    for step in (1, 10):
        assert checkpoint.save(tmp_path, step, module, optimizer, {}).exists()
        found = checkpoint.newest(tmp_path)
        assert found is not None
        assert found.state["step"] == step


@pytest.mark.parametrize("how", ["rows", "hook"])
def test_a_step_without_any_weight_is_skipped(how):
    module, teacher = pair()
    row = Example("a", (1, 10, 11, 20), (False, False, False, True), weight=0.0 if how == "rows" else 1.0)
    weigh = (lambda s, t, place: 0.0 * place) if how == "hook" else None
    batch = collate([row], pad_id=0)
    assert accumulate(module, teacher, [batch], TokenLoss(FORWARD, weigh=weigh)) is None


def test_token_weights_are_refused_where_the_hard_label_share_reaches_one():
    with pytest.raises(Exception, match="token_weights"):
        Distill.model_validate(
            {"ce_weight": {"linear": {"from": 0.0, "to": 1.0}}, "token_weights": "entropy", "steps": 4}
        )


@pytest.mark.parametrize("of", ["teacher", "student"])
def test_the_preflight_passes_a_recipe_with_token_weights(tmp_path, of):
    places.write(tmp_path, stages=f"[{{distill: {{steps: 2, token_weights: {{entropy: {{of: {of}}}}}}}}}]")
    done = potstill("check", "r.yaml", "--json", cwd=tmp_path)
    items = {item["name"]: item for item in json.loads(done.stdout)["items"]}
    assert items["gradient of distill"]["passed"], items["gradient of distill"]["detail"]


def test_an_option_of_a_token_weight_out_of_range_is_refused_before_training():
    stage = Distill.model_validate({"token_weights": {"entropy": {"floor": 2.0}}, "steps": 4})
    with pytest.raises(RecipeError, match="floor is 2.0"):
        objective_of(stage)
    for wrong in ({}, {"entropy": {}, "position": {}}):
        with pytest.raises(SignalError, match="token_weights names"):
            DistillationLoss(token_weights=wrong)
    with pytest.raises(RecipeErrors, match="did you mean entropy"):
        DistillationLoss(token_weights="entropie")


@pytest.mark.parametrize(("dtype", "k"), [(torch.bfloat16, 64), (torch.float16, 1000)])
def test_half_precision_does_not_excuse_twice_the_mass(dtype, k):
    heavy = torch.full((1, k), math.log(2 / k)).to(dtype)
    with pytest.raises(SignalError, match="mass"):
        TopK(torch.arange(k)[None], heavy).checked()
    whole = torch.full((1, k), math.log(1 / k)).to(dtype)
    TopK(torch.arange(k)[None], whole).checked()


def test_targets_in_float64_give_zero_for_an_exact_copy():
    for seed in range(20):
        z = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        z[:, 8:] = -math.inf
        lp = z.double().log_softmax(-1)[:, :8]
        mask = torch.ones(1, dtype=torch.bool)
        out = DistillationLoss().from_logits(z, TopK(torch.arange(8)[None], lp), mask)
        assert abs(float(out.sum)) <= 1e-6


def eval_and_store(student_bias, teacher_bias, labels, **options) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 3, 4, generator=generator), torch.randn(8, 4, generator=generator)
    heads = [Head(weight, 8, torch.tensor(b)) for b in (student_bias, teacher_bias)]
    return [
        DistillationLoss(mode=mode, **options)(hidden, heads[0], hidden, heads[1], labels=labels, metrics=True).sum
        for mode in ("eval", "store")
    ]  # fmt: skip


def test_a_term_without_a_share_does_not_reach_the_evaluation():
    free, forbids = [0.0] * 8, [0.0] * 5 + [-math.inf] + [0.0] * 2
    labels = torch.tensor([[-100, 1, 2]])
    torch.testing.assert_close(*eval_and_store(forbids, free, labels, ce_weight=1.0))
    torch.testing.assert_close(*eval_and_store(forbids, forbids, torch.tensor([[-100, 5, 2]])))


@pytest.mark.parametrize("mode", ["eval", "store"])
def test_a_label_outside_the_vocabulary_is_refused(mode):
    hidden, weight = torch.randn(1, 3, 4), torch.randn(8, 4)
    loss = DistillationLoss(mode=mode, ce_weight=0.5)
    with pytest.raises(SignalError, match="id 9, the student's vocabulary has 8"):
        loss(hidden, weight, hidden, weight, labels=torch.tensor([[1, 2, 9]]))


@pytest.mark.parametrize("mode", ["eval", "store"])
def test_an_impossible_target_is_refused_in_evaluation_too(mode):
    hidden, weight = torch.randn(1, 3, 4), torch.randn(8, 4)
    forbids = Head(weight, 8, torch.tensor([0.0] * 7 + [-math.inf]))
    with pytest.raises(NotFinite, match="scored position 0"):
        DistillationLoss(mode=mode)(hidden, forbids, hidden, weight, torch.ones(1, 3))


def test_named_weights_refuse_a_gradient_from_before():
    """The division by the sum of weights at the end would divide the older gradient too."""
    module, teacher = pair()
    batch = collate(ragged_rows(3), pad_id=0)
    loss = TokenLoss(FORWARD, weigh=lambda s, t, place: 0 * place + 0.25)
    accumulate(module, teacher, [batch], loss)
    with pytest.raises(ValueError, match="zero_grad"):
        accumulate(module, teacher, [batch], loss)


def test_a_mean_with_named_weights_divides_by_their_sum():
    z, t = torch.randn(4, 5), torch.randn(4, 5)
    out = DistillationLoss(token_weights={"position": {"half_life": 1.0}}).from_logits(z, t, torch.ones(4))
    assert float(out.mean) == pytest.approx(float(out.sum) / 1.875)
    with pytest.raises(SignalError, match="named token weights"):
        TrainerLoss(tiny_model(), tiny_model(), DistillationLoss(token_weights="entropy"))


def test_every_id_that_makes_a_loss_infinite_is_named():
    student, teacher = torch.zeros(1, 6), torch.zeros(1, 6)
    student[0, 3], teacher[0, 5] = -math.inf, -math.inf
    with pytest.raises(NotFinite, match="id 3.*id 5"):
        DistillationLoss("reverse_kl").from_logits(student, teacher, torch.ones(1))


def test_the_form_of_a_head_is_read_under_the_dropout_of_an_adapter():
    model = get_peft_model(
        tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], lora_dropout=0.5)
    )
    torch.nn.init.normal_(model.base_model.model.lm_head.lora_B["default"].weight)
    assert model.training
    head_form(model)
    assert model.training


def test_an_unknown_part_of_a_package_is_refused():
    from potstill.models.source import find_source

    for name in ("package:no_such.sub/x.gguf", "package:.x/y.gguf"):
        with pytest.raises(ModelError, match="not installed"):
            find_source(name)


def test_the_teacher_is_given_all_turns_of_a_conversation(tmp_path):
    """With a template of its own the teacher is asked all turns in evaluation, as it was when it wrote."""
    turns = [("user", "w20"), ("assistant", "w40"), ("user", "w50")]
    rows = [
        {"id": f"c{i}", "messages": [{"role": r, "content": f"{c} w{60 + i}"} for r, c in turns]}
        for i in range(24)
    ]
    save_tiny(tmp_path / "other", layers=1)
    stages = "[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}]"
    places.write(tmp_path, rows, student="{model: other}", stages=stages)
    file = tmp_path / "teacher/chat_template.jinja"
    file.write_text(file.read_text().replace("{{ bos_token }}", "{{ bos_token }}w70 "))
    parts = places.read(tmp_path)
    held = parts.data.heldout[0]
    pipeline = places.after_generate(tmp_path, [Written(held.id, 0, (20, 2), "w20", "stop")])
    (question,) = questions(
        parts.readers, pipeline.examples("heldout"), parts.data.heldout, 5, generated=True
    )
    assert question.teacher_prompt_ids == tuple(parts.readers.teacher.templater.prompt_ids(held.prompt))
    assert len(question.teacher_prompt_ids) == len(question.prompt_ids) + 1


def test_weights_from_a_table_are_numbers(tmp_path):
    rows = "prompt,response,w\n" + "".join(f"w{20 + i} w{30 + i},w{40 + i},0.5\n" for i in range(30))
    places.write(tmp_path, data="{train: rows.csv, weight: w}")
    (tmp_path / "rows.csv").write_text(rows)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_proofs_on_the_student_use_its_own_tokenizer(tmp_path):
    """The proofs on the student read rows through its own tokenizer, which has fewer ids than the teacher's."""
    save_tiny(tmp_path / "other", layers=1, vocab=60)
    stages = "[{generate: {max_new_tokens: 4}}, {finetune: {steps: 1}}]"
    rows = [{"prompt": f"w{12 + i} w{90 + i}"} for i in range(24)]
    places.write(tmp_path, rows, student="{model: other}", stages=stages)
    done = potstill("check", "r.yaml", "--json", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    items = {item["name"]: item for item in json.loads(done.stdout)["items"]}
    assert items["accumulation"]["passed"], items["accumulation"]["detail"]
