"""A template that prints the date prints one date in a whole run, on whatever day it goes on."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from builders import chats, places
from builders.chats import bytes_tokenizer
from builders.tiny import TEMPLATE, tiny_tokenizer
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import ArtifactError
from potstill.runs.run import rebuild_report, run
from potstill.store import folder

DAYS = datetime(2026, 11, 27, 23, 59, 58), datetime(2026, 11, 28, 0, 0, 3)
DATED = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}w{{ strftime_now('%d') }} ")


class Clock(datetime):
    """A clock that stands at `moment`."""

    moment = DAYS[0]

    @classmethod
    def now(cls, tz=None):
        return cls.moment


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(Clock, "moment", DAYS[0])
    monkeypatch.setattr(folder, "datetime", Clock)
    return Clock


@pytest.fixture
def place(tmp_path):
    places.write(tmp_path, stages="[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 2}}]")
    tiny_tokenizer(template=DATED).save_pretrained(tmp_path / "teacher")
    return tmp_path


def notes(place) -> str:
    return " ".join(places.read(place).notes)


def test_a_run_goes_on_on_another_day_with_what_it_has(place, clock, monkeypatch):
    monkeypatch.chdir(place)
    first = run("r.yaml", until="generate")
    state = json.loads((first.path / "run.json").read_text())
    assert state["date"] == DAYS[0].isoformat()
    done = (first.path / "stages/generate").resolve()
    clock.moment = DAYS[1]
    setup = places.read(place)
    assert setup.date == DAYS[0]
    assert setup.readers.student.templater.prompt_text(setup.data.train[0].prompt).startswith("<s>w27 ")
    for again in (run("r.yaml"), run(first.path), rebuild_report(first.path)):
        assert (again.path / "stages/generate").resolve() == done
    assert len(list((place / "runs/.store").glob("generate-*"))) == 1


def test_another_run_prints_the_day_of_its_own_start(place, clock, monkeypatch):
    monkeypatch.chdir(place)
    run("r.yaml", until="generate")
    clock.moment = DAYS[1]
    other = run("r.yaml", ["name=other"], until="generate")
    assert json.loads((other.path / "run.json").read_text())["date"] == DAYS[1].isoformat()
    assert len(list((place / "runs/.store").glob("generate-*"))) == 2


def test_check_says_that_a_template_prints_the_date(place, clock, monkeypatch):
    monkeypatch.chdir(place)
    assert "a chat template prints the date or the time; this run prints 2026-11-27 23:59" in notes(place)
    tiny_tokenizer().save_pretrained(place / "teacher")
    assert "prints the date" not in notes(place)


def test_a_date_that_cannot_be_read_is_named(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "runs/r").mkdir(parents=True)
    (place / "runs/r/run.json").write_text('{"date": "yesterday"}')
    with pytest.raises(ArtifactError, match=r"run\.json holds no date: 'yesterday'"):
        run("r.yaml")


@pytest.mark.parametrize(
    ("template", "dated"),
    [
        ("{{ strftime_now('%d %b %Y') }}" + chats.CHATML, True),
        ("{% if tools %}{{ strftime_now('%H') }}{% endif %}" + chats.CHATML, True),
        ("{% if messages[0].role != 'system' %}{{ strftime_now('%A') }}{% endif %}" + chats.CHATML, True),
        ("{% if messages[0].role == 'system' %}{{ strftime_now('%S') }}{% endif %}" + chats.CHATML, True),
        ("{% set today = date or strftime_now('%d %b %Y') %}{{ today }}" + chats.CHATML, True),
        ("{% set today = strftime_now('%d %b %Y') %}" + chats.CHATML, False),
        ("{% if strftime_now is defined %}{% endif %}" + chats.CHATML, False),
        (chats.CHATML, False),
        (None, False),
    ],
)
def test_two_clocks_show_whether_the_date_is_printed(template, dated):
    assert Templater(bytes_tokenizer(template)).dated is dated


def test_a_date_that_the_recipe_gives_is_the_one_that_is_printed():
    template = "{% set today = date or strftime_now('%d %b %Y') %}{{ today }}" + chats.CHATML
    given = Templater(bytes_tokenizer(template), template_kwargs={"date": "1 May"})
    assert not given.dated
    assert given.prompt_text(chats.chat("a")).startswith("1 May")


@pytest.mark.parametrize("template", [chats.CHATML, chats.MARKED])
def test_prompts_and_training_rows_print_the_same_date(template):
    tokenizer = bytes_tokenizer("{{ strftime_now('%Y') }} " + template)
    templater = Templater(tokenizer, now=DAYS[0])
    (example,) = templater.encode_row(Row("r", chats.chat("a", "yes")))
    assert tokenizer.decode(example.input_ids).startswith("2026 ")
    prompt = templater.prompt_ids(chats.chat("a"))
    assert list(example.input_ids[: len(prompt)]) == prompt
