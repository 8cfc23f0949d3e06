"""The lines of a journal of answers, each known by its prompt's ids and its draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.generate.request import Completion

Draw = tuple[str, int]  # what identifies a prompt's ids, and which of its answers
Line = dict[str, Any]


def draw_of(line: Mapping[str, Any]) -> Draw:
    """What a line's answer is known by."""
    return line["prompt"], line["sample"]


def answer_of(line: Mapping[str, Any]) -> Line:
    """What a line says of an answer, and nothing of the row or the run."""
    return {key: line[key] for key in ("prompt", "sample", "ids", "text", "finish")}


def line_of(digest: str, completion: Completion, text: str) -> Line:
    """The line of a completion, under the digest of its prompt."""
    return {
        "prompt": digest,
        "sample": completion.sample,
        "ids": list(completion.ids),
        "text": text,
        "finish": completion.finish,
    }
