"""Rows, readers of the tiny tokenizer, and what an example scores."""

from __future__ import annotations

from typing import Any

from builders.chats import chat
from builders.tiny import TEMPLATE, tiny_tokenizer
from potstill.data.reader import Reader, reader_of
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.types import Example


def reader(words: int = 128, template: str = TEMPLATE) -> Reader:
    tokenizer = tiny_tokenizer(words, template)
    return reader_of(tokenizer, Templater(tokenizer))


def rows(count: int, per_prompt: int = 1, name: str = "r") -> list[Row]:
    """Rows with an answer each, `per_prompt` of them to one question."""
    return [
        Row(f"{name}{i}", chat(f"question {name} {i // per_prompt}", f"answer {i}")) for i in range(count)
    ]


def scored(example: Example) -> list[int]:
    """The ids that are scored."""
    return [token for token, target in zip(example.input_ids, example.scored, strict=True) if target]


def spoken(tokenizer: Any, *examples: Example) -> list[str]:
    """The text that each example scores."""
    return [tokenizer.decode(scored(example)) for example in examples]
