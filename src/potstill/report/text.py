"""Long text, cut for a page."""

from __future__ import annotations


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
