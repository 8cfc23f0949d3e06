"""What answers should not teach, told from their text alone: loops, and refusals in the model's own voice.

Rows are kept: who owns them decides. Both rules look at the whole shape of an answer, so that a quoted
refusal or a refrain is not counted.
"""

from __future__ import annotations

import re
from collections import Counter

LOOP_WORDS, LOOP_SHARE = 32, 0.5
_REFUSES = re.compile(
    r"^(i'?m|i am) (really |very |so )?(sorry|afraid)\b.{0,80}\b(can'?t|cannot|can not|unable|won'?t|not able)\b"
    r"|^(i'?m|i am) (unable|not able) to\b"
    r"|^as an ai\b.{0,80}\b(can'?t|cannot|don'?t|unable|not able)\b"
    r"|^i (can'?t|cannot|won'?t) (help|assist|provide|answer|do that|comply)\b",
    re.IGNORECASE | re.DOTALL,
)


def loops(answer: str) -> bool:
    """Whether at least half of a long answer's word 4-grams are one and the same."""
    words = answer.split()
    if len(words) < LOOP_WORDS:
        return False
    grams = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    return max(grams.values()) >= LOOP_SHARE * grams.total() or len(grams) <= 0.2 * grams.total()


def refuses(answer: str) -> bool:
    """Whether the answer begins with a refusal of its own."""
    return _REFUSES.match(answer.strip().replace("\u2019", "'")) is not None
