"""Metrics are plug-ins: what ours measure, and that one from outside reaches every file and the page."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest

import potstill
from builders import places
from builders.jobs import Memory, context, student
from builders.pages import Page
from builders.tiny import tiny_model
from potstill.console import Console
from potstill.data.questions import Question
from potstill.errors import RecipeError
from potstill.evaluate import agreement, behaviour, likelihood, rouge_l, speed
from potstill.evaluate.subject import Answer, Metric, Subject
from potstill.recipe import plugins
from potstill.recipe.specs import MetricChoice
from potstill.stages import _evaluation
from potstill.stages._metrics import figures_of_ours, metrics_of
from potstill.stages.evaluate import Evaluate
from potstill.types import Figure

OUTSIDE = """
from potstill.types import Figure

NEEDS = {"answers"}
WORDS = Figure("words", label="Words an answer", unit="words", better="up", meaning="How much is said.")


def measure(subject, *, least: int = 0):
    return [subject.ratio(WORDS, [max(least, len(answer.text.split())) for answer in subject.answers])]


def measure_again(subject):
    return measure(subject)
"""


def subject(*answers: tuple[str, int, bool], references: tuple[tuple[str, int], ...], **changes) -> Subject:
    """A model that was asked one question for each reference, of so many tokens."""
    questions = [Question(str(i), (), (), "", text, n) for i, (text, n) in enumerate(references)]
    written = [Answer(*answer) for answer in answers]
    return Subject("after", questions=questions, answers=written, **changes)


def names(*chosen: str) -> list[MetricChoice]:
    return [MetricChoice(name=name) for name in chosen]


def values(figures) -> dict[str, float | None]:
    return {figure.key: figure.value for figure in figures}


def test_text_is_compared_with_the_references_and_its_form_is_counted():
    two = subject(
        ("the cat sat on the mat", 7, True),
        ("to to to to to to to to", 8, False),
        references=(("the cat sat on the mat", 7), ("nothing alike", 4)),
    )
    assert values(rouge_l.measure(two)) == {"rouge_l": pytest.approx(0.5)}
    assert values(behaviour.measure(two)) == {
        "stop_rate": 0.5,
        "length_ratio": pytest.approx(15 / 11),
        "repetition": pytest.approx(4 / 8),
        "unfinished_reasoning": 0.0,
    }


def test_speed_is_all_tokens_over_all_seconds_and_has_no_interval():
    two = subject(("a", 7, True), ("b", 8, True), references=(("", 1), ("", 1)), seconds=3.0)
    (figure,) = speed.measure(two)
    assert figure.value == 5.0
    assert figure.interval is None
    assert figure.reason == "timed once"
    assert speed.measure(Subject("after"))[0].value is None


def test_a_teacher_is_at_no_distance_from_itself_by_definition():
    figures = [*likelihood.measure(Subject("teacher")), *agreement.measure(Subject("teacher"))]
    by_definition = [figure for figure in figures if figure.reason == "by definition"]
    assert values(by_definition) == {"forward_kl": 0, "reverse_kl": 0, "agreement": 1, "agreement_top5": 1}


def test_what_needs_one_vocabulary_says_so_where_there_are_two():
    figures = [*likelihood.measure(Subject("after", foreign="two vocabularies"))]
    assert {figure.reason for figure in figures} == {"two vocabularies"}


@pytest.mark.parametrize("name", plugins.plugins("evaluate"))
def test_each_of_our_metrics_describes_every_figure_that_it_gives(name):
    task = next(iter(getattr(plugins.load("evaluate", name), "TASKS", [None])))
    (metric,) = [metric for metric in metrics_of(names(name), task) if metric.name == name]
    described = figures_of_ours()[name]
    given = metric.measure(Subject("before"))
    assert [figure.key for figure in given] == [figure.key for figure in described]
    assert all(figure.label and figure.meaning for figure in described)


def test_keys_are_given_once():
    keys = [figure.key for figures in figures_of_ours().values() for figure in figures]
    assert len(keys) == len(set(keys))


def test_behaviour_is_measured_wherever_answers_are_written():
    assert [metric.name for metric in metrics_of(names("likelihood"))] == ["likelihood"]
    assert [metric.name for metric in metrics_of(names("likelihood", "speed"))] == [
        "likelihood",
        "speed",
        "behaviour",
    ]
    assert [metric.name for metric in metrics_of(names("speed"), "label")] == [
        "speed",
        "behaviour",
        "labels",
        "valid",
    ]
    with pytest.raises(RecipeError, match="fields measures a task of type json, and the recipe's is label"):
        metrics_of(names("fields"), "label")
    assert [metric.name for metric in metrics_of(names("behaviour"))] == ["behaviour"]


def job(folder, *chosen: str | dict[str, Any]) -> _evaluation.Job:
    return _evaluation.Job(
        name="evaluate",
        choices=Evaluate(metrics=chosen).metrics,
        resamples=100,
        students={"before": student(folder / "s", tiny_model())},
        examples=[],
        questions=[Question(f"r{i}", (5 + i, 6), (5 + i, 6), "p", "w64", 2) for i in range(3)],
        max_new_tokens=3,
        context=context(folder, Memory(tiny_model(seed=1))),
    )


@pytest.fixture
def outside(tmp_path, monkeypatch) -> str:
    (tmp_path / "wordcount.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wordcount", raising=False)
    return "wordcount:measure"


def test_a_metric_from_outside_is_measured_with_its_options(tmp_path, outside):
    artifact = _evaluation.evaluate(job(tmp_path, {outside: {"least": 50}}))
    result = json.loads((artifact.path / "evaluation.json").read_text())
    for role in ("teacher", "before"):
        figure = result["models"][role]["words"]
        assert (figure["value"], figure["low"], figure["high"], figure["n"]) == (50.0, 50.0, 50.0, 3)
        assert (figure["label"], figure["unit"], figure["better"]) == ("Words an answer", "words", "up")


def test_a_metric_from_outside_reaches_the_summary_and_the_page(tmp_path, outside, monkeypatch):
    """No list in the package names it: label, unit and direction come from its own file."""
    metrics = f"[likelihood, rouge_l, '{outside}']"
    measure = f"{{evaluate: {{metrics: {metrics}, samples: 4, max_new_tokens: 4, resamples: 100}}}}"
    places.write(tmp_path, stages=f"[{{distill: {{steps: 1}}}}, {measure}]")
    monkeypatch.chdir(tmp_path)
    result = potstill.run("r.yaml", console=Console(quiet=True))
    words = result.summary["after"]["words"]
    assert words["n"] == 4
    assert words["low"] <= words["value"] <= words["high"]
    assert result.summary["figures"]["words"]["unit"] == "words"
    assert result.summary["retention"]["words"]["student"] == words
    page = Page((tmp_path / "runs/r/report.html").read_text(encoding="utf-8"))
    table = next(e for e in page.all("table") if "results" in e.attributes.get("class", ""))
    (row,) = [e for e in table.children[2].children if "Words an answer" in e.text]
    assert "words, higher is better" in row.text
    assert "· n 4" in row.text
    assert "How much is said." in page.text


def test_a_metric_that_needs_what_no_model_gives_is_refused():
    class Plugin:
        NEEDS = frozenset({"scores", "telepathy"})

    with pytest.raises(RecipeError, match="the metric m needs telepathy, which no model gives"):
        Metric.of("m", Plugin)


def test_two_metrics_with_a_figure_of_the_same_key_are_refused(tmp_path, outside):
    other = outside.replace("measure", "measure_again")
    with pytest.raises(RecipeError, match=f"the metric {other} gives words, which another metric gives too"):
        _evaluation.evaluate(job(tmp_path, outside, other))


@pytest.mark.parametrize("key", ["n", "ppl_reason"])
def test_a_figure_whose_key_the_summary_needs_is_refused(key):
    with pytest.raises(RecipeError, match=f"gives {key}, which summary.json keeps for itself"):
        Metric("m", lambda subject: [Figure(key)]).measure(Subject("after"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_absent_with_its_reason(value):
    """JSON has neither, and no page shows it as measured."""
    (figure,) = Metric("m", lambda subject: [Figure("a", value, 1.0, 2.0, 5)]).measure(Subject("after"))
    assert figure == Figure("a", n=5, reason=f"not a finite number ({value})")
