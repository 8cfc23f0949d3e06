"""Recipes with several teachers: checked, trained, measured and reported, or refused in time."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from builders import places, recipes
from builders.ensembles import WORDS
from builders.tiny import save_tiny
from potstill.errors import DataError, RecipeError, RecipeErrors
from potstill.runs.setup import open_recipe, set_up
from potstill.stages import _captured


def rows_by_subject(count: int = 24) -> list[dict[str, Any]]:
    return [row | {"subject": WORDS[i % 2]} for i, row in enumerate(places.answered(count))]


TWO = (
    "{ensemble: [{model: teacher, rows: maths}, {model: other, rows: [code, law], weight: 2}], route: subject"
)


def place_of_two(folder: Any, rows: Any = None, **changes: str) -> Any:
    save_tiny(folder / "other", seed=2)
    save_tiny(folder / "small", seed=5, layers=1)
    sections = {"teacher": TWO + "}", "student": "{model: small}"} | changes
    return places.write(folder, rows_by_subject() if rows is None else rows, **sections)


def test_a_recipe_with_experts_is_checked_trained_and_reported_with_every_name(tmp_path):
    place = place_of_two(
        tmp_path,
        stages="[{distill: {steps: 2, tokens_per_step: 8}}, {evaluate: {metrics: [likelihood]}}]",
        teacher=TWO + ", weigh: confidence}",
    )
    report = places.checked(place)
    items = {item.name: item for item in report.items}
    chosen = {default.path: (default.value, default.source) for default in report.defaults}
    assert chosen["teacher.combine"] == ("probabilities", "right for forward KL")
    assert (
        "teacher (weight 0.333, rows maths); other (weight 0.667, rows code, law)" in items["teacher"].detail
    )
    from builders.cli import potstill

    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    lines = (place / "runs/r/stages/distill/metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    logged = [event for event in events if event["event"] == "teacher_weights"]
    assert [event["step"] for event in logged] == [1, 2]
    subject = {row["id"]: row["subject"] for row in rows_by_subject()}
    for event in logged:
        for row, weights in event["rows"].items():
            assert weights == {"teacher": subject[row] == "maths", "other": subject[row] == "code"}
    summary = places.summary(place)
    assert summary["teacher"]["name"] == "teacher + other"
    assert [member["name"] for member in summary["teacher"]["members"]] == ["teacher", "other"]
    assert "teacher + other" in (place / "runs/r/report.html").read_text()
    assert summary["after"]["forward_kl"]["value"] > 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"rows": [{"subject": "law"}]}, RecipeError, "no row is for the teacher"),
        ({"rows": [{"subject": "art"}]}, RecipeError, "1 rows hold 'art' in the column 'subject'"),
        ({"rows": [{"subject": None}]}, DataError, "nothing in the column 'subject'"),
        (
            {"teacher": "{ensemble: [{model: teacher}, {modle: other}]}"},
            RecipeErrors,
            r"teacher\.ensemble\.1",
        ),
        (
            {"teacher": TWO + ", combine: losses}", "stages": "[capture, {distill: {steps: 1}}]"},
            RecipeError,
            "stages.capture: would keep the average of the teachers",
        ),
        ({"stages": "[generate, distill]"}, RecipeError, "Set teacher.writes to the teacher that writes"),
        (
            {"student": "{from_teacher: {keep_layers: 1}}"},
            RecipeError,
            "cuts the teacher, and its weights are not in this process",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_a_weight_is_loaded(tmp_path, changes, error, words):
    rows = rows_by_subject()
    if "rows" in changes:
        subject = changes.pop("rows")[0]
        rows = (
            [row | subject for row in rows] if subject["subject"] == "law" else [rows[0] | subject, *rows[1:]]
        )
    place = place_of_two(tmp_path, rows, **changes)
    with pytest.raises(error, match=words):
        set_up(open_recipe(place / "r.yaml"))


@pytest.mark.parametrize("option", ["teacher_share: 0.2", "proposals: 5"])
def test_several_teachers_cannot_write_beside_a_student_and_say_so_before_a_run(tmp_path, option):
    """`method: minillm` wrote all answers and warmed the student up before it said so."""
    save_tiny(tmp_path / "other", seed=1)
    stage = f"[{{distill: {{steps: 1, strategy: {{on_policy: {{{option}}}}}}}}}]"
    teacher = "{ensemble: [{model: teacher}, {model: other}]}"
    place = places.write(tmp_path, teacher=teacher, student="{model: other}", stages=stage)
    with pytest.raises(RecipeError, match="write beside the student") as refused:
        places.read(place)
    assert refused.value.path == f"stages.distill.strategy.on_policy.{option.partition(':')[0]}"


@pytest.mark.parametrize(
    ("whole", "batchwise", "asked"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_held_out_rows_are_measured_on_whole_distributions_where_anyone_has_them(
    monkeypatch, whole, batchwise, asked
):
    """Several teachers have no hidden state, so what is stored of held-out rows is as little as of others."""
    kept = SimpleNamespace(provides=frozenset({"dense" if whole else "topk_sampled"}))
    ours = SimpleNamespace(provides=frozenset({"dense"}), batchwise=batchwise, reads=object())
    monkeypatch.setattr(_captured, "_cached", lambda *_: SimpleNamespace(heldout=lambda: kept))
    context: Any = SimpleNamespace(setup=SimpleNamespace(teacher=ours))
    state: Any = SimpleNamespace(captured=object())
    assert _captured.measuring(state, context) is (ours if asked else kept)


@pytest.mark.parametrize(
    "written",
    [
        {"ensemble": [{"model": "x"}, {"model": "y"}]},
        {"ensemble": {"ensemble": [{"model": "x"}, {"model": "y"}]}},
    ],
)
def test_a_recipe_names_its_teachers_and_is_read_again(written):
    from potstill.recipe import yaml
    from potstill.recipe.recipe import dump_yaml, expand, parse_recipe

    recipe = recipes.read(teacher=written)
    assert recipe.teacher.plugin == ("ensemble", {"ensemble": [{"model": "x"}, {"model": "y"}]})
    assert parse_recipe(yaml.load_yaml(dump_yaml(recipe), "again")) == recipe
    assert [stage.verb for stage in expand(recipe).stages] == ["generate", "distill", "evaluate"]
