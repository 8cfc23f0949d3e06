"""The model of the hub that a student's card names as its base."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from potstill.runs.run import _base_model


@pytest.mark.parametrize(
    ("model", "base"), [("gpt2", "openai-community/gpt2"), ("org/small", "org/small"), ("here", "")]
)
@pytest.mark.parametrize("cut", [True, False])
def test_it_has_its_organisation_and_a_folder_is_none(tmp_path, model, base, cut):
    (tmp_path / "here").mkdir()
    sides = [SimpleNamespace(plugin=(name, {"model": model})) for name in ("local", "model")]
    recipe = SimpleNamespace(teacher=sides[0], student=sides[1])
    parts = SimpleNamespace(student=SimpleNamespace(cut=cut), base=tmp_path)
    assert _base_model(recipe, parts) == base
