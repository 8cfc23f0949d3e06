"""Answers in another script than their prompts, or in none of the languages that a recipe allows."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal

from potstill.errors import MachineError, RecipeError
from potstill.filters._candidate import Candidate, FilterContext

LABEL = "wrong language"
BY_DEFAULT = True
ORDER = 45
ALONE = True
LETTERS = 2000  # of a text that are looked at
FEWEST = 10  # letters of an answer that says what script it is in
SHARE = 0.6  # of them in one script
# A prompt that asks for another language, in English; others are not understood.
_ASKS = re.compile(
    r"translat|transliterat|\b(?:in|into|to|from)\s+(?:simplified |traditional |modern |ancient )?"
    r"(?:chinese|mandarin|cantonese|japanese|korean|russian|ukrainian|bulgarian|serbian|greek|arabic|persian|farsi"
    r"|urdu|hebrew|hindi|marathi|nepali|sanskrit|bengali|tamil|telugu|thai|georgian|armenian|english|latin)\b",
    re.IGNORECASE,
)


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "count",
    allowed: list | None = None,
    least: int = 80,
) -> Iterator[str]:
    """Judge by script; with `allowed` by language.

    Args:
        allowed: ISO 639-1 codes, such as [en, de]; null compares the answer's script with its prompt's alone.
        least: characters of an answer whose language is looked at: that of a shorter one is a guess.

    Raises:
        MachineError: languages are named, and py3langid is not installed.
        RecipeError: a language that it does not know.
    """
    if allowed is None:
        for answer in answers:
            yield LABEL if _other_script(answer) else ""
        return
    classify, wanted = _classifier(), set(map(str, allowed))
    if unknown := sorted(wanted - _languages()):
        raise RecipeError(
            f"{unknown[0]!r} is no language that py3langid knows.",
            path="generate.filters.language.allowed",
            fix="Write codes of two letters in quotes where YAML reads them otherwise, such as [en, de, 'no'].",
        )
    for answer in answers:
        spoken = classify(answer.text) if len(answer.text) >= least else ""
        yield f"{LABEL} ({spoken})" if spoken and spoken not in wanted else ""


def _other_script(answer: Candidate) -> bool:
    counts = _scripts(answer.text)
    if counts.total() < FEWEST or _ASKS.search(answer.prompt):
        return False
    ((script, count),) = counts.most_common(1)
    expected = _scripts(answer.prompt)
    return count >= SHARE * counts.total() and bool(expected) and script not in expected


def _scripts(text: str) -> Counter[str]:
    """How many letters of each script a text has. Characters and syllables of Japanese count as one script."""
    letters = [character for character in text[: 4 * LETTERS] if character.isalpha()][:LETTERS]
    return Counter(filter(None, map(_script, letters)))


@cache
def _script(letter: str) -> str:
    """The script by the first word of a character's name in Unicode."""
    name = unicodedata.name(letter, "").partition(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "CJK") else name


@cache
def _classifier() -> Callable[[str], str]:
    try:
        import py3langid
    except ImportError as error:
        raise MachineError(
            "the package py3langid is not installed, and languages are told apart with it.",
            fix="Install it: pip install 'potstill[quality]', or leave generate.filters.language.allowed out: "
            "scripts are compared without it.",
        ) from error
    return lambda text: str(py3langid.classify(text)[0])


@cache
def _languages() -> frozenset[str]:
    import py3langid

    return frozenset(str(language) for language, _ in py3langid.rank("word"))
