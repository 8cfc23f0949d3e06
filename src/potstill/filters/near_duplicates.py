"""Long answers that nearly stand there already, for whatever prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from potstill.data.split import normal
from potstill.errors import MachineError, RecipeError
from potstill.filters._candidate import Candidate, FilterContext

LABEL = "near duplicate"
BY_DEFAULT = False
ORDER = 95
ALONE = False
PERMUTATIONS = 128  # of MinHash: the standard error of a Jaccard index is below 0.045


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "reject",
    similarity: float = 0.8,
    words: int = 3,
    least: int = 20,
) -> Iterator[str]:
    """Judge by MinHash over runs of words (Broder 1997): the first of those that are alike stays.

    Args:
        similarity: the Jaccard index of the sets of runs from which on two answers are alike.
        words: in a run.
        least: words of an answer; shorter ones may well be the same.

    Raises:
        MachineError: datasketch is not installed.
        RecipeError: an option is out of range.
    """
    place = "generate.filters.near_duplicates"
    if not 0 < similarity <= 1:
        raise RecipeError(f"must be above 0 and at most 1, not {similarity}.", path=f"{place}.similarity")
    if words < 1 or least < words:
        raise RecipeError("least must be words or more, and words 1 or more.", path=place)
    datasketch = _library()
    # The index finds candidates, with bands that are too few above this threshold.
    index = datasketch.MinHashLSH(threshold=min(similarity, 0.9), num_perm=PERMUTATIONS)
    kept: dict[int, Any] = {}
    for number, answer in enumerate(answers):
        shingles = _shingles(answer.text, words, least)
        if not shingles:
            yield ""
            continue
        sketch = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch(shingles)
        alike = any(sketch.jaccard(kept[other]) >= similarity for other in index.query(sketch))
        if not alike:
            kept[number] = sketch
            index.insert(number, sketch)
        yield LABEL if alike else ""


def _library() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise MachineError(
            "the package datasketch is not installed, and near duplicates are looked for with it.",
            fix="Install it: pip install 'potstill[quality]'. Exact ones are found without it.",
        ) from error
    return datasketch


def _shingles(text: str, words: int, least: int) -> list[bytes]:
    parts = normal(text).split()
    if len(parts) < least:
        return []
    return [
        " ".join(parts[i : i + words]).encode(errors="surrogatepass") for i in range(len(parts) - words + 1)
    ]
