"""Rows, readers of the tiny tokenizer, and what an example scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builders.chats import chat
from builders.tiny import TEMPLATE, tiny_tokenizer
from potstill.data.reader import Reader, reader_of
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.types import Example

SWAPPED = {20: "w21", 21: "w20"}  # names of another tokenizer


def reader(words: int = 128, template: str = TEMPLATE, names: Mapping[int, str] | None = None) -> Reader:
    tokenizer = tiny_tokenizer(words, template, names)
    return reader_of(tokenizer, Templater(tokenizer))


def rows(count: int, per_prompt: int = 1, name: str = "r") -> list[Row]:
    """Rows with an answer each, `per_prompt` of them to one question."""
    return [
        Row(f"{name}{i}", chat(f"question {name} {i // per_prompt}", f"answer {i}")) for i in range(count)
    ]


def encode(templater: Templater, *turns: str, system: str | None = None) -> list[Example]:
    """The examples of a row of these turns."""
    return templater.encode_row(Row("r", chat(*turns, system=system), source="a.jsonl:7"))


def scored(example: Example) -> list[int]:
    """The ids that are scored."""
    return [token for token, target in zip(example.input_ids, example.scored, strict=True) if target]


def spoken(tokenizer: Any, *examples: Example) -> list[str]:
    """The text that each example scores."""
    return [tokenizer.decode(scored(example)) for example in examples]
