"""Students cut in depth."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from builders.tiny import save_tiny, tiny_model
from potstill.console import Console
from potstill.errors import ModelError, RecipeError
from potstill.models import loading
from potstill.students import depth
from potstill.students._built import StudentContext
from potstill.types import Batch, Example


def batch() -> Batch:
    ids = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    positions = torch.arange(5).repeat(2, 1)
    return Batch(ids, mask, positions, mask.bool(), ids[mask.bool()], ("a", "b"), mask.bool()[mask.bool()])


@pytest.fixture
def context(tmp_path: Path) -> StudentContext:
    source = loading.find_source(str(save_tiny(tmp_path / "teacher", layers=4)))
    rows = [Example(f"r{n}", tuple(range(n, n + 9)), (False,) * 9) for n in (4, 30, 60)]
    return StudentContext(
        teacher=lambda: loading.load(source, dtype=torch.float32),
        fingerprint="t",
        layers=4,
        examples=lambda: rows,
        base=tmp_path,
        device=torch.device("cpu"),
        console=Console(quiet=True),
    )


@torch.no_grad()
def test_block_influence_is_one_minus_the_mean_cosine_over_real_positions():
    model = tiny_model(layers=3)
    b = batch()
    states = model(b.input_ids, attention_mask=b.attention_mask, output_hidden_states=True).hidden_states
    entering = list(states[:3])
    leaving = []
    hooks = [
        layer.register_forward_hook(lambda m, i, o: leaving.append(o if torch.is_tensor(o) else o[0]))
        for layer in model.model.layers
    ]
    model(b.input_ids, attention_mask=b.attention_mask)
    [hook.remove() for hook in hooks]
    real = b.attention_mask.bool()
    expected = [
        float((1 - torch.cosine_similarity(x, y, dim=-1))[real].mean())
        for x, y in zip(entering, leaving, strict=True)
    ]
    assert depth.block_influence(model, [b]) == pytest.approx(expected, abs=1e-5)


def test_padding_does_not_change_block_influence():
    model = tiny_model(layers=3)
    b = batch()
    alone = [Batch(b.input_ids[i : i + 1, :n], b.attention_mask[i : i + 1, :n], b.position_ids[i : i + 1, :n],
                   b.predicts[i : i + 1, :n], b.targets, b.row_ids, b.hard) for i, n in ((0, 5), (1, 3))]  # fmt: skip
    assert depth.block_influence(model, [b]) == pytest.approx(depth.block_influence(model, alone), abs=1e-5)


def test_the_cut_student_computes_what_the_kept_layers_compute():
    model = tiny_model(layers=4)
    student = depth.cut(model, [0, 2, 3])
    assert student.config.num_hidden_layers == 3
    b = batch()
    x = b.input_ids[:1]
    skipped = tiny_model(layers=4)
    skipped.model.layers = torch.nn.ModuleList([skipped.model.layers[i] for i in (0, 2, 3)])
    for index, layer in enumerate(skipped.model.layers):
        layer.self_attn.layer_idx = index
    skipped.config.num_hidden_layers = 3
    torch.testing.assert_close(student(x).logits, skipped(x).logits)
    student.model.embed_tokens.weight.data.zero_()
    assert model.model.embed_tokens.weight.abs().sum() > 0


def test_a_tied_student_stays_tied():
    student = depth.cut(tiny_model(layers=2, tie=True), [0])
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()


def test_all_layers_kept_gives_the_teacher_itself():
    model = tiny_model(layers=3)
    b = batch()
    torch.testing.assert_close(depth.cut(model, [0, 1, 2])(b.input_ids).logits, model(b.input_ids).logits)


def test_layers_that_do_not_exist_are_refused():
    for kept in ([], [0, 4], [1, 1], [-1]):
        with pytest.raises(RecipeError, match="cannot keep layers"):
            depth.cut(tiny_model(layers=4), kept)


def test_uniform_keeps_both_ends():
    kept = depth.uniform(30, 20)
    assert (kept[0], kept[-1], len(kept)) == (0, 29, 20)
    assert {b - a for a, b in pairwise(kept)} == {1, 2}
    assert depth.uniform(5, 1) == [0]


def test_most_influential_layers_stay_in_their_order():
    assert depth.most_influential([0.5, 0.1, 0.9, 0.2], 2) == [0, 2]


def test_a_built_student_keeps_the_most_influential_layers(context: StudentContext):
    built = depth.build(context, keep_layers=2)
    teacher = context.teacher()
    influence = depth.block_influence(teacher.model, context.batches("rows"))
    assert built.facts["influence"] == influence
    assert built.facts["kept_layers"] == depth.most_influential(influence, 2)
    assert built.facts["of"] == 4
    expected = depth.cut(teacher.model, built.facts["kept_layers"]).state_dict()
    for name, tensor in built.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert built.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()


def test_an_even_cut_measures_nothing_and_counts_the_teachers_parameters(context: StudentContext):
    facts = depth.build(context, keep_layers=1, by="uniform").facts
    assert facts["teacher_params"] == sum(p.numel() for p in context.teacher().model.parameters())
    assert facts["influence"] == []


def test_listed_layers_are_kept_without_a_measurement(context: StudentContext):
    blind = replace(context, examples=lambda: pytest.fail("calibration rows were read"))
    assert depth.build(blind, by=[0, 3]).facts["kept_layers"] == [0, 3]
    assert depth.build(blind, keep_layers=2, by=[1, 2]).facts["kept_layers"] == [1, 2]
    assert depth.build(blind, keep_layers=2, by="uniform").facts["kept_layers"] == [0, 3]


@pytest.mark.parametrize("options", [{"keep_layers": 5}, {"by": [0, 4]}])
def test_a_cut_of_more_layers_than_the_teacher_has_is_refused_before_its_weights_are_loaded(context, options):
    blind = replace(context, teacher=lambda: pytest.fail("weights were loaded"))
    with pytest.raises(RecipeError, match="needs 5 layers, the teacher has 4"):
        depth.check(blind, **options)


def test_a_teacher_whose_weights_are_not_finite_is_refused(context: StudentContext):
    loaded = context.teacher()
    loaded.model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        depth.build(replace(context, teacher=lambda: loaded), keep_layers=2)
