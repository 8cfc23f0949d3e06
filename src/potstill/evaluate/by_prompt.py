"""A student's figures prompt by prompt, as files hold them: so that runs can be compared long after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from potstill.types import Figure


def stored(figure: Figure, measured_on: str) -> dict[str, Any] | None:
    """The figure's prompts for a file; None where it has none, or a shape that no file holds.

    `measured_on` identifies the answers that were measured, in order.
    """
    if not figure.pairs or figure.shape not in (None, np.exp):
        return None
    pairs = [list(pair) for pair in figure.pairs]
    return {"measured_on": measured_on, "exp": figure.shape is np.exp, "pairs": pairs}


def restored(figure: Figure, entry: Mapping[str, Any]) -> Figure:
    """The figure with the prompts that `stored` gave."""
    pairs = tuple((float(top), float(bottom)) for top, bottom in entry["pairs"])
    return replace(figure, pairs=pairs, shape=np.exp if entry["exp"] else None)
