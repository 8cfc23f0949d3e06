"""Values that are fine alone and contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builders.recipes import problems, read
from potstill.recipe import plugins
from potstill.recipe.recipe import dump_yaml, parse_recipe
from potstill.recipe.yaml import load_yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _two_strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "offline.py").write_text("def build(): ...\n")
    (folder / "on_policy.py").write_text(
        'STUDENT_WRITES = "on_policy_fraction"\ndef build(*, on_policy_fraction: float = 1.0): ...\n'
    )
    for family in set(plugins.FUNCTIONS) - {"strategies"}:
        (tmp_path / family).symlink_to(plugins.PACKAGE / family)
    monkeypatch.setattr(plugins, "PACKAGE", tmp_path)


@pytest.mark.parametrize(
    ("stage", "path", "sentence"),
    [
        ({"distill": {"epochs": 1, "steps": 2}}, "steps", "both say how long to train"),
        ({"distill": {"strategy": "on_policy", "ce_weight": 0.5}}, "ce_weight", "on its own mistakes"),
        (
            {"distill": {"strategy": "on_policy", "ce_weight": {"linear": {"from": 0.5, "to": 0}}}},
            "ce_weight",
            "on its own mistakes",
        ),
        (
            {"distill": {"strategy": {"on_policy": {"on_policy_fraction": 0}}}},
            "strategy",
            "never lets the student write",
        ),
        ({"generate": {"sampling_temperature": 0, "samples": 2}}, "samples", "the same text"),
        ({"generate": {"sampling_temperature": 0, "top_p": 0.9}}, "top_p", "has no effect"),
        ({"generate": {"sampling_temperature": 0, "top_k": 9}}, "top_k", "has no effect"),
        ({"finetune": {"limit": 9}}, "limit", "has no effect without data"),
        ({"evaluate": {"metrics": ["speed", "speed"]}}, "metrics", "names a metric twice"),
    ],
)
def test_options_that_cancel_or_contradict_are_refused(stage: Any, path: str, sentence: str) -> None:
    found = problems(stage)
    verb = next(iter(stage))
    assert list(found) == [f"stages.{verb}.{path}"]
    assert sentence in found[f"stages.{verb}.{path}"]


def test_hard_labels_are_fine_where_the_data_is_mixed_in_or_the_share_is_zero() -> None:
    read({"distill": {"strategy": "on_policy"}})
    read({"distill": {"strategy": "on_policy", "ce_weight": 0}})
    read({"distill": {"strategy": {"on_policy": {"on_policy_fraction": 0.5}}, "ce_weight": 0.5}})


def test_an_unknown_strategy_and_its_wrong_option_are_reported() -> None:
    found = problems({"distill": {"strategy": "onpolicy"}})
    assert "no strategy is called 'onpolicy'; did you mean on_policy?" in found["stages.distill.strategy"]
    found = problems({"distill": {"strategy": {"on_policy": {"fraction": 1}}}})
    assert "did you mean on_policy_fraction?" in found["stages.distill.strategy.on_policy.fraction"]
    found = problems({"distill": {"strategy": {"name": "onpolicy", "options": {}}}})
    assert "did you mean on_policy?" in found["stages.distill.strategy"]
    found = problems({"distill": {"strategy": {"name": "on_policy", "on_policy_fraction": 1}}})
    assert "{NAME: {on_policy_fraction: VALUE}}" in found["stages.distill.strategy.on_policy_fraction"]


@pytest.mark.parametrize(
    ("student", "path"),
    [
        ({}, "student"),
        ({"model": "m", "from_teacher": {"keep_layers": 2}}, "student"),
        ({"from_teacher": {}}, "student.from_teacher.keep_layers"),
        ({"from_teacher": {"keep_layers": 3, "by": [0, 1]}}, "student.from_teacher.keep_layers"),
        ({"from_teacher": {"by": [1, 0]}}, "student.from_teacher.by"),
        ({"from_teacher": {"by": [1, 1]}}, "student.from_teacher.by"),
        ({"from_teacher": {"by": [-1, 1]}}, "student.from_teacher.by.0"),
        ({"from_teacher": {"by": []}}, "student.from_teacher.by"),
        ({"from_teacher": {"keep_layers": 0}}, "student.from_teacher.keep_layers"),
        ({"from_teacher": {"keep_layers": 2}, "revision": "main"}, "student.revision"),
    ],
)
def test_a_student_is_one_model_or_one_cut(student: dict[str, Any], path: str) -> None:
    assert list(problems(student=student)) == [path]


def test_a_cut_by_a_list_counts_its_layers() -> None:
    cut = read(student={"from_teacher": {"by": [0, 3, 5]}}).student.from_teacher
    assert cut is not None
    assert cut.count == 3


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:-1], COMMIT.upper()])
def test_foreign_code_runs_only_from_a_pinned_commit(revision: str | None) -> None:
    teacher = {"model": "org/m", "trust_remote_code": True, "revision": revision}
    assert "a full commit" in problems(teacher=teacher)["teacher.trust_remote_code"]
    assert list(problems(student=teacher)) == ["student.trust_remote_code"]


def test_foreign_code_from_a_pinned_commit_or_an_own_folder_is_fine() -> None:
    read(teacher={"model": "org/m", "trust_remote_code": True, "revision": COMMIT})
    read(teacher={"model": "./m", "trust_remote_code": True})


def test_a_model_inside_a_package_names_its_file() -> None:
    assert read(teacher={"model": "package:some_pack/deep/m.gguf"}).teacher.model.endswith("m.gguf")
    for model in ("package:some_pack", "package:/m.gguf", "package:some_pack/m.bin"):
        assert list(problems(teacher={"model": model})) == ["teacher.model"]


def test_heldout_rows_are_named_or_split_off_but_not_both() -> None:
    data = {"train": "t", "heldout": "h", "heldout_fraction": 0.1}
    assert list(problems(data=data)) == ["data.heldout_fraction"]
    for fraction in (0, 1):
        assert list(problems(data={"train": "t", "heldout_fraction": fraction})) == ["data.heldout_fraction"]


def test_method_and_stages_together_are_refused() -> None:
    assert "both say what to do" in problems("distill", method="kd")["method"]


def test_two_stages_of_one_name_are_refused_with_a_way_out() -> None:
    found = problems("distill", "distill", "evaluate")
    assert "2 stages are called distill" in found["stages"]
    assert "- distill: {name: polish}" in found["stages"]


@pytest.mark.parametrize("name", ["data", "stages", "evaluate"])
def test_a_stage_name_that_an_override_could_not_tell_apart_is_refused(name: str) -> None:
    assert "cannot be called" in problems({"distill": {"name": name}})["stages"]


def test_a_control_needs_a_stage_to_be_the_twin_of() -> None:
    assert "there is none" in problems("generate", "control", "distill")["stages"]
    read("distill", "control")
    read("evaluate", "distill", "control")


@pytest.mark.parametrize("wanted", [64, 65])
def test_an_answer_as_long_as_the_row_leaves_no_room_for_a_prompt(wanted: int) -> None:
    found = problems({"generate": {"max_new_tokens": wanted}}, data={"train": "t", "max_length": 64})
    assert "leaves no room for a prompt" in found["data.max_length"]


def test_contradictions_of_two_stages_are_both_reported() -> None:
    found = problems({"distill": {"epochs": 1, "steps": 1}}, {"evaluate": {"metrics": ["speed", "speed"]}})
    assert set(found) == {"stages.distill.steps", "stages.evaluate.metrics"}


def test_a_teacher_is_known_by_the_options_that_its_file_requires(tmp_path: Path) -> None:
    """Adding a kind of teacher touches no list: `teacher: {cache: …}` names the file that requires `cache`."""
    folder = tmp_path / "teachers"
    local = folder.resolve() / "local.py"
    folder.unlink()
    folder.mkdir()
    (folder / "local.py").write_text(local.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "cached.py").write_text("def build(context, *, cache: str, strict: bool = True): ...\n")
    recipe = read(teacher={"cache": "signals/"})
    assert recipe.teacher.plugin == ("cached", {"cache": "signals/"})
    assert parse_recipe(load_yaml(dump_yaml(recipe), "r.yaml")) == recipe
    assert read(teacher={"model": "org/teacher"}).teacher.plugin[0] == "local"
    assert list(problems(teacher={"cache": "signals/", "strickt": True})) == ["teacher.cached.strickt"]
