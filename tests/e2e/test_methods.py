"""Every method, on the recipe of teacher, student and data alone, runs to its end."""

from __future__ import annotations

import pytest

import potstill
from builders import places
from builders.chats import write_lines
from builders.recipes import names_of
from potstill.console import Console
from potstill.recipe.methods import METHODS

STAGES = {
    "generate": {"max_new_tokens": 6, "batch_rows": 24, "filters": "null"},
    "warm_up": {"epochs": "null", "steps": 1, "tokens_per_step": 40},
    "distill": {"steps": 4, "tokens_per_step": 24, "guards": "null"},
    "finetune": {"steps": 2, "tokens_per_step": 40},
    "evaluate": {"samples": 4, "resamples": 100, "max_new_tokens": 4, "metrics": "[likelihood, agreement]"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One teacher, one store: what methods share is made once."""
    place = places.write(tmp_path_factory.mktemp("methods"), data="{train: rows.jsonl, heldout: held.jsonl}")
    write_lines(place / "held.jsonl", *({**row, "id": f"h{row['id']}"} for row in places.answered(40)[32:]))
    return place


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_to_its_end(place, monkeypatch, method):
    """The student learns in every training stage, and is measured beside its teacher."""
    recipe = {key: value for key, value in places.RECIPE.items() if key != "stages"}
    recipe |= {"data": "{train: rows.jsonl, heldout: held.jsonl}", "method": method}
    (place / f"{method}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))
    stages = names_of(method)
    overrides = [f"{name}.{key}={value}" for name in stages for key, value in STAGES[name].items()]
    if "on_policy" in str(METHODS[method].stages):
        overrides.append("distill.strategy.on_policy.max_new_tokens=4")
    monkeypatch.chdir(place)
    result = potstill.run(f"{method}.yaml", overrides, console=Console(quiet=True))
    assert result.summary["train"]["steps"] > 0
    assert result.summary["after"]["forward_kl"] != result.summary["before"]["forward_kl"]
    for name in stages:
        assert (place / f"runs/{method}/stages/{name}").exists()
