"""Every layer of a cut does what it did in the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from builders.families import FAMILIES, SIZES, model_of
from builders.tiny import tiny_tokenizer
from potstill.errors import ModelError
from potstill.models import anatomy, loading
from potstill.students import depth
from potstill.students._layers import bypassed


def save(model: Any, folder: Path) -> None:
    loading.save(model, tiny_tokenizer(), folder)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return loading.load(loading.find_source(str(folder)), dtype=dtype).model


def ids() -> torch.Tensor:
    return torch.randint(4, 128, (2, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_of_any_family_is_the_same_when_loaded(tmp_path, family):
    model = model_of(family)
    save(model, tmp_path)
    torch.testing.assert_close(load(tmp_path)(ids()).logits, model(ids()).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", [[0, 2, 3, 5], [1, 4]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_computes_what_its_layers_computed(tmp_path, family, kept, dtype):
    """Also when it has been saved: what a config forgets of a layer is lost there."""
    save(model_of(family).to(dtype), tmp_path / "teacher")
    student = depth.cut(load(tmp_path / "teacher", dtype), kept)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    save(student, tmp_path / "student")
    saved, full = load(tmp_path / "student"), load(tmp_path / "teacher")
    with bypassed(full, kept):
        expected = full(ids()).logits
    for cut in (student, saved):
        torch.testing.assert_close(cut(ids()).logits, expected, atol=1e-3, rtol=1e-3)


def test_the_teacher_is_whole_again_after_a_comparison():
    model = model_of("llama")
    before = model(ids()).logits
    depth.cut(model, [0, 3])
    torch.testing.assert_close(model(ids()).logits, before)


def test_a_layer_whose_work_depends_on_its_number_is_refused_by_name():
    """DiffLlama weighs its two attentions by the layer's number."""
    config = transformers.DiffLlamaConfig(**SIZES)
    model = transformers.DiffLlamaForCausalLM(config).eval()
    with pytest.raises(
        ModelError, match=r"DiffLlama\w+ cannot be cut to layers \[0, 2\]: a layer's lambda_init"
    ):
        depth.cut(model, [0, 2])
    assert len(anatomy.layers(depth.cut(model, [0, 1]))) == 2


def test_layers_by_a_period_are_refused_by_name():
    config = transformers.JambaConfig(
        **SIZES, attn_layer_period=3, attn_layer_offset=1, num_experts=1, num_experts_per_tok=1,
        use_mamba_kernels=False, mamba_d_state=4, mamba_expand=1, mamba_dt_rank=4,
    )  # fmt: skip
    model = transformers.JambaForCausalLM(config).eval()
    with pytest.raises(ModelError, match=r"Jamba\w+ cannot be cut .*attn_layer_offset, attn_layer_period"):
        depth.cut(model, [0, 2, 3])


@torch.no_grad()
def test_logits_that_differ_from_the_bypassed_teachers_are_refused(monkeypatch):
    """Whatever the reason: here a layer's weights are those of another one."""
    weights = depth._kept_weights

    def swapped(model: Any, kept: list[int]) -> dict[str, torch.Tensor]:
        return weights(model, kept[::-1])

    monkeypatch.setattr(depth, "_kept_weights", swapped)
    with pytest.raises(ModelError, match=r"cannot be cut to layers \[0, 3\]: its logits differ by"):
        depth.cut(model_of("llama"), [0, 3])
