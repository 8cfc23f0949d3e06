"""What a filter is given: an answer with its prompt, and what is around all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Candidate:
    """One answer: `finish` is `stop` where the teacher ended it, `length` where a limit did. `raw` is the text with the
    special tokens that the teacher wrote within it, "" where only text is known.
    """

    prompt: str
    text: str
    finish: str = "stop"
    raw: str = ""


@dataclass(frozen=True)
class FilterContext:
    """What filters compare answers with.

    `heldout` are the texts of the held-out rows, prompts and answers; `special_tokens` are the tokens, as text, that
    both models' templates write and no answer should.
    """

    heldout: Sequence[str] = ()
    special_tokens: frozenset[str] = field(default_factory=frozenset)
