"""Answers that hold a piece of a chat template: the token of a turn, or the beginning of the user's next one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.filters._candidate import Candidate, FilterContext

LABEL = "template leakage"
BY_DEFAULT = True
ORDER = 50
ALONE = True

# What the templates of the usual families write around a turn; those of the two models are in the context.
_MARKERS = re.compile(
    r"<\|[a-z0-9_]{2,40}\|>|<｜[^<>｜]{2,40}｜>|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
    r"|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|SYSTEM_PROMPT)\]"
)
_NEXT_TURN = re.compile(
    r"\n[ \t]*(?:#{2,3} ?(?:Instruction|Input|Response|User|Human|Assistant):?[ \t]*$|(?:Human|User|USER)[ \t]*:)",
    re.MULTILINE,
)


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "reject",
) -> Iterator[str]:
    """Judge by the text. A marker that the prompt holds too is quoted, not leaked."""
    for answer in answers:
        marker = _leaked(answer, context.special_tokens)
        yield f"{LABEL} ({marker})" if marker else ""


def _leaked(answer: Candidate, tokens: frozenset[str]) -> str:
    """The first marker in an answer that its prompt does not hold; "" for none."""
    text = answer.raw or answer.text
    own = (token for token in sorted(tokens) if token in text)
    usual = (match[0].strip() for rule in (_MARKERS, _NEXT_TURN) for match in rule.finditer(text))
    return next((marker for marker in (*own, *usual) if marker not in answer.prompt), "")
