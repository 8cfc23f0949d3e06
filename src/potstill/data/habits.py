"""Habits that answers should not teach, detected in their text: loops and refusals.

Such rows are counted and kept: their owner decides. Both rules judge a whole answer, so that a quoted
refusal or a refrain is not counted.
"""

from __future__ import annotations

import re
from collections import Counter

LOOP_WORDS, LOOP_SHARE = 32, 0.5
_REFUSES = re.compile(
    r"^((i'?m|i am) )?(really |very |so )?(sorry|afraid)\b.{0,80}\b(can'?t|cannot|can not|unable|won'?t|not able)\b"
    r"|^(i apologi[sz]e|my apologies|unfortunately)\b.{0,80}\bi (can'?t|cannot|can not|won'?t|am unable|am not able)\b"
    r"|^(i'?m|i am) (unable|not able) to\b"
    r"|^as an ai\b.{0,80}\b(can'?t|cannot|don'?t|unable|not able)\b"
    r"|^i (can'?t|cannot|won'?t) (help|assist|provide|answer|do that|comply)\b",
    re.IGNORECASE | re.DOTALL,
)


def loops(answer: str) -> bool:
    """Whether a long answer repeats itself: half of its word 4-grams are the same one, or 80 % are repeats."""
    words = answer.split()
    if len(words) < LOOP_WORDS:
        return False
    grams = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    return max(grams.values()) >= LOOP_SHARE * grams.total() or len(grams) <= 0.2 * grams.total()


def refuses(answer: str) -> bool:
    """Whether the answer begins with a refusal."""
    return _REFUSES.match(answer.strip().replace("\u2019", "'")) is not None
