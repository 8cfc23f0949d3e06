"""Options of engines that cannot be are refused when a recipe is read, so that a check knows them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builders import places, served
from potstill.errors import RecipeError

NOWHERE: Any = SimpleNamespace(url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize("engine", ["openai", "batch"])
@pytest.mark.parametrize(
    ("option", "priced", "said"),
    [
        ("retry_truncated: 128", True, "is 128, and generate.max_new_tokens is 128"),
        ("budget_money: 5", False, "is no limit without a price"),
        ("attempts: 0", True, "cannot be 0"),
    ],
)
def test_a_recipe_with_an_option_that_cannot_be_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, option: str, priced: bool, said: str
) -> None:
    monkeypatch.setenv(served.KEY, served.CANARY)
    more = f"stages: [{{generate: {{engine: {{{engine}: {{{option}}}}}}}}}, finetune]\n"
    served.write(tmp_path, NOWHERE, more=more)
    if not priced:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(recipe.read_text().replace(", price: {input: 1, output: 10}", ""))
    with pytest.raises(RecipeError) as raised:
        places.read(tmp_path)
    assert said in raised.value.message
    assert raised.value.path == f"generate.engine.{engine}.{option.partition(':')[0]}"
