"""Each law of the preflight fails where it is broken, and only that one."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny, tiny_model
from potstill.check import check, proofs
from potstill.console import Console
from potstill.teachers.local import LocalTeacher
from potstill.train import step

TWICE = """
from potstill.divergences import forward_kl

SUPPORTS, TEMPERATURE_POWER, VANISHES = forward_kl.SUPPORTS, 2, True


def twice(student_lp, teacher_lp):
    value, partial = forward_kl.value_and_partial(student_lp, teacher_lp)
    return value, 2 * (partial - partial.mean())
"""


def failures(place) -> list[str]:
    report = check(place / "r.yaml", console=Console(quiet=True))
    return [item.name for item in report.items if not item.passed]


def test_all_laws_hold_on_a_sound_recipe(tmp_path):
    places.write(tmp_path)
    assert failures(tmp_path) == []


def test_a_wrong_partial_derivative_fails_the_gradient(tmp_path, monkeypatch):
    (tmp_path / "twice_for_a_test.py").write_text(TWICE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "twice_for_a_test", raising=False)
    places.write(tmp_path, stages="[{distill: {steps: 2, divergence: 'twice_for_a_test:twice'}}]")
    assert failures(tmp_path) == ["gradient of distill"]


def test_a_teacher_that_differs_from_itself_fails_the_self_teacher(tmp_path, monkeypatch):
    def another(teacher, **options):
        return LocalTeacher(tiny_model(seed=9).to(teacher.device, teacher.dtype), **options)

    monkeypatch.setattr(proofs, "LocalTeacher", another)
    places.write(tmp_path)
    assert failures(tmp_path) == ["self-teacher of distill"]


def test_a_micro_batch_that_is_lost_fails_the_accumulation(tmp_path, monkeypatch):
    def first_only(module, teacher, batches, loss):
        return step.accumulate(module, teacher, batches[:1], loss)

    monkeypatch.setattr(proofs, "accumulate", first_only)
    places.write(tmp_path)
    assert failures(tmp_path) == ["accumulation"]


def test_a_machine_without_room_for_both_models_fails_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    places.write(tmp_path)
    assert failures(tmp_path) == ["memory"]


@pytest.mark.parametrize("of", ["teacher", "student"])
def test_the_preflight_passes_a_recipe_with_token_weights(tmp_path, of):
    places.write(tmp_path, stages=f"[{{distill: {{steps: 2, token_weights: {{entropy: {{of: {of}}}}}}}}}]")
    done = potstill("check", "r.yaml", "--json", cwd=tmp_path)
    items = {item["name"]: item for item in json.loads(done.stdout)["items"]}
    assert items["gradient of distill"]["passed"], items["gradient of distill"]["detail"]


def test_the_proofs_on_the_student_use_its_own_tokenizer(tmp_path):
    """The proofs on the student read rows through its own tokenizer, which has fewer ids than the teacher's."""
    save_tiny(tmp_path / "other", layers=1, vocab=60)
    stages = "[{generate: {filters: null, max_new_tokens: 4}}, {finetune: {steps: 1}}]"
    rows = [{"prompt": f"w{12 + i} w{90 + i}"} for i in range(24)]
    places.write(tmp_path, rows, student="{model: other}", stages=stages)
    done = potstill("check", "r.yaml", "--json", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    items = {item["name"]: item for item in json.loads(done.stdout)["items"]}
    assert items["accumulation"]["passed"], items["accumulation"]["detail"]
