"""Numbers, words and keys in recipe YAML."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import RecipeError, RecipeErrors
from potstill.recipe.yaml import load_value, load_yaml, to_yaml

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    WORDS,
    st.sampled_from(["1e5", "1e-5", "08", "no", "true", "~", "1_000", ".inf", "0x1F", "<<", "1:30", ""]),
)
KEYS = st.text("abcdefghij_", min_size=1, max_size=6)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("1.0e5", 1e5),
        ("1e5", 1e5),
        ("5E+3", 5e3),
        (".5", 0.5),
        ("-2.", -2.0),
        ("1_000", 1000),
        ("-3", -3),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
    ],
)
def test_a_number_is_a_number_in_every_spelling(text: str, value: object) -> None:
    read = load_yaml(f"key: {text}", "r.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["08", "010", "no", "yes", "on", "off", "1:30", "2026-11-01", "e5", "1e5x"])
def test_text_that_looks_like_a_number_or_a_boolean_stays_text(text: str) -> None:
    assert load_yaml(f"key: {text}", "r.yaml") == {"key": text}


def test_not_finite_numbers_are_read_as_such_so_that_the_recipe_can_refuse_them() -> None:
    assert math.isinf(load_value(".inf", "x"))
    assert load_value("-.INF", "x") == -math.inf
    assert math.isnan(load_value(".nan", "x"))


def test_every_key_given_twice_is_refused_with_its_line() -> None:
    with pytest.raises(RecipeErrors) as caught:
        load_yaml("a: 1\nb: {c: 1, c: 2}\na: 2\n", "r.yaml")
    assert [problem.path for problem in caught.value.problems] == ["r.yaml:3:1", "r.yaml:2:11"]
    assert "'a' is given twice, first on line 1" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a: [1", "r.yaml:1:6"),
        ("a:\n  b: c: d", "r.yaml:2:7"),
        ("\ta: 1", "r.yaml:1:1"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1"),
        ("a: !!python/object:os.system x", "r.yaml:1:4"),
        ("a: !!timestamp x", "r.yaml:1:4"),
        ("a: !!int x", "r.yaml"),
        ("1: x", "r.yaml:1:1"),
        ("- a", "r.yaml"),
        ("", "r.yaml"),
        ("# nothing", "r.yaml"),
        ("a: \x00", "r.yaml"),
        ("a: &x [*x]", "r.yaml"),
        ("[" * 5000, "r.yaml"),
    ],
)
def test_broken_yaml_names_the_place_and_a_way_out(text: str, path: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_yaml(text, "r.yaml")
    error = caught.value.problems[0] if isinstance(caught.value, RecipeErrors) else caught.value
    assert error.path == path
    assert error.fix


def test_parts_shared_by_an_anchor_can_be_changed_apart() -> None:
    read = load_yaml("a: &x {n: 1}\nb: *x\nc: {<<: *x, m: 2}", "r.yaml")
    read["a"]["n"] = 5
    assert read["b"] == {"n": 1}
    assert read["c"] == {"n": 1, "m": 2}


@given(TREES)
def test_what_is_written_is_read_back(tree: Any) -> None:
    assert load_yaml(to_yaml({"key": tree}), "r.yaml") == {"key": tree}


def bomb(depth: int, item: str, list_of: str) -> str:
    """A few lines of which each holds the line above nine times."""
    lines = [f"a0: &a0 {item}"]
    for level in range(1, depth):
        inside = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {list_of.format(inside)}")
    return "\n".join(lines)


@pytest.mark.parametrize("depth", [7, 30, 400])
@pytest.mark.parametrize(
    ("item", "list_of"),
    [("x", "[{}]"), ("{{k: v}}", "[{}]"), ("[x]", "{{k: [{}]}}"), ("{k: v}", "{{<<: [{}]}}")],
    ids=["lists", "mappings in lists", "lists in mappings", "merges"],
)
def test_aliases_that_unfold_to_very_much_are_refused(depth: int, item: str, list_of: str) -> None:
    with pytest.raises(RecipeError, match=r"aliases unfold to more than 100,000 values"):
        load_yaml(bomb(depth, item, list_of), "r.yaml")


def test_a_usual_number_of_aliases_is_read() -> None:
    text = "base: &base {steps: 3, list: [1, 2]}\n" + "\n".join(f"s{i}: *base" for i in range(500))
    value = load_yaml(text, "r.yaml")
    assert len(value) == 501
    assert value["s499"] == {"steps": 3, "list": [1, 2]}
    assert value["s0"] is not value["s1"]
