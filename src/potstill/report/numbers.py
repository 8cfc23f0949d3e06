"""How the report writes numbers: measured values with intervals, counts, bytes, seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Measured:
    """A value with its 95 % interval and number of prompts; `value` None says why in `reason`."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    reason: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval, or None when it was not measured."""
        return None if self.low is None or self.high is None else (self.low, self.high)


UNKNOWN = Measured(None, reason=NOT_MEASURED)


def read(block: Mapping[str, Any] | None, key: str) -> Measured:
    """`block[key]` as a Measured: `{value, low, high, n}`, a bare number, or null with `<key>_reason`."""
    raw = (block or {}).get(key)
    reason = str((block or {}).get(f"{key}_reason") or "") or NOT_MEASURED
    found = raw if isinstance(raw, Mapping) else {"value": raw}
    value = found.get("value")
    if value is None:
        return Measured(None, reason=str(found.get("reason") or reason))
    if not math.isfinite(value):
        return Measured(None, reason=f"not a finite number ({value})")
    low, high = (_finite(found.get(end)) for end in ("low", "high"))
    return Measured(float(value), low, high, found.get("n"))


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


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


def pair(measured: Measured, as_percent: bool = False) -> tuple[str, str]:
    """The value and its interval as text with matching decimals; ("", "") when absent."""
    if measured.value is None:
        return "", ""
    scale, unit = (100.0, " %") if as_percent else (1.0, "")
    ends = measured.interval
    width = math.inf if ends is None else scale * (ends[1] - ends[0])
    places = decimals(scale * measured.value, width)
    if as_percent:
        places = min(places, decimals(10.0, width))
    value = number(scale * measured.value, places) + unit
    return value, "" if ends is None else " to ".join(number(scale * end, places) for end in ends)
