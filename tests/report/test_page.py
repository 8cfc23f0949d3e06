"""The page: complete, honest, accessible, small, and deaf to whatever a model wrote."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from potstill.report import page as pages
from potstill.report.metrics import KNOWN
from potstill.report.model import (
    Absent,
    Answer,
    Curve,
    Default,
    Overlap,
    Report,
    Sample,
    Sections,
    from_run,
)
from potstill.report.page import MOST_BYTES, render, write
from potstill.report.text import clip, split, visible
from report import made_up
from report.pages import Page

HOSTILE = (
    "<script>alert(1)</script></style></title></textarea>\"'><img src=x onerror=alert(1)>{{ 7*7 }}\u202e&amp;"
)


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(made_up.report()))


def hostile() -> Report:
    """A report in which every text that comes from outside tries to break out."""
    plain = made_up.report()
    answers = tuple(Answer(role, HOSTILE) for role in ("teacher", "before", "after", "control"))
    summary = made_up.summary() | {"name": HOSTILE, "recipe_hash": HOSTILE, "finished": HOSTILE}
    summary["teacher"]["name"] = summary["student"]["name"] = summary["student"]["source"] = HOSTILE
    summary["control"]["rouge_l_reason"] = HOSTILE
    summary["retention"][HOSTILE] = {"teacher": 1, "student": 1, "ratio": None, "ratio_reason": HOSTILE}
    summary["after"][HOSTILE] = made_up.measured(0.5, 0.1)
    summary["versions"] = {HOSTILE: HOSTILE}
    sections = replace(
        plain.sections,
        defaults=(Default(HOSTILE, HOSTILE, HOSTILE),),
        commands=(HOSTILE,),
        notes=(HOSTILE,),
        behaviour=Absent(HOSTILE),
    )
    curve = Curve(HOSTILE, HOSTILE, HOSTILE, ((1.0, 1.0), (2.0, 0.5)))
    return from_run(summary, [curve], [Sample(HOSTILE, answers, HOSTILE)], HOSTILE, sections)


def test_no_script_no_handler_no_address(full: Page) -> None:
    for element in full.elements:
        assert element.name not in ("script", "iframe", "object", "embed", "form", "base", "img")
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"]
        for name in ("href", "src", "xlink:href", "action"):
            assert element.attributes.get(name, "#").startswith(("#", "data:,"))


def test_nothing_written_by_a_model_becomes_markup(full: Page) -> None:
    broken = Page(render(hostile()))
    assert {e.name for e in broken.elements} <= {"tspan"} | {e.name for e in full.elements}
    names, known = ({name for e in page.elements for name in e.attributes} for page in (broken, full))
    assert names <= {"dy"} | known
    assert len(broken.all("style")) == 1
    assert "<script>alert(1)</script>" in broken.text
    assert "{{ 7*7 }}" in broken.text


def test_controls_that_reorder_text_are_visible_everywhere() -> None:
    source = render(hostile())
    assert "\u202e" not in source
    assert "⟨U+202E⟩" in source


def test_invisible_characters_are_named_and_a_run_is_counted() -> None:
    assert visible("a\u202eb\u2066\u2066c\x00\x1b[31m") == "a⟨U+202E⟩b⟨U+2066 ×2⟩c⟨U+0000⟩⟨U+001B⟩[31m"
    assert visible("one\r\ntwo\tthree\n") == "one\ntwo\tthree\n"
    assert visible("👩\u200d🚀 می\u200cخواهم") == "👩\u200d🚀 می\u200cخواهم"


def test_half_a_surrogate_pair_from_a_tokenizer_can_be_written(tmp_path: Path) -> None:
    report = from_run({}, samples=[Sample("p", (Answer("after", "broken \ud83d emoji"),))])
    assert "broken ⟨U+D83D⟩ emoji" in write(report, tmp_path / "r.html").read_text(encoding="utf-8")


def test_policy_lets_nothing_in_and_names_this_style_sheet(full: Page) -> None:
    policy = next(e for e in full.all("meta") if "http-equiv" in e.attributes).attributes["content"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script-src" not in policy


def test_headings_go_down_one_level_at_a_time(full: Page) -> None:
    levels = [int(e.name[1]) for e in full.elements if e.name in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_names_point_at_what_exists_and_are_unique(full: Page) -> None:
    for page in (full, Page(render(from_run({})))):
        idents = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
        assert len(idents) == len(set(idents))
        used = [n for e in page.elements for n in e.attributes.get("aria-labelledby", "").split()]
        links = [e.attributes["href"][1:] for e in page.all("a")]
        assert set(used) | set(links) <= set(idents)


def test_every_table_has_a_caption_scopes_and_even_rows(full: Page) -> None:
    assert full.all("html")[0].attributes["lang"] == "en"
    for table in full.all("table"):
        assert table.children[0].name == "caption"
        assert table.children[0].text.strip()
    assert all(e.attributes.get("scope") in ("col", "row") for e in full.all("th"))
    for table in full.all("table"):
        rows = [row for part in table.children[1:] for row in part.children]
        assert len({len(row.children) for row in rows}) == 1


def test_every_chart_has_a_name_a_description_and_a_table(full: Page) -> None:
    figures = full.all("figure")
    assert len(figures) == 8
    for figure in figures:
        assert [c.name for c in figure.children] == ["figcaption", "div", "div", "details"]
        assert any(e.name == "table" and e.inside("figure") for e in full.elements)
    for drawing in full.all("svg"):
        assert drawing.attributes["role"] == "img"
        assert [c.name for c in drawing.children[:2]] == ["title", "desc"]
        assert all(c.text.strip() for c in drawing.children[:2])


def test_a_table_below_a_curve_holds_its_ends_and_all_validation_points() -> None:
    points = tuple((float(s), 3.0 / s) for s in range(1, 20_001))
    held = tuple((float(s), 2.0) for s in range(37, 20_000, 1999))
    curves = [Curve("d", "training", "nats", points), Curve("d", "validation", "nats", held, dots=True)]
    page = Page(render(from_run({}, curves)))
    rows = next(e for e in page.all("table") if "Values of stage d" in e.text).children[2].children
    steps = [row.children[0].text for row in rows]
    assert steps[0] == "1"
    assert steps[-1] == "20,000"
    assert {f"{int(s):,}" for s, _ in held} <= set(steps)
    assert "of 20000 steps" in page.text


def test_every_measured_value_is_shown_with_interval_and_n(full: Page) -> None:
    table = next(e for e in full.all("table") if "results" in e.attributes.get("class", ""))
    for metric in KNOWN:
        assert metric.label in table.text
    assert "0.42 to 0.48 · n 200" in table.text
    assert "71.9 to 74.3 · n 200" in table.text
    assert "0 by definition" in table.text


def test_absent_parts_are_left_out_or_say_why() -> None:
    reason = "A teacher behind an API gives no distribution."
    sections = Sections(behaviour=Absent("Only likelihoods were measured."), overlap=Absent())
    summary = {"after": {"forward_kl": None, "forward_kl_reason": reason}}
    page = Page(render(from_run(summary, sections=sections)))
    titles = [e.text for e in page.all("h2")]
    assert titles == ["Verdict", "Result", "Training", "Data and honesty", "Behaviour"]
    assert reason in page.text
    assert "Only likelihoods were measured." in page.text
    assert "No loss was recorded." in page.text
    assert not page.all("svg")


def test_overlap_that_was_not_looked_for_is_not_zero() -> None:
    sections = Sections(overlap=Overlap(100, 60, 3, None, None))
    report = from_run({}, sections=sections)
    assert "not looked for" in Page(render(report)).text
    assert any("60 held-out prompts, 3 are also training prompts" in line for line in report.cautions)


def test_a_single_seed_is_a_caution_and_several_are_not() -> None:
    assert any("One seed (7)" in c for c in from_run({}, sections=Sections(seeds=(7,))).cautions)
    assert not from_run({}, sections=Sections(seeds=(1, 2, 3))).cautions


def test_unseen_families_endless_and_empty_answers_are_marked(full: Page) -> None:
    assert sum(e.attributes.get("class") == "badge" for e in full.all("span")) == 2
    assert "did not stop by itself" in full.text
    assert "(an empty answer)" in full.text


def test_small_enough_whatever_the_models_wrote() -> None:
    endless = "<\u202e\u2066&>" * 10_000
    answers = tuple(Answer(role, endless) for role in ("teacher", "before", "after"))
    samples = [Sample(endless, answers)] * 40
    points = tuple((float(s), 1.0 + s % 7) for s in range(20_000))
    curves = [Curve(f"stage {i}", "training", "nats", points) for i in range(4)]
    report = from_run(made_up.summary(), curves, samples, endless, made_up.sections())
    source = render(report)
    assert len(source.encode()) < MOST_BYTES
    assert "more characters not shown" in source
    assert "12 of the held-out prompts" in source


def test_text_is_split_without_loss_at_a_word() -> None:
    lead, rest = split("word " * 100, 203)
    assert lead + rest == "word " * 100
    assert lead.endswith("word")
    assert split("x" * 300, 100) == ("x" * 100, "x" * 200)
    assert clip("x" * 12, 10).startswith("x" * 10 + "\n… 2 more")


def test_same_report_same_bytes() -> None:
    assert render(made_up.report()) == render(made_up.report())


def test_interrupted_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write(made_up.report(), tmp_path / "report.html")
    before = target.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pages.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write(from_run({}), target)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
