"""Static SVG, drawn here: elements, scales and labels. Styles and colours live in the page's CSS.

Colour never carries meaning alone: lines differ in dash and marker, and each is labelled at its end.
Every chart is drawn WIDTH units wide and scaled by the page, so that its letters stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from potstill.console import visible
from potstill.report.numbers import number

WIDTH = 400
LETTER = 7.0  # a wide guess of a 13 unit letter's mean width, for margins


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """One element; `class_` and `text_anchor` style names are spelled for SVG, values are escaped."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for key, value in attributes.items()
    )
    inner = "".join(part if isinstance(part, Markup) else escape(visible(part)) for part in content)
    return Markup(f"<{name}{pairs}>{inner}</{name}>" if content else f"<{name}{pairs}/>")


def _plain(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else visible(str(value))


def picture(title: str, summary: str, height: float, *parts: Markup) -> Markup:
    """The outer element with its accessible name and description."""
    view = f"0 0 {WIDTH} {math.ceil(height)}"
    words = tag("title", title), tag("desc", summary or title)
    return tag("svg", *words, *parts, role="img", class_="chart", viewBox=view)


def marker(x: float, y: float, style: int) -> Markup:
    """A point's mark: filled circle, square, hollow circle, diamond by `style`."""
    kind = style % 4
    look = f"mark s{kind}"
    if kind in (0, 2):
        return tag("circle", cx=x, cy=y, r=4, class_=look)
    if kind == 1:
        return tag("rect", x=x - 3.6, y=y - 3.6, width=7.2, height=7.2, class_=look)
    return tag("path", d=f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z", class_=look)


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)


def tick_names(values: Sequence[float], log: bool = False) -> list[str]:
    """Axis labels with no more decimals than they need; on a linear axis all have the same."""
    places = [next((p for p in range(9) if math.isclose(round(v, p), v, abs_tol=1e-12)), 9) for v in values]
    most = max(places, default=0)
    return [number(v, least if log else most) for v, least in zip(values, places, strict=True)]


def tick(name: str, x: float, y: float) -> Markup:
    """An axis label under its place, kept inside the drawing at both ends."""
    side = "" if x < 16 else " end" if x > WIDTH - 16 else " mid"
    return tag("text", name, x=x, y=y, class_=f"tick{side}")


def fit(label: str, room: float) -> str:
    """The label, ended by … where it would be wider than `room`."""
    most = max(1, int(room / LETTER))
    return label if len(label) <= most else f"{label[: most - 1]}…"


def heading(label: str, value: str, y: float) -> tuple[Markup, Markup]:
    """A row's name at the left and its value at the right; the table beside a chart has both in full."""
    text = fit(value, 0.6 * WIDTH)
    return (
        tag("text", fit(label, WIDTH - LETTER * (len(text) + 2)), x=0, y=y, class_="row halo"),
        tag("text", text, x=WIDTH, y=y, class_="row end strong halo"),
    )
