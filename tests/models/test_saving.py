"""A saved model is loaded again and compared before anything relies on it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def test_training_seals_no_student_that_its_folder_does_not_hold(tmp_path, monkeypatch):
    rows = [Example(f"r{i}", (1, 20 + i, 30, 31), (False, False, True, True)) for i in range(4)]
    start = student(tmp_path / "s", tiny_model(tie=False))
    monkeypatch.setattr(loading, "save", damaged("lm_head.weight", DAMAGES["zeroed"]))
    with pytest.raises(ModelError, match="not the one in memory"):
        trained(tmp_path, start, Memory(tiny_model(seed=1)), rows, learning_rate=1e-3)
    assert not list((tmp_path / "store").glob("train-*"))
