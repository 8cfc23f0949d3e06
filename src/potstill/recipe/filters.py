"""Which filters of answers work, and what each does: those that work by themselves, changed as a recipe says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from potstill.recipe import plugins
from potstill.recipe.specs import Conflict, FilterChoice

LAST = 1000  # the order of a filter that states none


def at_work(named: Sequence[FilterChoice] | None) -> list[FilterChoice]:
    """Every filter that works, in the order in which they have their say; none for null.

    Those that work by themselves are among them unless they are named with `action: ignore`.
    """
    if named is None:
        return []
    by_name = {
        name: FilterChoice(name=name)
        for name, one in plugins.plugins("filters").items()
        if one.constants.get("BY_DEFAULT")
    }
    by_name |= {choice.name: choice for choice in named}
    working = [choice for choice in by_name.values() if action_of(choice) != "ignore"]
    return sorted(working, key=order_of)


def order_of(choice: FilterChoice) -> int:
    """Its place among the filters; the lowest number has its say first."""
    return int(choice.constant("ORDER") or LAST)


def action_of(choice: FilterChoice) -> str:
    """What becomes of an answer that a filter has a problem with: reject, count or ignore."""
    options = {option.name: option.default for option in plugins.find(choice.family, choice.name).options}
    return str(choice.options.get("action", options.get("action", "reject")))


def label_of(choice: FilterChoice) -> str:
    """What a filter catches, in a few words."""
    return str(choice.constant("LABEL") or choice.name)


def in_words(choices: Sequence[FilterChoice]) -> str:
    """The filters that work, by what they do."""
    parts = [
        f"{', '.join(names)} {does}"
        for action, does in (("reject", "are rejected"), ("count", "are counted and kept"))
        if (names := [choice.name for choice in choices if action_of(choice) == action])
    ]
    return "; ".join(parts) or "none works: every answer with a word in it is trained on"


def conflicts(named: Sequence[FilterChoice] | None) -> Iterator[Conflict]:
    """A filter that is named twice."""
    counts = Counter(choice.name for choice in named or ())
    for name in sorted(name for name, count in counts.items() if count > 1):
        yield Conflict("filters", f"name {name} twice.", "Name it once, with all its options.")
