"""The figures of `summary.json` as they are read, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.types import Figure

MEASURED = ("value", "low", "high", "n")
ABOUT = ("label", "unit", "better", "meaning", "place")
RESULTS = ("headline", "result")  # places of the figures that say what a student is worth
NOT_MEASURED = "not measured"
Summary = Mapping[str, Any]


def read(summary: Summary, block: Mapping[str, Any] | None, key: str, about: str = "") -> Figure:
    """`block[key]` as a Figure: `{value, low, high, n}`, a bare number, or null with `<key>_reason`.

    `about` is the key of its description where that is another.
    """
    block, about = block or {}, about or key
    entry = block.get(key)
    if not isinstance(entry, Mapping):
        entry = {"value": entry}
    reason = entry.get("reason") or block.get(f"{key}_reason") or ""
    if entry.get("value") is None:
        reason = reason or NOT_MEASURED
    measured: dict[str, Any] = {name: entry.get(name) for name in MEASURED}
    return Figure(about, **described(summary).get(about, {"label": about}), **measured, reason=reason)


def described(summary: Summary, *places: str) -> Mapping[str, Any]:
    """The descriptions of a summary's figures by key; of these places only, where any is named."""
    figures = summary.get("figures") or {}
    return {key: about for key, about in figures.items() if not places or about["place"] in places}


def about(figure: Figure) -> dict[str, Any]:
    """A figure's description."""
    return {name: getattr(figure, name) for name in ABOUT} | {"label": figure.label or figure.key}
