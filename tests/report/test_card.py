"""The model card: it says what is known, nothing else, and names with special characters break nothing in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from builders.recipes import read
from potstill.report import card
from potstill.report.card import bare, code, plain, render

SAMPLING = {"temperature": 0.7, "max_new_tokens": 8, "top_p": 1.0, "top_k": 0}
ABOUT = {"unit": "nats per token", "better": "down", "meaning": "", "place": "headline"}
HOSTILE = "a` ``b`` *c* _d_ [e](http://x) <img src=x> &copy; | $x$ ~~f~~ # g\n---\n- h: {i} \u202e\ud83d \\"
DISTILL = {"distill": {"divergence": "reverse_kl", "strategy": "on_policy", "policy_gradient": {}}}


def text(**changes: Any) -> dict[str, Any]:
    """A teacher who wrote text, as a summary names it."""
    source = {"source": "the answers of generate", "kind": "teacher", "provider": "api.example", "model": "big", "date": "2026-11-27",
              "answered_by": {"big-1": 3}, "sampling": SAMPLING, "licence": None, "terms": None, "answers": 3}  # fmt: skip
    return source | changes


def rows(*files: str, terms: str | None = None) -> dict[str, Any]:
    return {"source": ", ".join(files), "kind": "rows", "files": files, "terms": terms, "rows": 9}


def summary(
    *sources: dict[str, Any], student: Any = None, teacher: Any = None, **changes: Any
) -> dict[str, Any]:
    made = {
        "teacher": {"name": "big", "licence": None, **(teacher or {})},
        "student": {"name": "small", "licence": None, "source": "its own weights", **(student or {})},
        "figures": {}, "before": {}, "after": {}, "reference": {}, "sources": sources, "recipe_hash": "ab" * 32,
        "versions": {"potstill": "0.1.0"},
    }  # fmt: skip
    return made | changes


def made_by(*stages: Any, base_model: str = "") -> Any:
    """The outcome of a run with these stages."""
    recipe = read(*stages)
    named = {stage.name: stage for stage in recipe.stages}
    trained = tuple(name for name, stage in named.items() if stage.trains)
    facts = SimpleNamespace(facts={"steps": 300, "tokens": 12_345})
    state = SimpleNamespace(resolved=named, trained=trained, artifacts=dict.fromkeys(named, facts))
    return SimpleNamespace(recipe=recipe, state=state, base_model=base_model)


def header(made: str) -> dict[str, Any]:
    return ModelCard(made, ignore_metadata_errors=False).data.to_dict()


def body(made: str) -> str:
    return made.split("\n---\n", 1)[1]


def words(made: str) -> str:
    """The text that a reader sees; fails on anything that is neither text, code, list, heading nor table."""
    seen = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body(made)):
        for child in token.children or []:
            assert child.type in ("text", "code_inline", "softbreak", "text_special"), (
                child.type,
                child.content,
            )
            seen.append(child.content)
        assert token.type not in ("html_block", "hr", "blockquote_open", "code_block"), token.content
    return "".join(seen)


def test_every_source_stands_there_with_its_terms_and_what_nobody_states_is_not_stated() -> None:
    made = render(made_by("generate", DISTILL), summary(text(terms="research only"), rows("rows.jsonl")))
    assert (
        "- Text: 3 answers of `big` (api.example; answered by `big-1` (3)), 2026-11-27, at temperature 0.7 and at most 8 "
        "tokens an answer. Terms: research only." in made
    )
    assert "- Rows: `rows.jsonl`, 9 rows. Terms: not stated." in made
    assert "- Base: `small` (its own weights). Licence: not stated." in made
    assert "Made by potstill 0.1.0 with the recipe `recipe` (SHA-256 `" in made


def test_the_front_matter_is_one_that_the_hub_reads() -> None:
    made = render(made_by("distill", base_model="org/small"), summary())
    assert header(made) == {
        "library_name": "transformers", "base_model": "org/small", "tags": ["potstill", "distillation"],
    }  # fmt: skip
    assert "base_model" not in header(render(made_by("distill"), summary()))


@pytest.mark.parametrize(
    ("student", "teacher", "terms", "expected"),
    [
        (None, "apache-2.0", None, (None, None)),
        ("apache-2.0", None, None, ("apache-2.0", None)),
        ("apache-2.0", "apache-2.0", "apache-2.0", ("apache-2.0", None)),
        ("apache-2.0", "llama3", None, (None, None)),
        ("apache-2.0", None, "research only", (None, None)),
        ("my-licence", None, None, ("other", "my-licence")),
        ("Apache License, Version 2.0", None, None, (None, None)),
        ("no", None, None, ("other", "no")),
    ],
)
def test_a_licence_is_in_the_header_only_where_all_that_is_stated_agrees(
    student, teacher, terms, expected
) -> None:
    told = summary(rows("r.jsonl", terms=terms), student={"licence": student}, teacher={"licence": teacher})
    made = render(made_by("distill"), told)
    values = header(made)
    assert (values.get("license"), values.get("license_name")) == expected
    assert f"Licence: {student or 'not stated'}." in made


def test_terms_of_a_teacher_that_wrote_no_text_are_stated_and_keep_the_licence_out_of_the_header() -> None:
    told = summary(
        rows("r.jsonl"),
        student={"licence": "mit"},
        teacher={"licence": "mit", "terms": "research only"},
    )
    made = render(made_by("distill"), told)
    assert "license" not in header(made)
    assert "- Teacher: `big`. Licence: mit. Terms: research only." in made


def test_names_and_terms_with_special_characters_are_text_and_nothing_else() -> None:
    told = summary(
        text(model=HOSTILE, terms=HOSTILE, provider=HOSTILE, answered_by={HOSTILE: 3}),
        rows("plain name", terms=HOSTILE),
        student={"name": HOSTILE, "licence": HOSTILE},
        teacher={"name": HOSTILE},
        figures={"x": ABOUT | {"label": HOSTILE}},
        after={"x": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 7}},
    )
    made = render(made_by("generate", "distill", base_model=HOSTILE), told)
    made.encode()
    assert header(made) == {"library_name": "transformers", "tags": ["potstill", "distillation"]}
    headings = [line for line in body(made).splitlines() if line.startswith("#")]
    assert len(headings) == 5
    shown = (
        "a` ``b`` *c* _d_ [e](http://x) <img src=x> &copy; | $x$ ~~f~~ # g --- - h: {i} ⟨U+202E⟩⟨U+D83D⟩ \\"
    )
    assert words(made).count(shown) >= 6
    assert f"{shown} (nats per token)0.50 (0.40 to 0.60)" in words(made)


@pytest.mark.parametrize("written", ["plain", "`", "``a`", "a\\", "x|y", "_a_ b_c", "&#35;", "1. a", "$$x$$"])
def test_text_and_code_are_read_back_as_they_were(written) -> None:
    assert words(f"\n---\n- a: {plain(written)} {code(written)}") == f"a: {written} {written}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/home/alice/data/rows.jsonl", "rows.jsonl"), ("~/models/big", "big"), ("../rows.csv", "rows.csv"),
        ("data/rows.parquet", "rows.parquet"), ("C:\\Users\\alice\\rows.jsonl", "rows.jsonl"), ("/home/alice/big/", "big"),
        ("package:llm/big.gguf", "big.gguf"), ("org/big", "org/big"), ("org/set:sub:train", "org/set:sub:train"),
        ("accounts/fireworks/models/big", "accounts/fireworks/models/big"), ("file:///home/alice/rows", "rows"),
    ],
)  # fmt: skip
def test_a_path_on_this_machine_is_shown_without_its_folders(name, expected) -> None:
    assert bare(name) == expected
    told = summary(
        text(model=name, answered_by={name: 3}), rows(name), student={"name": name}, teacher={"name": name}
    )
    assert "alice" not in render(made_by("generate", "distill"), told)


def test_a_training_is_one_line_with_its_method_and_length() -> None:
    made = render(
        made_by("generate", DISTILL, {"finetune": {"name": "polish", "data": "t.jsonl"}}), summary()
    )
    assert (
        "- distill, divergence `reverse_kl`, strategy `on_policy`, policy gradient: 300 steps, 12,345 tokens.\n"
        "- finetune (`polish`), cross-entropy of the text: 300 steps, 12,345 tokens.\n" in made
    )
    assert "- Teacher: `big`. Licence or terms: not stated." in made


@pytest.mark.parametrize("stages", [("finetune",), ({"distill": {"self_teacher": {}}},)])
def test_a_teacher_that_was_not_asked_is_no_teacher_of_the_student(stages) -> None:
    assert "- Teacher:" not in render(made_by(*stages), summary())


def test_rows_that_no_stage_trained_on_are_no_source_of_the_student() -> None:
    made = render(made_by("evaluate"), summary(rows("rows.jsonl")))
    assert "rows.jsonl" not in made
    assert "- No stage trained it." in made


def test_an_ensemble_is_named_teacher_by_teacher() -> None:
    members = [{"name": "a"}, {"name": "/home/alice/b"}]
    assert "- Teacher: `a`, `b`." in render(made_by("distill"), summary(teacher={"members": members}))


def test_no_figure_stands_there_that_was_not_measured() -> None:
    figures = {
        "kl": ABOUT | {"label": "KL"},
        "rouge": ABOUT | {"label": "ROUGE-L", "unit": "share"},
        "cost": ABOUT | {"label": "Cost", "place": "cost"},
    }
    told = summary(
        figures=figures,
        after={
            "kl": {"value": 0.25, "low": 0.2, "high": 0.3, "n": 40},
            "rouge": None,
            "rouge_reason": "no text",
        },
        before={"kl": {"value": 1.5, "n": 40}},
        reference={"kl": {"value": 0.0}, "rouge": {"value": 1.0}},
    )
    made = render(made_by("distill", "evaluate"), told)
    assert "On 40 held-out prompts; in brackets 95 % intervals" in made
    assert "| | Distilled student | Untrained student |\n|---|---|---|\n" in made
    assert "| KL (nats per token) | 0.25 (0.20 to 0.30) | 1.50 |" in made
    assert not {"ROUGE-L", "Cost", "| Teacher |"} & {
        word for word in ("ROUGE-L", "Cost", "| Teacher |") if word in made
    }
    assert "Not evaluated." in render(made_by("distill"), summary(figures=figures))


def test_loading_takes_three_lines_that_are_python() -> None:
    (block,) = render(made_by("distill"), summary()).split("```python\n")[1:]
    source = block.partition("\n```")[0]
    compile(source, "card", "exec")
    assert len([line for line in source.splitlines() if line]) == 3
    assert card.PLACE in source
