"""How a student's own text looks: repeated 4-grams, length, answers cut at the limit and empty ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from potstill.devices import ranks

GRAM = 4


def health(texts: Sequence[Sequence[int]], truncated: Sequence[bool]) -> dict[str, float]:
    """Measure the rollouts that all processes wrote in one step; every process must call it.

    Args:
        texts: ids of each rollout, with the id that ended it.
        truncated: which of them the limit cut, so that nothing ended them.

    Returns:
        `rollouts` and `rollout_tokens`, counts; `rollout_length` (ids of a rollout without its end), `repetition`
        (the share of 4-grams of ids that occurred before in the same rollout), `truncated` and `empty` (shares of
        the rollouts). Without rollouts there are counts alone.
    """
    parts = ranks.gather(_sums(texts, truncated))
    return _figures({name: sum(part[name] for part in parts) for name in parts[0]})


def repeated(text: Sequence[Hashable]) -> tuple[int, int]:
    """Count the 4-grams (of ids, or of words) that occurred before in the same text, and all of them."""
    grams = [tuple(text[i : i + GRAM]) for i in range(len(text) - GRAM + 1)]
    return len(grams) - len(set(grams)), len(grams)


def _sums(texts: Sequence[Sequence[int]], truncated: Sequence[bool]) -> dict[str, float]:
    pairs = [repeated(text) for text in texts]
    words = [max(0, len(text) - (not cut)) for text, cut in zip(texts, truncated, strict=True)]
    return {
        "rollouts": len(texts),
        "rollout_tokens": sum(map(len, texts)),
        "words": sum(words),
        "repeated": sum(seen for seen, _ in pairs),
        "grams": sum(count for _, count in pairs),
        "truncated": sum(truncated),
        "empty": words.count(0),
    }


def _figures(sums: Mapping[str, float]) -> dict[str, float]:
    rollouts = sums["rollouts"]
    figures = {"rollouts": rollouts, "rollout_tokens": sums["rollout_tokens"]}
    if not rollouts:
        return figures
    return figures | {
        "rollout_length": sums["words"] / rollouts,
        "repetition": sums["repeated"] / max(1.0, sums["grams"]),
        "truncated": sums["truncated"] / rollouts,
        "empty": sums["empty"] / rollouts,
    }
