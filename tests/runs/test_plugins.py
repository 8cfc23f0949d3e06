"""Plug-ins are imported and their options tried before anything else, and their faults are told as their own."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.cli import potstill

STAGES = "[{generate: {filters: null, max_new_tokens: 3}}, {distill: {steps: 1}}, {evaluate: {samples: 2, max_new_tokens: 3}}]"
MODULES = {
    "needs_another": "import no_such_module_at_all\ndef x(): ...\n",
    "fails_at_import": "raise ZeroDivisionError('at import')\ndef x(): ...\n",
    "fails_when_called": "def x(*args, **others):\n    raise KeyError('mine')\n",
}
PLACES = (
    "distill.divergence={}", "distill.strategy={}", "distill.token_weights={}", "generate.engine={}",
    "evaluate.metrics=[{}]",
)  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    return places.write(tmp_path, places.prompts(), stages=STAGES)


@pytest.mark.parametrize("command", [("check", "--quick"), ("run",)], ids=["check --quick", "run"])
@pytest.mark.parametrize("module", ["needs_another", "fails_at_import"])
@pytest.mark.parametrize("where", PLACES)
def test_a_plugin_that_cannot_be_imported_is_refused_before_anything_is_written(
    place, where, module, command
):
    done = potstill(*command, "r.yaml", where.format(f"{module}:x"), cwd=place)
    assert done.returncode == 2, done.stderr
    assert f"error: stages.{where.split('=')[0]}: {module} cannot be imported" in done.stderr
    assert not list(place.glob("runs/.store/*"))


@pytest.mark.parametrize("command", [("check", "--quick"), ("run",)], ids=["check --quick", "run"])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("distill.divergence={jsd: {beta: 2.0}}", "beta is 2.0"),
        ("distill.divergence={jsd: {beta: {linear: {from: 0.0, to: 2.0}}}}", "beta is 2.0"),
        ("distill.divergence={renyi: {r: -1.0}}", "r is -1.0"),
        ("distill.strategy={on_policy: {samples: 0}}", "strategy.on_policy.samples: samples cannot be 0"),
        ("distill.token_weights={position: {half_life: -1.0}}", "half_life"),
    ],
)
def test_options_that_a_plugin_refuses_are_refused_by_check_as_by_run(place, command, option, words):
    done = potstill(*command, "r.yaml", option, cwd=place)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert not list(place.glob("runs/.store/*"))


@pytest.mark.parametrize("where", ["distill.strategy={}", "generate.engine={}", "evaluate.metrics=[{}]"])
def test_the_fault_of_a_plugin_is_told_as_its_own(place, where):
    done = potstill("run", "r.yaml", where.format("fails_when_called:x"), "--json", cwd=place)
    assert done.returncode == 2
    assert "fails_when_called.py" in done.stderr
    assert "error: fails_when_called:x failed: KeyError: 'mine'" in done.stderr
    assert "bug in potstill" not in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "plugin"
    assert "fails_when_called:x failed" in potstill("status", "runs/r", cwd=place).stdout
