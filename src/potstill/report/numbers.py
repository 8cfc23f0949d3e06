"""How the report writes numbers: measured values with intervals, counts, bytes, seconds."""

from __future__ import annotations

import math

from potstill.types import Figure


def ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    """Round values at equal distance (1, 2 or 5 times a power of ten) that cover [low, high]."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(k * step, 12) for k in range(first, last + 1))


def decimals(value: float, width: float = math.inf) -> int:
    """Decimals that show `value` to about three digits, or more where its interval is narrower."""
    size = abs(value)
    base = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or size == 0 else _leading(size) + 1
    return min(6, max(base, _leading(width))) if 0 < width < math.inf else min(6, base)


def _leading(size: float) -> int:
    return max(0, math.ceil(-math.log10(size)))


def number(value: float, places: int | None = None) -> str:
    """A plain number: thousands grouped, about three digits; powers of ten below 0.0001."""
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and abs(value) < 1e-4 and places is None:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa} × 10^{int(exponent)}".replace("-", "−")
    text = f"{value:,.{decimals(value) if places is None else places}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def distinct(one: float, other: float) -> tuple[str, str]:
    """Two numbers with as many decimals as it takes to tell them apart, where any do."""
    texts = number(one), number(other)
    places = decimals(min((one, other), key=abs))
    while texts[0] == texts[1] and one != other and places < 12:
        places += 1
        texts = number(one, places), number(other, places)
    return texts


def percent(share: float, places: int = 0) -> str:
    """A share of 1 as a percentage."""
    return f"{number(100 * share, places)} %"


def whole(count: float) -> str:
    """A count with its thousands grouped."""
    return f"{count:,.0f}"


def short(count: float) -> str:
    """A large count in thousands (K), millions (M), billions (B)."""
    return _scaled(count, "TBMK").rstrip()


def size(count: float) -> str:
    """Bytes in decimal units, as disks are sold: 1 MB = 10^6 bytes."""
    return f"{_scaled(count, 'TGMk')}B"


def _scaled(count: float, letters: str) -> str:
    for power, letter in zip((1e12, 1e9, 1e6, 1e3), letters, strict=True):
        if abs(count) >= 0.9995 * power:
            return f"{count / power:.3g} {letter}"
    return f"{whole(count)} "


def duration(seconds: float) -> str:
    """Seconds as the two largest units that matter."""
    if seconds < 59.95:
        return f"{number(seconds, 2 if seconds < 1 else 1)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def pair(figure: Figure) -> tuple[str, str]:
    """The value and its interval as text with matching decimals; ("", "") when absent."""
    if figure.value is None:
        return "", ""
    share = figure.unit == "share"
    scale, unit = (100.0, " %") if share else (1.0, "")
    ends = figure.interval
    width = math.inf if ends is None else scale * (ends[1] - ends[0])
    places = decimals(scale * figure.value, width)
    if share:
        places = min(places, decimals(10.0, width))
    if ends is None and float(figure.value).is_integer():
        places = 0
    value = number(scale * figure.value, places) + unit
    return value, "" if ends is None else " to ".join(number(scale * end, places) for end in ends)


def shown(figure: Figure) -> str:
    """A figure on one line, or why there is none."""
    value, span = pair(figure)
    return f"{value} ({span})" if span else value or figure.reason
