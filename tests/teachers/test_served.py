"""A teacher behind an endpoint: what a recipe may say of it, and what it never repeats."""

from __future__ import annotations

from typing import Any

import pytest

from builders import recipes
from potstill.errors import RecipeError, SignalError
from potstill.recipe.recipe import expand
from potstill.teachers import served

ADDRESS = {"endpoint": "https://host/v1", "model": "big"}


def build(**options: Any) -> served.ServedTeacher:
    return served.build(None, **(ADDRESS | options))  # type: ignore[arg-type]


def test_a_recipe_with_an_endpoint_finetunes_on_text_where_it_names_no_stages() -> None:
    recipe = recipes.read(teacher={**ADDRESS, "key_env": "KEY"})
    assert recipe.teacher.plugin == ("served", {**ADDRESS, "key_env": "KEY"})
    assert [stage.verb for stage in expand(recipe).stages] == ["generate", "finetune", "evaluate"]
    assert [stage.verb for stage in expand(recipes.read()).stages] == ["generate", "distill", "evaluate"]


@pytest.mark.parametrize("teacher", [ADDRESS, {"served": ADDRESS}])
def test_an_override_reaches_the_stages_that_such_a_recipe_implies(teacher) -> None:
    from potstill.recipe.overrides import apply

    changed = apply(recipes.raw(teacher=teacher), ["finetune.steps=3"], ("teacher", "student", "data"))
    assert changed["stages"] == ["generate", {"finetune": {"steps": 3}}, "evaluate"]


def test_a_recipe_is_written_and_read_again_with_its_teacher() -> None:
    from potstill.recipe import yaml
    from potstill.recipe.recipe import dump_yaml, parse_recipe

    recipe = recipes.read(teacher={**ADDRESS, "price": {"input": 1, "output": 2}})
    assert parse_recipe(yaml.load_yaml(dump_yaml(recipe), "again")) == recipe


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoint": "host/v1"}, "teacher.endpoint: is no address"),
        ({"endpoint": "ftp://host/v1"}, "teacher.endpoint: is no address"),
        ({"endpoint": "https://user:secret@host/v1"}, "teacher.endpoint: holds more than an address"),
        ({"endpoint": "https://host/v1?key=secret"}, "teacher.endpoint: holds more than an address"),
        ({"extra_body": {"n": 3}}, r"extra_body\.n: is written by potstill\. Set generate\.samples"),
        ({"extra_body": {"max_tokens": 3}}, r"Set generate\.max_new_tokens"),
        ({"extra_body": {"stream": True}}, "replies are read whole"),
        ({"extra_body": [1]}, "must be a mapping"),
        ({"key_env": "sk-secret"}, "teacher.key_env: names no environment variable"),
        ({"headers_env": {"X-Key": "Bearer secret"}}, "headers_env.X-Key: names no environment variable"),
        ({"omit": ["max_tokens"]}, "may hold temperature, top_p"),
        ({"price": {"input": 1}}, "teacher.price"),
        ({"price": {"input": 1, "output": -2}}, "price.output: must be a number from 0 up"),
        ({"price": {"input": 1, "output": float("nan")}}, "price.output"),
        ({"price": {"input": True, "output": 1}}, "price.input"),
        ({"price": {"input": 1, "output": 2, "per": 3}}, "teacher.price"),
        ({"price": {"input": 1, "output": 2, "currency": 3}}, "price.currency"),
    ],
)
def test_an_option_that_cannot_be_is_refused_without_repeating_a_secret(options, words) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        build(**options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "tab\tbed", "schlüssel", "a\u2028b"])
def test_a_key_that_no_header_carries_is_refused_without_repeating_it(monkeypatch, value) -> None:
    monkeypatch.setenv("KEY", value)
    with pytest.raises(RecipeError, match="KEY holds characters") as caught:
        build(key_env="KEY").secrets()
    assert value not in str(caught.value)


def test_keys_are_read_when_they_are_needed_and_trimmed(monkeypatch) -> None:
    teacher = build(key_env="KEY", headers_env={"X-Gateway": "GATEWAY"})
    with pytest.raises(RecipeError, match="KEY is not set"):
        teacher.secrets()
    monkeypatch.setenv("KEY", "k1 \n")
    monkeypatch.setenv("GATEWAY", "g1")
    assert teacher.secrets() == ("k1", {"X-Gateway": "g1"})


def test_what_decides_about_answers_identifies_the_teacher_and_what_does_not_does_not() -> None:
    base = build().fingerprint
    for other in ({"model": "x"}, {"api": "completions"}, {"extra_body": {"a": 1}}, {"omit": ["top_p"]}):
        assert build(**other).fingerprint != base
    for same in (
        {"price": {"input": 1, "output": 2}},
        {"terms": "t"},
        {"key_env": "K"},
        {"endpoint": "https://host/v1/"},
    ):
        assert build(**same).fingerprint == base


def test_it_gives_no_distribution() -> None:
    with pytest.raises(SignalError, match="served as text"):
        build().signal(None)  # type: ignore[arg-type]
