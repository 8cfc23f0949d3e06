"""What all stages have in common: their files, their shape in a recipe, and what becomes of `auto`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.recipes import problems, read
from potstill.recipe.defaults import Facts
from potstill.recipe.stages import StageSpec, resolve_auto, run_of, stage_types, write_stage
from potstill.recipe.verbs import verbs
from potstill.stages.evaluate import Evaluate
from potstill.stages.generate import Generate


@pytest.mark.parametrize("verb", verbs())
def test_a_file_of_the_stages_folder_is_a_verb(verb: str) -> None:
    stage = stage_types()[verb]()  # type: ignore[call-arg]
    assert (stage.verb, stage.name) == (verb, verb)
    assert callable(run_of(stage))


@pytest.mark.parametrize("written", ["distill", {"distill": {"steps": 3, "name": "polish"}}])
def test_a_stage_is_written_as_it_was_read(written: Any) -> None:
    (stage,) = read(written).stages
    assert write_stage(stage, exclude_defaults=True) == written
    assert read({"distill": None}).stages == read("distill").stages


def test_a_verb_is_no_option_of_a_stage() -> None:
    assert list(problems({"distill": {"verb": "distill"}})) == ["stages.distill"]


@given(
    st.sampled_from(sorted(stage_types())),
    st.builds(
        Facts,
        device=st.sampled_from(["cpu", "cuda", "mps"]),
        bf16=st.booleans(),
        fp16=st.booleans(),
        student_kind=st.sampled_from(["full", "cut", "adapter"]),
        parameters=st.none() | st.integers(1, 10**12),
        rows=st.none() | st.integers(0, 10**6),
        train_tokens=st.none() | st.integers(0, 10**12),
        context=st.integers(1, 10**6),
    ),
)
def test_nothing_is_left_automatic_and_the_result_is_a_valid_stage(verb: str, facts: Facts) -> None:
    stage, defaults = resolve_auto(stage_types()[verb](), facts)  # type: ignore[call-arg]
    content = stage.model_dump()
    assert "auto" not in [value for key, value in content.items() if key != "format"]
    assert type(stage).model_validate(content | _plugins(stage)) == stage
    assert all(default.source and default.path.startswith(f"stages.{verb}.") for default in defaults)
    assert {default.path.rpartition(".")[2]: default.value for default in defaults}.items() <= content.items()
    assert resolve_auto(stage, facts) == (stage, ())


def _plugins(stage: StageSpec) -> dict[str, Any]:
    return {key: getattr(stage, key) for key in ("divergence", "strategy") if hasattr(stage, key)}


def test_batches_and_answers_follow_rows_and_context() -> None:
    assert resolve_auto(Generate(), Facts("cpu", rows=5))[0].batch_rows == 5
    assert resolve_auto(Evaluate(), Facts("cpu", context=64))[0].max_new_tokens == 32
