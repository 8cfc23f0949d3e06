"""A saved model is loaded again and compared before anything relies on it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from builders.jobs import Memory, student, trained
from builders.tiny import tiny_model, tiny_tokenizer
from potstill.errors import ModelError
from potstill.models import loading, saving
from potstill.types import Example

WEIGHTS = "model.safetensors"


def damaged(name, change):
    """What writes a folder in which one tensor is another."""
    write = loading.save

    def save(model, tokenizer, folder):
        write(model, tokenizer, folder)
        tensors = load_file(folder / WEIGHTS)
        change(tensors, name)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return save


DAMAGES = {
    "zeroed": lambda tensors, name: tensors[name].zero_(),
    "one value": lambda tensors, name: tensors[name].view(-1)[0].add_(1.0),
    "rounded": lambda tensors, name: tensors.__setitem__(name, tensors[name].bfloat16().float()),
    "not a number": lambda tensors, name: tensors[name].fill_(float("nan")),
}
PLACES = ("model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.v_proj.weight", "lm_head.weight")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_copy_that_computes_something_else_is_refused(tmp_path, monkeypatch, damage, place):
    torch.manual_seed(0)
    model = tiny_model(layers=2, tie=False)
    monkeypatch.setattr(loading, "save", damaged(place, DAMAGES[damage]))
    with pytest.raises(ModelError, match=r"not the one in memory: logits differ by"):
        saving.save(model, tiny_tokenizer(), tmp_path)


@pytest.mark.parametrize("tie", [True, False])
def test_a_faithful_copy_is_taken_and_modes_stay_as_they_were(tmp_path, tie):
    model = tiny_model(layers=2, tie=tie)
    model.train()
    model.model.layers[0].eval()
    saving.save(model, tiny_tokenizer(), tmp_path)
    assert saving.difference(model, tmp_path) == 0.0
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rounded_copy_is_half_as_large_and_computes_what_the_rounded_model_does(tmp_path, tie, dtype):
    model, rounded = tiny_model(tie=tie), tiny_model(tie=tie)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(dtype))
    sizes = saving.save(model, tiny_tokenizer(), tmp_path, dtype)
    ids = torch.tensor([[1, 10, 11, 20]])
    again = loading.load(loading.find_source(str(tmp_path)), dtype=torch.float32).model
    assert torch.equal(again(input_ids=ids).logits, rounded(input_ids=ids).logits)
    assert torch.equal(model(input_ids=ids).logits, rounded(input_ids=ids).logits)
    assert sizes["bytes"] == 2 * sizes["params"]
    assert (tmp_path / WEIGHTS).stat().st_size <= 1.1 * sizes["bytes"]
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == dtype


def test_weights_that_a_number_format_cannot_hold_are_refused_by_name(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3, 5] = -1e5
    with pytest.raises(
        ModelError, match=r"float16 ends at 65504, and lm_head.weight holds 1e\+05"
    ) as refused:
        saving.save(model, tiny_tokenizer(), tmp_path, torch.float16)
    assert "export_dtype: bfloat16" in refused.value.fix
    assert not list(tmp_path.iterdir())
    saving.save(model, tiny_tokenizer(), tmp_path, torch.bfloat16)


def test_training_seals_no_student_that_its_folder_does_not_hold(tmp_path, monkeypatch):
    rows = [Example(f"r{i}", (1, 20 + i, 30, 31), (False, False, True, True)) for i in range(4)]
    start = student(tmp_path / "s", tiny_model(tie=False))
    monkeypatch.setattr(loading, "save", damaged("lm_head.weight", DAMAGES["zeroed"]))
    with pytest.raises(ModelError, match="not the one in memory"):
        trained(tmp_path, start, Memory(tiny_model(seed=1)), rows, learning_rate=1e-3)
    assert not list((tmp_path / "store").glob("train-*"))
