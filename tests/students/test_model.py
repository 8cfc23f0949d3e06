"""Students from another model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from builders.tiny import save_tiny, tiny_model
from potstill.errors import ModelError
from potstill.students import model
from potstill.students._built import StudentContext


def no_call() -> Any:
    pytest.fail("a student of its own needs neither teacher nor rows")


@pytest.fixture
def context(tmp_path: Path) -> StudentContext:
    return StudentContext(no_call, "t", None, base=tmp_path, device=torch.device("cpu"), examples=no_call)


def test_a_path_starts_from_the_base_folder(tmp_path: Path, context: StudentContext) -> None:
    save_tiny(tmp_path / "small", layers=1)
    built = model.build(context, model="small")
    expected = tiny_model(layers=1)
    for name, tensor in built.model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert model.parameters(context, model="small") == sum(p.numel() for p in expected.parameters())


def test_half_precision_weights_become_fp32(tmp_path: Path, context: StudentContext) -> None:
    save_tiny(tmp_path / "small")
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "small")
    assert {p.dtype for p in model.build(context, model="small").model.parameters()} == {torch.float32}


def test_a_path_that_does_not_exist_is_refused(context: StudentContext) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        model.build(context, model="./absent")
