"""Text that models wrote, made harmless to read: invisible controls become visible."""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline, bidirectional controls, line separators, byte-order mark, surrogates
_CONTROLS = re.compile(
    "([\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff])\\1*"
)


def visible(text: str) -> str:
    """Controls that would reorder or hide text, written out as ⟨U+202E⟩; a run of one as ⟨U+202E ×9⟩."""
    return _CONTROLS.sub(_name, text.replace("\r\n", "\n"))


def _name(match: re.Match[str]) -> str:
    count = len(match[0])
    return f"⟨U+{ord(match[1]):04X}{f' ×{count}' if count > 1 else ''}⟩"


def split(text: str, limit: int) -> tuple[str, str]:
    """The first `limit` characters, up to a word's end where one is near, and the rest."""
    if len(text) <= limit:
        return text, ""
    space = max(text.rfind(" ", 0, limit), text.rfind("\n", 0, limit))
    cut = space if space > 0.8 * limit else limit
    return text[:cut], text[cut:]


def clip(text: str, limit: int) -> str:
    """At most `limit` characters, with a note of how many are not shown."""
    return (
        text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit:,} more characters not shown"
    )
