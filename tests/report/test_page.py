"""The page: complete, honest, accessible, small, and deaf to whatever a model wrote."""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from builders import made_up
from builders.made_up import sample
from builders.pages import Page
from potstill.console import visible
from potstill.data.split import Overlap
from potstill.recipe.defaults import Default
from potstill.report.content import Content
from potstill.report.curves import Curve
from potstill.report.page import MOST_BYTES, cautions, render, write
from potstill.report.text import clip, split
from potstill.store import disk

HOSTILE = (
    "<script>alert(1)</script></style></title></textarea>\"'><img src=x onerror=alert(1)>{{ 7*7 }}\u202e&amp;"
)


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(made_up.content()))


def hostile() -> Content:
    """A page on which every text that comes from outside tries to break out."""
    answers = {
        role: {"text": HOSTILE, "stopped": None}
        for role in ("teacher", "before", "after", "control", HOSTILE)
    }
    summary = made_up.summary() | {"name": HOSTILE, "recipe_hash": HOSTILE, "seed": HOSTILE}
    summary["teacher"]["name"] = summary["student"]["name"] = summary["student"]["source"] = HOSTILE
    summary["control"]["rouge_l_reason"] = HOSTILE
    described = {"label": HOSTILE, "unit": HOSTILE, "better": "up", "meaning": HOSTILE}
    summary["figures"] = {
        **summary["figures"],
        HOSTILE: described | {"place": "headline"},
        "worse": described | {"place": "behaviour"},
    }
    summary["retention"][HOSTILE] = {"teacher": 1, "student": 1, "ratio": None, "ratio_reason": HOSTILE}
    summary["after"][HOSTILE] = made_up.measured(0.5, 0.1)
    summary["versions"] = {HOSTILE: HOSTILE}
    return Content(
        summary,
        [Curve(HOSTILE, HOSTILE, ((1.0, 1.0), (2.0, 0.5)))],
        [sample(HOSTILE, answers, HOSTILE)],
        HOSTILE,
        funnel=[(HOSTILE, 3, {HOSTILE: 2})],
        lengths={HOSTILE: [3, 4]},
        costs={HOSTILE: {"seconds": 1.0, "note": HOSTILE}},
        defaults=(Default(HOSTILE, HOSTILE, HOSTILE),),
        command=HOSTILE,
        notes=(HOSTILE,),
    )


def test_the_page_has_no_script_no_handler_and_no_address(full: Page) -> None:
    for element in full.elements:
        assert element.name not in ("script", "iframe", "object", "embed", "form", "base", "img")
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"]
        for name in ("href", "src", "xlink:href", "action"):
            assert element.attributes.get(name, "#").startswith(("#", "data:,"))


