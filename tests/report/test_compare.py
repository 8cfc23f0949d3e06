"""Runs side by side: grouped by recipe minus seed, on the same held-out rows, every number from the same prompts."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from builders import made_up
from builders.cli import potstill
from builders.compared import PROMPTS, run, study
from potstill.errors import ArtifactError, RecipeError
from potstill.report import compare_files, page
from potstill.report.compare import Comparison, compare
from potstill.report.numbers import shown


def line(comparison: Comparison, key: str) -> Any:
    return next(line for line in comparison.lines if line.about.key == key)


def test_runs_that_differ_in_their_seed_alone_are_one_group_with_mean_and_interval(tmp_path):
    comparison = compare(study(tmp_path))
    assert [(group.name, group.seeds) for group in comparison.groups] == [
        ("slow-1", (1, 2, 3)),
        ("fast-3", (1, 2, 3)),
    ]
    slow, fast = line(comparison, "forward_kl").means
    assert slow.value == pytest.approx(PROMPTS.mean())
    assert fast.value == pytest.approx(PROMPTS.mean() - 0.1)
    assert slow.low < PROMPTS.mean() < slow.high
    assert slow.n == 80


def test_differences_are_paired_by_prompt_and_by_seed(tmp_path):
    comparison = compare(study(tmp_path))
    (apart,) = line(comparison, "forward_kl").differences
    assert (apart.value, apart.low, apart.high) == pytest.approx((-0.1, -0.1, -0.1))
    (ppl,) = line(comparison, "ppl").differences
    means = line(comparison, "ppl").means
    assert ppl.value == pytest.approx(means[1].value - means[0].value)


def test_the_settings_in_which_recipes_differ_are_named(tmp_path):
    comparison = compare(study(tmp_path))
    assert comparison.settings == (("heal.learning_rate", ("0.001", "0.01")),)
    rows = {"train": {"rows": 9, "sha256": "00" * 32}, "heldout": made_up.summary()["data"]["heldout"]}
    other = compare([tmp_path / "slow-1", run(tmp_path, "other", 1, data=rows)])
    assert other.settings == (("rows of data.train", ("4400 (sha256 5e5e5e5e)", "9 (sha256 00000000)")),)


def test_the_verdict_says_what_the_paired_intervals_say(tmp_path):
    folders = study(tmp_path)
    (said,) = compare(folders).sentences()
    assert said == (
        "Prompt by prompt against slow-1, fast-3 is clearly better in KL(teacher‖student) and Perplexity; "
        "clearly worse in Top-1 agreement."
    )
    assert list(compare(folders[:3]).sentences()) == ["All runs are of one recipe, with seeds 1, 2, 3."]


def test_few_seeds_and_other_teachers_are_noted(tmp_path):
    one, two = study(tmp_path)[:2]
    teacher = made_up.summary()["teacher"] | {"name": "another"}
    other = run(tmp_path, "other", rate=0.5, teacher=teacher)
    notes = " ".join(compare([one, two, other]).notes())
    assert "on the same 200 held-out rows" in notes
    assert "fewer than 5 seeds are too narrow" in notes
    assert "one seed the interval tells nothing" in notes
    assert "different teachers" in notes
    assert "different teachers" not in " ".join(compare([one, two]).notes())


def test_runs_on_other_held_out_rows_are_refused_by_name(tmp_path):
    rows = {"train": {"rows": 9, "sha256": "00"}, "heldout": {"rows": 200, "sha256": "b2"}}
    folders = [
        run(tmp_path, "a"),
        run(tmp_path, "b", data=rows),
        run(tmp_path, "c"),
        run(tmp_path, "d", data=rows),
    ]
    with pytest.raises(RecipeError, match="b and d were not measured on the held-out rows of a"):
        compare(folders)


def test_figures_on_other_answers_have_no_paired_difference(tmp_path):
    """The held-out rows are the same, and the teacher answered them anew."""
    comparison = compare([run(tmp_path, "a"), run(tmp_path, "b", rate=0.1, on="other answers")])
    (apart,) = line(comparison, "forward_kl").differences
    assert (apart.value, apart.reason) == (None, "not measured on the same prompts")
    assert line(comparison, "forward_kl").means[1].interval is not None
    assert "not compared in" in next(comparison.sentences())
    assert any("other answers to these rows" in note for note in comparison.notes())


def test_a_run_that_kept_no_prompts_is_shown_with_its_own_interval(tmp_path):
    comparison = compare([run(tmp_path, "a"), run(tmp_path, "b", rate=0.1, kept=False)])
    value = line(comparison, "forward_kl").means[1]
    assert value.value == pytest.approx(PROMPTS.mean())
    assert value.interval is not None
    assert line(comparison, "forward_kl").differences[0].reason == "not measured on the same prompts"
    assert "No paired difference with b" in " ".join(comparison.notes())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda place: [run(place, "a"), place], RecipeError, "holds no run"),
        (lambda place: [run(place, "a"), run(place, "b", after={})], RecipeError, "b was not evaluated"),
        (lambda place: [run(place, "a"), place / "a/../a"], RecipeError, "are one run"),
        (lambda place: [run(place, "a"), changed(run(place, "b"))], ArtifactError, "b is not finished"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(tmp_path, make, error, words):
    with pytest.raises(error, match=words):
        compare(make(tmp_path))


def changed(folder: Path) -> Path:
    (folder / "recipe.yaml").write_text("version: 1\n")
    return folder


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    folders = [run(tmp_path / "one", "r"), run(tmp_path / "two", "r", rate=0.5)]
    assert [group.name for group in compare(folders).groups] == list(map(str, folders))


def cells(text: str) -> Sequence[Sequence[str]]:
    return [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in text.splitlines()
        if row.startswith("|")
    ]


def test_the_files_hold_the_same_figures(tmp_path):
    comparison = compare(study(tmp_path))
    written = compare_files.write(comparison, tmp_path / "study.v1")
    assert {kind: path.name for kind, path in written.items()} == {
        "html": "study.v1.html",
        "csv": "study.v1.csv",
        "md": "study.v1.md",
    }
    table = cells(written["md"].read_text())
    assert table[0] == ["", "slow-1 (seeds 1, 2, 3)", "fast-3 (seeds 1, 2, 3)", "fast-3 − slow-1"]
    kl = next(row for row in table if row[0].startswith("KL(teacher‖student)"))
    rows = list(csv.DictReader(written["csv"].read_text().splitlines()))
    means = [row for row in rows if row["figure"] == "forward_kl" and not row["run"]]
    assert [float(row["value"]) for row in means] == pytest.approx([PROMPTS.mean(), PROMPTS.mean() - 0.1])
    assert float(means[1]["difference"]) == pytest.approx(-0.1)
    assert means[1]["against"] == "slow-1"
    figures = line(comparison, "forward_kl")
    assert kl[1:] == [shown(figure) for figure in (*figures.means, *figures.differences)]
    html = written["html"].read_text()
    for cell in kl[1:]:
        assert cell.partition(" (")[0] in html
    single = [row for row in rows if row["figure"] == "forward_kl" and row["run"] == "fast-2"]
    assert [row["seed"] for row in single] == ["2"]


def test_the_page_keeps_the_rules_of_a_runs_page(tmp_path):
    html = compare_files.html(compare(study(tmp_path)))
    assert page.frame()["policy"] in html.replace("&#39;", "'")
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!#|data:)", html)
    assert html == compare_files.html(
        compare(sorted(tmp_path.glob("slow*")) + [tmp_path / f"fast-{n}" for n in (3, 1, 2)])
    )


def test_markup_in_a_name_is_shown_as_written(tmp_path):
    name = "a<b>|c\x1b"
    html = compare_files.html(compare([run(tmp_path, name), run(tmp_path, "d", rate=0.3)]))
    assert "<b>|" not in html
    assert "\x1b" not in html
    text = compare_files.markdown(compare([tmp_path / name, tmp_path / "d"]))
    assert "a<b>\\|c" in text
    assert "\x1b" not in text


def test_the_command_writes_three_files_beside_the_runs_and_says_the_verdict(tmp_path):
    folders = [str(folder.relative_to(tmp_path)) for folder in study(tmp_path)]
    done = potstill("report", *folders, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Prompt by prompt against slow-1, fast-3 is clearly better in")
    assert {p.name for p in tmp_path.glob("comparison.*")} == {
        "comparison.html",
        "comparison.csv",
        "comparison.md",
    }
    done = potstill("report", *folders, "--to", "pilot", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert [run["seed"] for run in result["groups"][1]["runs"]] == [1, 2, 3]
    assert result["groups"][1]["differences"]["forward_kl"]["value"] == pytest.approx(-0.1)
    assert (tmp_path / "pilot.csv").is_file()


def test_a_place_for_the_report_of_one_run_is_refused(tmp_path):
    done = potstill("report", str(run(tmp_path, "a")), "--to", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "--to is for several runs" in done.stderr
