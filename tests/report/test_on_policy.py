"""The student's own text in training: curves, figures of the summary, alarms and stops in words."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from builders import made_up
from builders.pages import Page
from potstill.report import on_policy, page, record
from potstill.report.verdict import cautions, verdict

STOP = {
    "event": "stop",
    "step": 30,
    "guard": "repetition",
    "value": 0.6,
    "limit": 0.5,
    "seen": "60% of … repeat",
}
ALARM = STOP | {"event": "alarm", "step": 25, "value": 0.3, "seen": "30% of … repeat"}
START = {"event": "cold_start", "step": 0, "overlap": 0.6, "repetition": 0.1}


def step(number: int, **figures):
    return {
        "event": "step",
        "step": number,
        "loss": 1.0,
        "on_policy": 1.0,
        "rollouts": 4,
        "rollout_tokens": 100,
        **({"written": 8, "written_tokens": 200, "generation_seconds": 0.5} if number % 2 else {}),
    } | figures


@pytest.fixture
def stages(tmp_path):
    """A stage on rollouts of 40 steps whose repetition rises, and one without rollouts."""
    lines = [step(i, repetition=i / 100, rollout_length=25.0, overlap=0.8) for i in range(1, 41)]
    lines.insert(10, {"event": "step", "step": 11, "loss": 1.0, "on_policy": 0.0})
    offline = [{"event": "step", "step": 1, "loss": 1.0}]
    made = {}
    for name, events in {"warm_up": offline, "polish": [START, *lines, ALARM, STOP]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        made[name] = SimpleNamespace(path=tmp_path / name, manifest={"stage": "train"}, facts={})
    return made


def test_only_stages_in_which_the_student_wrote_have_curves(stages):
    curves = on_policy.curves(stages)
    assert {curve.stage for curve in curves} == {"polish"}
    assert [curve.name for curve in curves] == ["repeated", "shared ids", "rollout"]
    assert curves[0].points[0] == (1.0, 0.01)
    assert len(curves[0].points) == 40
    assert {curve.name: curve.unit for curve in curves} == {
        "repeated": "share",
        "shared ids": "share",
        "rollout": "tokens",
    }


def test_the_summary_has_first_and_last_values_and_what_guards_said(stages):
    (block,) = on_policy.summary(stages).values()
    assert block["steps"] == 40
    assert (block["written"], block["written_tokens"]) == (160, 4000)
    assert block["generation_seconds"] == 10.0
    assert block["repetition"] == pytest.approx({"first": 0.105, "last": 0.305})
    assert [alarm["step"] for alarm in block["alarms"]] == [25]
    assert [stop["guard"] for stop in block["stops"]] == ["repetition"]
    assert block["start"] == {"overlap": 0.6, "repetition": 0.1}
    assert "teacher_entropy" not in block


def test_a_run_without_rollouts_has_no_such_block(stages):
    assert on_policy.summary({"warm_up": stages["warm_up"]}) == {}


def test_the_verdict_names_a_stop_and_the_cautions_an_alarm(stages):
    summary = made_up.summary() | {"on_policy": on_policy.summary(stages)}
    assert verdict(summary).endswith(
        "A guard stopped polish at step 30 (60% of … repeat); it went on under other limits."
    )
    assert "polish, step 25: 30% of … repeat." in cautions(summary)


def test_the_page_has_a_section_with_charts_and_a_table(stages):
    summary = made_up.summary() | {"on_policy": on_policy.summary(stages)}
    content = replace(made_up.content(), summary=summary, on_policy=on_policy.curves(stages))
    shown = Page(page.render(content))
    assert "On-policy" in [element.text for element in shown.all("h2")]
    assert "Stage polish: length of rollouts" in shown.text
    assert "Repeated 4-grams, share" in shown.text


def test_the_page_of_a_run_without_rollouts_has_no_such_section():
    shown = Page(page.render(made_up.content()))
    assert "On-policy" not in [element.text for element in shown.all("h2")]


def test_the_curves_survive_the_record(stages):
    content = replace(made_up.content(), on_policy=on_policy.curves(stages))
    value = json.loads(json.dumps({"summary": {}, "content": record._stored(content)}, default=str))
    read = [replace(curve, resumes=tuple(curve.resumes)) for curve in record._content(value).on_policy]
    assert read == on_policy.curves(stages)
