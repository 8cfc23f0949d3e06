"""One measured quantity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """One measured quantity: made where it is measured, and unchanged in every file, table and plot.

    Without a value, `reason` says why there is none; with one, why it has no interval.
    """

    key: str  # its name in evaluation.json and summary.json
    value: float | None = None
    low: float | None = None  # 95 % interval by resampling prompts
    high: float | None = None
    n: int | None = None  # prompts
    reason: str = ""
    label: str = ""
    unit: str = ""  # "nats per token"; a "share" of 1 is printed in percent
    better: Literal["up", "down", ""] = ""
    meaning: str = ""  # one sentence for the page
    place: Literal["headline", "result", "behaviour", "cost"] = "result"  # where the page shows it
    floor: float | None = None  # what an answer that knows nothing reaches
    floor_of: str = ""  # that answer: "the prompt copied"
    pairs: tuple[tuple[float, float], ...] = ()  # (numerator, denominator) of each prompt; not stored
    floors: tuple[float, ...] = ()  # the floor's numerators, beside `pairs`; not stored
    shape: Callable[[Any], Any] | None = None  # applied to the ratio (exp for a perplexity); not stored
    counts: tuple[tuple[float, ...], ...] = ()  # of each prompt, where the value is no ratio; not stored
    statistic: Callable[[Any], Any] | None = None  # the value of summed counts [draws, k]; not stored

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval, or None where it was not measured."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def above(self, trivial: Mapping[str, Sequence[float]]) -> Figure:
        """The figure with its floor: the best of these answers' numerators, one for each of `pairs`."""
        if not self.pairs:
            return self
        name, best = max(trivial.items(), key=lambda one: sum(one[1]))
        total = sum(bottom for _, bottom in self.pairs)
        return replace(self, floor=sum(best) / total, floor_of=name, floors=tuple(best))

    def stored(self) -> dict[str, Any]:
        """Every field that a file keeps; `Figure(**stored)` is the figure again, without its prompts."""
        unstored = ("pairs", "floors", "shape", "counts", "statistic")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in unstored}
