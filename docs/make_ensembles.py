"""Draw docs/figures/ensembles.svg: what two averages make of one sharp teacher. python docs/make_ensembles.py"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.report.svg import Scale, tag
from potstill.signals.pool import averaged

PICTURE = Path(__file__).parent / "figures" / "ensembles.svg"
SOFT, OTHER = (2.0, 0.0, 0.0), (0.0, 1.0, 0.0)  # logits of two teachers on three tokens
SCALES = [1 + 0.25 * step for step in range(21)]  # what the first teacher's logits are multiplied with
INK, QUIET, GRID, CARD = "#22262a", "#5b6269", "#e4e6e8", "#ffffff"
LINES = {
    "average of raw logits": ("#b3541e", ""),
    "average of probabilities": ("#2b6a6c", "6 4"),
    "raw logits, calibrated first": ("#7a5ea8", "2 3"),
}


def share(name: str, scale: float) -> float:
    """The probability of the first teacher's favourite in the average."""
    first, second = (torch.tensor([z], dtype=torch.float64) for z in (SOFT, OTHER))
    even = torch.full((1, 2), 0.5, dtype=torch.float64)
    sharp = scale * first
    if name == "average of raw logits":
        return float(((sharp + second) / 2).softmax(-1)[0, 0])
    if name == "average of probabilities":
        return float(
            averaged([sharp.log_softmax(-1), second.log_softmax(-1)], even, "probabilities").exp()[0, 0]
        )
    sides = [(sharp / scale).log_softmax(-1), second.log_softmax(-1)]
    return float(averaged(sides, even, "log_probabilities").exp()[0, 0])


def lines(across: Callable[[float], float], up: Callable[[float], float]) -> list[Any]:
    """The three curves, each with its name at its end."""
    parts = []
    for name, (colour, dash) in LINES.items():
        values = [share(name, scale) for scale in SCALES]
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(SCALES, values, strict=True))
        parts += [
            tag("polyline", points=points, fill="none", stroke=colour, stroke_width=2, stroke_dasharray=dash),
            tag("text", name, x=across(SCALES[-1]) + 8, y=up(values[-1]) + 4, fill=colour, font_size=12),
        ]
    return parts


def picture() -> str:
    """The chart as SVG."""
    left, right, top, bottom = 50.0, 400.0, 50.0, 230.0
    across, up = Scale(SCALES[0], SCALES[-1], left, right), Scale(0.4, 1.0, bottom, top)
    parts: list[Any] = [
        tag("title", "One teacher's favourite in the average of two, as that teacher grows sharper"),
        tag("rect", x=0, y=0, width=610, height=280, fill=CARD),
        tag(
            "text",
            "the sharp teacher's favourite in the average",
            x=left,
            y=28,
            fill=INK,
            font_size=13,
            font_weight=600,
        ),
    ]
    for mark in (0.4, 0.6, 0.8, 1.0):
        y = up(mark)
        parts += [
            tag("line", x1=left, x2=right, y1=y, y2=y, stroke=GRID),
            tag("text", f"{mark:.1f}", x=left - 6, y=y + 4, fill=QUIET, font_size=11, text_anchor="end"),
        ]
    for scale in (1, 2, 3, 4, 5, 6):
        parts.append(_below(f"×{scale}", across(scale), bottom + 18))
    parts += [*lines(across, up), _below("one teacher's logits, multiplied", (left + right) / 2, bottom + 40)]
    size = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": "0 0 610 280", "font_family": "sans-serif"}
    return f"{tag('svg', *parts, **size)}\n"


def _below(text: str, x: float, y: float) -> Any:
    return tag("text", text, x=x, y=y, fill=QUIET, font_size=11, text_anchor="middle")


def table(scales: Sequence[float] = (1, 3, 6)) -> str:
    """The same in numbers, as docs/ensembles.md prints it."""
    head = "| logits of one teacher | " + " | ".join(f"×{scale:g}" for scale in scales) + " |"
    rows = [
        f"| {name} | " + " | ".join(f"{share(name, scale):.2f}" for scale in scales) + " |" for name in LINES
    ]
    return "\n".join([head, "|---" * (len(scales) + 1) + "|", *rows])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(table())
