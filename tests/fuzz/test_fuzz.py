"""Whatever a recipe, an override or a data file holds: a result or a sentence, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import chats, places, tiny
from builders.cli import potstill
from potstill.data.rows import read_rows
from potstill.data.template import Templater
from potstill.errors import PotstillError
from potstill.recipe.overrides import apply
from potstill.recipe.recipe import Recipe, parse_recipe, read_recipe

CALM = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
GOOD = {
    "teacher": {"model": "teacher"},
    "student": {"from_teacher": {"keep_layers": 2}},
    "data": {"train": "rows.jsonl"},
    "stages": [
        {"generate": {"max_new_tokens": 8}},
        {"distill": {"epochs": 1, "divergence": {"jsd": {"beta": 0.1}}}},
    ],
}
scalars = st.none() | st.booleans() | st.integers(-10, 10**7) | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["teacher", "student", "data", "stages", "seed", "name", "version", "method", "runs", "distill", "model", "epochs",
     "temperature", "ce_weight", "from_teacher", "keep_layers", "by", "train", "divergence"]
) | st.text(max_size=6)  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn) -> dict[str, object]:
    """A good recipe with one to three places changed, removed or added."""
    raw = json.loads(json.dumps(GOOD))
    for _ in range(draw(st.integers(1, 3))):
        node = raw
        while isinstance(node, dict | list) and node and draw(st.booleans()):
            step = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if not isinstance(node[step], dict | list):
                break
            node = node[step]
        if isinstance(node, list):
            node.append(draw(values))
        elif draw(st.booleans()) and node:
            node.pop(draw(st.sampled_from(sorted(node))))
        else:
            node[draw(keys)] = draw(values)
    return raw


@settings(max_examples=150, **CALM)
@given(spoiled())
def test_a_spoiled_recipe_is_read_or_refused_with_paths(raw):
    try:
        recipe = parse_recipe(raw)
    except PotstillError as error:
        assert str(error).strip()
        assert error.exit_code == 2
    else:
        assert recipe.hash() == parse_recipe(raw).hash()


@settings(max_examples=100, **CALM)
@given(text=st.text(max_size=200) | spoiled().map(lambda raw: yaml.safe_dump(raw, allow_unicode=True)))
def test_any_text_is_a_recipe_or_an_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "r.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        recipe = read_recipe(path)
    except PotstillError as error:
        assert str(error).strip()
        assert error.exit_code == 2
    else:
        assert recipe.hash() == read_recipe(path).hash()


@settings(max_examples=100, **CALM)
@given(
    st.lists(st.text(max_size=12) | st.builds("{}.{}={}".format, keys, keys, st.text(max_size=6)), max_size=3)
)
def test_any_override_is_applied_or_refused(overrides):
    try:
        changed = apply(json.loads(json.dumps(GOOD)), overrides, list(Recipe.model_fields))
        recipe = parse_recipe(changed)
    except PotstillError as error:
        assert str(error).strip()
        assert error.exit_code == 2
    else:
        assert recipe.hash() == parse_recipe(changed).hash()


lines = st.lists(
    st.binary(max_size=30)
    | st.dictionaries(
        st.sampled_from(["prompt", "response", "messages", "text", "id", "x"]), values, max_size=4
    ).map(lambda row: json.dumps(row).encode()),
    max_size=6,
)


@settings(max_examples=150, **CALM)
@given(
    lines,
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.sampled_from(["error", "skip"]),
)
def test_any_bytes_are_rows_or_an_error_with_the_place(tmp_path_factory, rows, end, start, policy):
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    path.write_bytes(start + end.join(rows))
    try:
        result = read_rows([str(path)], on_bad_row=policy)
    except PotstillError as error:
        assert str(error).strip()
        assert error.exit_code == 2
    else:
        funnel = result.funnel
        assert funnel["kept"] == len(result.rows)
        assert funnel["read"] == sum(funnel[k] for k in ("blank", "broken", "empty", "duplicate", "kept"))
        json.dumps([row.messages for row in result.rows], ensure_ascii=False).encode()


turns = st.dictionaries(
    st.sampled_from(["role", "from", "content", "value", "tool_calls", "function_call", "weight", "train", "reasoning", "x"]),
    values | st.sampled_from(
        ["user", "assistant", "tool", "tool_call", "gpt", "human", "observation", '{"name": "f", "arguments": {"a": 1}}',
         {"name": "f", "arguments": {"a": [None, 2.5]}}, [{"function": {"name": "f", "arguments": "{}"}}], 0, 1,
         [{"type": "text", "text": "hm"}], "<think>hm</think>so", "</s>"]
    ),
    max_size=4,
)  # fmt: skip
talks = st.tuples(
    st.just({"role": "user", "content": "q"}), st.lists(turns, max_size=3), st.just({"role": "assistant", "content": "a"})
).map(lambda talk: [talk[0], *talk[1], talk[2]])  # fmt: skip
odd_rows = st.fixed_dictionaries(
    {},
    optional={"messages": talks | values, "conversations": talks | values, "prompt": talks | values, "tools": values,
              "instruction": values, "question": values, "context": values, "history": talks | values,
              "answers": values, "output": values, "system_prompt": values, "functions": st.lists(turns, max_size=2)},
)  # fmt: skip


@settings(max_examples=300, **CALM)
@given(st.lists(odd_rows, min_size=1, max_size=3), st.sampled_from([chats.CHATML, chats.MARKED, chats.TOOLS]))
def test_any_row_is_scored_as_it_stands_or_refused(tmp_path_factory, rows, template):
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = chats.bytes_tokenizer(template)
    templater = Templater(tokenizer)
    try:
        kept = read_rows([str(path)], on_bad_row="skip").rows
    except PotstillError as error:
        assert str(error).strip()
        return
    for row in kept:
        try:
            examples = templater.encode_row(row)
        except PotstillError as error:
            assert str(path) in str(error)
        else:
            stop = templater.stop_ids[0] if row.text is None else tokenizer.eos_token_id
            assert all(example.input_ids[-1] == stop for example in examples)


VERDICTS = {0: ": can run", 4: ": cannot run"}


def _whole(folder: Path, raw: dict[str, object]) -> None:
    (folder / "r.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    done = potstill("check", "--quick", "r.yaml", cwd=folder)
    assert "Traceback" not in done.stderr
    if done.returncode in VERDICTS:
        assert done.stdout.splitlines()[0].endswith(VERDICTS[done.returncode])
    else:
        assert done.returncode in (2, 3), done.stderr
        assert "error: " in done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    tiny.save_tiny(place / "teacher", layers=3)
    return places.write(place, places.answered(30))


def test_the_preflight_passes_the_recipe_that_is_spoiled(folder):
    (folder / "r.yaml").write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    assert potstill("check", "--quick", "r.yaml", cwd=folder).returncode == 0


@settings(max_examples=25, **CALM)
@given(spoiled())
def test_the_preflight_survives_any_recipe(folder, raw):
    _whole(folder, raw)


@pytest.mark.prove
@settings(max_examples=2000, **CALM)
@given(spoiled())
def test_the_preflight_survives_two_thousand_recipes(folder, raw):
    _whole(folder, raw)
