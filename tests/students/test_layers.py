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
from potstill.students import _layers, depth
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


def test_half_precision_is_compared_in_fp32(monkeypatch):
    """What bf16 products of a deep model round lies above what a layer that differs a little changes."""
    weights, model = depth._kept_weights, model_of("llama")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}

    def nearly(model: Any, kept: list[int]) -> dict[str, torch.Tensor]:
        return {name: 1.02 * w if "down_proj" in name else w for name, w in weights(model, kept).items()}

    depth.cut(model, [0, 3])
    monkeypatch.setattr(depth, "_kept_weights", nearly)
    with pytest.raises(ModelError, match="its logits differ by"):
        depth.cut(model, [0, 3])
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before


def test_a_constant_that_half_precision_rounds_is_no_difference(tmp_path, monkeypatch):
    """Gemma's factor on embeddings, the square root of 40, is 0.2 % smaller in bf16; without the student's in its
    place a cut of the teacher as it is trained would be refused."""
    sizes = SIZES | {"hidden_size": 40, "initializer_range": 1.0}
    config = transformers.Gemma3TextConfig(**sizes, layer_types=["full_attention"] * 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save(transformers.Gemma3ForCausalLM(config).bfloat16(), tmp_path)
    model = load(tmp_path, torch.bfloat16)
    rounded = model.model.embed_tokens.embed_scale
    assert rounded.dtype == torch.bfloat16
    monkeypatch.setattr(_layers, "TOLERANCE", 1e-5)
    depth.cut(model, [0, 3])
    assert model.model.embed_tokens.embed_scale is rounded


def test_a_block_that_fails_leaves_the_teacher_as_it_was():
    model = model_of("llama", dtype=torch.bfloat16)
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}

    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = anatomy.layers(model)[3].mlp.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        depth.cut(model, [0, 3])
    handle.remove()
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in anatomy.layers(model))


@torch.no_grad()
def test_logits_that_differ_from_the_bypassed_teachers_are_refused(monkeypatch):
    """Whatever the reason: here a layer's weights are those of another one."""
    weights = depth._kept_weights

    def swapped(model: Any, kept: list[int]) -> dict[str, torch.Tensor]:
        return weights(model, kept[::-1])

    monkeypatch.setattr(depth, "_kept_weights", swapped)
    with pytest.raises(ModelError, match=r"cannot be cut to layers \[0, 3\]: its logits differ by"):
        depth.cut(model_of("llama"), [0, 3])
