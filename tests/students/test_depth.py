"""Students cut in depth."""

from __future__ import annotations

import pytest
import torch

from potstill.errors import RecipeError
from potstill.students import depth
from potstill.types import Batch
from tiny import tiny_model


def batch() -> Batch:
    ids = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    positions = torch.arange(5).repeat(2, 1)
    return Batch(ids, mask, positions, mask.bool(), ids[mask.bool()], ("a", "b"), mask.bool()[mask.bool()])


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
    assert depth.uniform(30, 20)[0] == 0
    assert depth.uniform(30, 20)[-1] == 29
    assert len(depth.uniform(30, 20)) == 20
    assert depth.uniform(5, 1) == [0]


def test_most_influential_layers_stay_in_their_order():
    assert depth.most_influential([0.5, 0.1, 0.9, 0.2], 2) == [0, 2]