def test_nothing_written_by_a_model_becomes_markup(full: Page) -> None:
    broken = Page(render(hostile()))
    assert {e.name for e in broken.elements} <= {e.name for e in full.elements}
    names, allowed = ({name for e in page.elements for name in e.attributes} for page in (broken, full))
    assert names <= allowed
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
    content = Content({}, samples=[sample("p", {"after": {"text": "broken \ud83d emoji", "stopped": True}})])
    assert "broken ⟨U+D83D⟩ emoji" in write(content, tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_policy_of_the_page_allows_its_own_style_sheet_alone(full: Page) -> None:
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
    for page in (full, Page(render(Content({})))):
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
    assert len(figures) == 7
    for figure in figures:
        assert [c.name for c in figure.children] == ["figcaption", "svg", "details"]
        _, values, *_ = figure.children[2].children
        assert [c.name for c in values.children] == ["table"]
    for drawing in full.all("svg"):
        assert drawing.attributes["role"] == "img"
        assert [c.name for c in drawing.children[:2]] == ["title", "desc"]
        assert all(c.text.strip() for c in drawing.children[:2])


def test_a_table_below_a_curve_holds_its_ends_and_all_validation_points() -> None:
    points = tuple((float(s), 3.0 / s) for s in range(1, 20_001))
    held = tuple((float(s), 2.0) for s in range(37, 20_000, 1999))
    curves = [Curve("d", "training", points), Curve("d", "validation", held, dots=True)]
    page = Page(render(Content({}, curves)))
    rows = next(e for e in page.all("table") if "Values of stage d" in e.text).children[2].children
    steps = [row.children[0].text for row in rows]
    assert steps[0] == "1"
    assert steps[-1] == "20,000"
    assert {f"{int(s):,}" for s, _ in held} <= set(steps)
    assert "of 20000 steps" in page.text


def test_every_measured_value_is_shown_with_interval_and_n(full: Page) -> None:
    table = next(e for e in full.all("table") if "results" in e.attributes.get("class", ""))
    rows = [row.children[0].text for row in table.children[2].children]
    shown = {
        key: any(row.startswith(about["label"]) for row in rows) for key, about in made_up.FIGURES.items()
    }
    wanted = {"forward_kl", "reverse_kl", "ppl", "agreement", "agreement_top5", "rouge_l"}
    assert {key for key, is_shown in shown.items() if is_shown} == wanted
    assert "0.42 to 0.48 · n 200" in table.text
    assert "71.9 to 74.3 · n 200" in table.text
    assert "0 by definition" in table.text
    assert "100 % by definition" in table.text


def test_behaviour_and_speed_of_each_model_have_tables_of_their_own(full: Page) -> None:
    """Every figure that is described has one place on the page, with its unit."""
    by_caption = {e.children[0].text: e for e in full.all("table")}
    answers, cost = by_caption["Free-running answers"], by_caption["What each model's answers cost"]
    assert [row.children[0].text for row in answers.children[2].children] == [
        "Teacher", "Untrained student", "Distilled student",
    ]  # fmt: skip
    assert "Stops by itself" in answers.text
    assert "97.0 % (93.1 to 100.9)" in answers.text
    assert "Writing speed, tokens per second" in cost.text
    assert "130" in cost.text


def test_absent_parts_are_left_out_or_have_a_reason() -> None:
    reason = "A teacher behind an API gives no distribution."
    figures = {"forward_kl": made_up.FIGURES["forward_kl"]}
    summary = {"figures": figures, "after": {"forward_kl": None, "forward_kl_reason": reason}}
    page = Page(render(Content(summary)))
    titles = [e.text for e in page.all("h2")]
    assert titles == ["Verdict", "Result", "Training", "Data and honesty", "Behaviour"]
    assert reason in page.all("li")[-1].text
    assert "There are no held-out rows to compare." in page.text
    assert "Behaviour of free-running text was not measured: no metric of the run reads answers." in page.text
    assert "No loss was recorded." in page.text
    assert not page.all("svg")


def test_held_out_prompts_that_training_saw_are_a_caution() -> None:
    content = Content({}, overlap=Overlap(exact=3, near=0, gram=9, of=60), trained_prompts=100)
    assert any("60 held-out prompts, 3 are also training prompts" in line for line in cautions(content))
    assert not cautions(Content({}, overlap=Overlap(exact=0, near=0, gram=9, of=60)))


def test_a_single_seed_is_a_caution() -> None:
    assert cautions(Content({"seed": 7})) == [
        "One seed (7): the intervals tell nothing of the spread between seeds."
    ]


def test_unseen_families_endless_and_empty_answers_are_marked(full: Page) -> None:
    assert sum(e.attributes.get("class") == "badge" for e in full.all("span")) == 2
    assert "did not stop by itself" in full.text
    assert "(an empty answer)" in full.text


def test_the_page_stays_small_whatever_the_models_wrote() -> None:
    endless = "<\u202e\u2066&>" * 10_000
    samples = [sample(endless, made_up.answers(endless, endless, endless))] * 40
    points = tuple((float(s), 1.0 + s % 7) for s in range(20_000))
    curves = [Curve(f"stage {i}", "training", points) for i in range(4)]
    source = render(Content(made_up.summary(), curves, samples, endless, **made_up.parts()))
    assert len(source.encode()) < MOST_BYTES
    assert "more characters not shown" in source
    assert "8 of the held-out prompts, answered by each model (40 are in the run folder)" in source


def test_text_is_split_without_loss_at_a_word() -> None:
    lead, rest = split("word " * 100, 203)
    assert lead + rest == "word " * 100
    assert lead.endswith("word")
    assert split("x" * 300, 100) == ("x" * 100, "x" * 200)
    assert clip("x" * 12, 10).startswith("x" * 10 + "\n… 2 more")


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render(made_up.content()) == render(made_up.content())


def test_interrupted_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write(made_up.content(), tmp_path / "report.html")
    before = target.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write(Content({}), target)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_the_title_names_the_run_and_its_student() -> None:
    page = Page(render(made_up.content()))
    for name in ("title", "h1"):
        assert page.all(name)[0].text.startswith("quickstart: made-up/student-20-layers")
    assert "distilled from made-up/Teacher-135M-Instruct" in page.text


def test_a_share_above_a_floor_names_the_floor() -> None:
    def floor(summary: dict[str, Any]) -> None:
        summary["retention"]["rouge_l"] |= {"floor": 0.227, "floor_of": "the prompt copied"}

    def table(page: Page) -> Any:
        return next(e for e in page.all("table") if "Retention" in e.children[0].text)

    plain, above = table(Page(render(made_up.content()))), table(Page(render(made_up.content(floor))))
    heads = [table.children[1].children[0].children[-1].text for table in (plain, above)]
    assert heads == ["Student / teacher (95 %)", "Student / teacher above the floor (95 %)"]
    assert "ROUGE-L, above the floor of 0.23 (the prompt copied)" in above.text


def test_the_control_is_judged_figure_by_figure_in_words(full: Page) -> None:
    table = next(e for e in full.all("table") if "Against the control" in e.children[0].text)
    said = {row.children[0].text: row.children[1].text for row in table.children[2].children}
    assert said == {
        "KL(teacher‖student)": "clearly better", "KL(student‖teacher)": "clearly better",
        "Perplexity": "not known to differ", "Top-1 agreement": "clearly better",
        "Top-5 agreement": "clearly better", "ROUGE-L": "not compared",
    }  # fmt: skip
    nothing = Page(render(made_up.content(lambda summary: summary.pop("differences"))))
    assert "Against the control" not in nothing.text


def test_the_page_says_when_where_and_from_which_rows_it_was_made() -> None:
    text = Page(render(made_up.content())).text
    for part in ("2026-01-31 09:30 UTC", "16.8 GB of memory", "5e" * 32, "potstill run recipe.yaml", "bfloat16",
                 "apache-2.0", "not stated"):  # fmt: skip
        assert part in text
    older = Page(render(made_up.content(lambda summary: [summary.pop(key) for key in ("made", "data")])))
    assert "UTC" not in older.text


def test_a_task_shows_right_answers_confusions_stages_and_costs() -> None:
    summary = made_up.summary()
    key = "label_accuracy_gold"
    about = {
        "label": "Label accuracy vs gold",
        "unit": "share",
        "better": "up",
        "meaning": "",
        "place": "result",
    }
    found = {
        "references": ["spam", "ham"],
        "answers": ["spam", "ham", "(invalid)"],
        "counts": [[4, 1, 0], [0, 3, 2]],
    }
    details = {"labels": {"gold": found}, "valid": {"reasons": {"none of the labels": 2}}}
    both = {key: made_up.measured(0.9, 0.02)}, {key: made_up.measured(0.8, 0.02)}
    stage = {
        "stage": "own",
        "before": both[0],
        "after": both[1],
        "difference": {key: made_up.measured(-0.1, 0.03)},
    }
    unknown = {
        "per_1000_requests": None,
        "per_1000_requests_reason": "not stated",
        "seconds_per_request": None,
    }
    money = {
        "currency": "USD", "machines_currency": "USD",
        "teacher": {"per_1000_requests": 0.5, "tokens_in": 900.0, "tokens_out": 60.0},
        "student": unknown,
        "spent": {"answers": 2.5, "training": None, "training_reason": "not stated", "training_hours": 0.1},
        "break_even_requests": None, "break_even_requests_reason": "not stated",
    }  # fmt: skip
    summary |= {
        "figures": summary["figures"] | {key: about},
        "after": summary["after"] | both[0],
        "task": {
            "type": "label",
            "labels": ["spam", "ham"],
            "details": {"after": details, "before": details},
        },
        "by_stage": [stage],
        "money": money,
    }
    page = Page(render(Content(summary)))
    assert page.all("dt")[0].text == "Label accuracy vs gold"
    tables = {e.children[0].text: e for e in page.all("table")}
    (confusion,) = [e for name, e in tables.items() if "answers (columns)" in name]
    assert [[cell.text for cell in row.children] for row in confusion.children[2].children] == [
        ["spam", "4", "1", "0"], ["ham", "0", "3", "2"],
    ]  # fmt: skip
    assert "−10.0 % (−13.0 to −7.0): clearly worse" in tables["Stage by stage"].text
    costs = [
        [cell.text for cell in row.children] for row in tables["Cost of 1,000 requests"].children[2].children
    ]
    assert costs[0] == ["Teacher, 1,000 requests", "0.50 USD", "900 + 60 tokens a request"]
    assert costs[1][1] == "unknown: not stated"
    assert costs[-1][:2] == ["Paid for itself after", "unknown: not stated"]
    assert "own made Label accuracy vs gold worse: 90.0 % before it, 80.0 % after it." in page.text
