"""Mutations of values and bytes. Each is drawn from given dice and says what it did."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 10**9, 2**31, 2**63, -(2**63), 10**20, 10**400, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", " ", "\0", "\x1b[31mred", "\u202eright", "\u2028", "\ud800", "\U0001f9ea",
    "x" * 100_000, "auto", "null", "true", "NaN", "1e3", "0b", "~", "/dev/null", "../..", "a/b", "a:b", "!!python/object",
    "{{ x }}", "{% for %}", "<think>", "</s>", "%s", [], {}, [[]], [None], [1, "a", {}], {"": ""}, {"a": {"a": {}}}, DEEP,
)  # fmt: skip
CHARACTERS = (
    "\0",
    "\x1b",
    "\x7f",
    "\u200f",
    "\u202e",
    "\u2066",
    "\u2028",
    "\ufeff",
    "\ufffe",
    "\ud83d",
    "\udc80",
    "é",
    "e\u0301",
)
BYTES = (
    b"",
    b"\0",
    b"\0" * 64,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\r",
    b"\x85",
    b"[" * 5000,
    b"9" * 5000,
    b'"',
)


def odd(dice: random.Random) -> Any:
    """A value that fits nowhere."""
    return copy.deepcopy(dice.choice(ODD))


def short(value: Any) -> str:
    """A value in a few characters."""
    text = ascii(value)
    return text if len(text) < 80 else f"{text[:60]}… ({len(text)} characters)"


def mutate(value: Any, dice: random.Random) -> tuple[Any, str]:
    """A copy of a JSON value with one place changed, and what was done there."""
    holder = {"": copy.deepcopy(value)}
    parent, key, path = _place(holder, dice)
    action = dice.choice(_ACTIONS if parent is not holder else _ACTIONS[:1])
    before = short(parent[key])
    action(parent, key, dice)
    after = (
        short(parent[key]) if (isinstance(parent, list) and key < len(parent)) or key in parent else "removed"
    )
    return holder[""], f"{path or 'all'}: {action.__name__.strip('_')}: {before} -> {after}"


def _place(holder: dict[str, Any], dice: random.Random) -> tuple[Any, Any, str]:
    """A random place, the upper ones as likely as all of those within one of their neighbours."""
    parent, key, path = holder, "", ""
    if dice.random() < 0.03:
        return parent, key, path
    while isinstance(parent[key], dict | list) and parent[key] and (parent is holder or dice.random() < 0.75):
        parent = parent[key]
        key = dice.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        path += f".{short(key)}" if isinstance(parent, dict) else f"[{key}]"
    return parent, key, path


def _replace(parent: Any, key: Any, dice: random.Random) -> None:
    parent[key] = odd(dice)


def _delete(parent: Any, key: Any, dice: random.Random) -> None:
    del parent[key]


def _wrap(parent: Any, key: Any, dice: random.Random) -> None:
    parent[key] = dice.choice([[parent[key]], {"value": parent[key]}, [parent[key]] * 2, [[parent[key]]]])


def _as_text(parent: Any, key: Any, dice: random.Random) -> None:
    parent[key] = json.dumps(parent[key]) if not isinstance(parent[key], str) else list(parent[key])[:50]


def _duplicate(parent: Any, key: Any, dice: random.Random) -> None:
    if isinstance(parent, list):
        parent.extend([copy.deepcopy(parent[key])] * dice.choice([1, 3, 50]))
    else:
        parent[dice.choice([f"{key}s", f"{key} ", key.upper(), "", "id", "type", "\u202e"])] = copy.deepcopy(
            parent[key]
        )


def _swap(parent: Any, key: Any, dice: random.Random) -> None:
    other = dice.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key], parent[other] = parent[other], parent[key]


def _change(parent: Any, key: Any, dice: random.Random) -> None:
    value = parent[key]
    if isinstance(value, bool) or value is None:
        parent[key] = not value
    elif isinstance(value, int | float):
        parent[key] = dice.choice(
            [-value, value + 1, value - 1, value * 10**6, value * 10**30, value / 2, value * 2, str(value)]
        )
    elif isinstance(value, str):
        parent[key] = edited(value, dice)
    else:
        parent[key] = odd(dice)


_ACTIONS: list[Callable[[Any, Any, random.Random], None]] = [
    _replace,
    _change,
    _change,
    _delete,
    _wrap,
    _as_text,
    _duplicate,
    _swap,
]


def edited(text: str, dice: random.Random) -> str:
    """A text with one or several places changed."""
    start, end = sorted((dice.randint(0, len(text)), dice.randint(0, len(text))))
    start = max(start, end - 20)
    part = text[start:end]
    middle = dice.choice([
        "", part * 2, part[::-1], part.upper(), dice.choice(CHARACTERS), part + dice.choice(CHARACTERS), part * 3000,
        part.replace(" ", "\n"), dice.choice('"\'\\{}[]%&*!|>-:#,'), " " + part,
    ])  # fmt: skip
    return text[:start] + middle + text[end:]


def spoiled(data: bytes, dice: random.Random, *, within: int | None = None) -> tuple[bytes, str]:
    """Bytes of which some changed, among the first `within`; and what was done."""
    size = min(len(data), within or len(data))
    start = dice.randrange(size + 1)
    end = min(len(data), start + dice.choice([1, 1, 2, 8, 64, 1000]))
    kind = dice.choice(
        ["flip", "flip", "flip", "cut off", "removed", "doubled", "inserted", "random", "zeros", "empty"]
    )
    changed = bytearray(data)
    if kind == "flip":
        for _ in range(dice.choice([1, 2, 8]) if size else 0):
            changed[dice.randrange(size)] ^= 1 << dice.randrange(8)
    elif kind == "cut off":
        del changed[start:]
    elif kind == "removed":
        del changed[start:end]
    elif kind == "doubled":
        changed[end:end] = data[start:end]
    elif kind == "inserted":
        changed[start:start] = dice.choice(BYTES)
    elif kind == "random":
        changed[start:end] = dice.randbytes(end - start)
    elif kind == "zeros":
        changed[start:end] = bytes(end - start)
    elif dice.random() < 0.3:
        changed.clear()
    return bytes(changed), f"bytes {start} to {end} of {len(data)}: {kind}"
