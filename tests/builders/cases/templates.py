"""Mutated chat templates."""

from __future__ import annotations

import random
from pathlib import Path

from builders import chats
from builders.cases.place import SMALL, Case, empty, rows, write_recipe
from builders.mutants import edited, short, spoiled

TEMPLATES = (
    chats.CHATML, chats.FORGETFUL, chats.PREFILLED, chats.STRICT, chats.PLAIN_WORDS, chats.JOINED, chats.MARKED, chats.TOOLS,
)  # fmt: skip
FRAGMENTS = (
    "{% endfor %}", "{% if %}", "{{", "}}", "{%", "{#", "{{ x.y.z }}", "{{ 1/0 }}", "{{ messages[99].content }}", "{{ raise_exception('no') }}",
    "{{ messages | tojson }}", "{{ tools.x | tojson }}", "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{{ [] | first }}",
    "{{ 'a' | nofilter }}", "{{ ''.__class__.__mro__ }}", "{{ messages | int }}", "{{ messages + 1 }}", "{{ '%s' % messages }}", "{{ '%d' % 'a' }}",
    "{% set messages = 3 %}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{% break %}", "{% continue %}", "{% call f() %}{% endcall %}",
    "{% generation %}", "{% endgeneration %}", "{{ strftime_now('%Y') }}", "{{ strftime_now(3) }}", "{{ '\\ud800' }}", "\0", "\ud800", "\u202e",
    "{{ cycler() }}", "{{ namespace(3) }}", "{{ dict(1) }}", "{{ messages.append(1) }}", "{{ (1, 2)[5] }}", "{{ 'x'[0:none:0] }}", "{{ lipsum(1) }}",
    "{{ messages | map(attribute='x') | sum }}", "{{ messages | sort }}", "{{ messages | groupby('role') | list }}", "{{ 10 ** 400 }}", "{{ 1e400 | int }}",
    "{{ messages | length / 0 }}", "{{ none.x }}", "{{ bos_token + 1 }}", "{% raw %}", "{% filter upper %}", "{% autoescape true %}{% endautoescape %}",
)  # fmt: skip


def template_case(place: Path, dice: random.Random) -> Case:
    """A chat template with pieces changed, taken out or put in."""
    text, done = dice.choice(TEMPLATES), []
    for _ in range(dice.choice([1, 1, 2])):
        if dice.random() < 0.5:
            piece, at = dice.choice(FRAGMENTS), dice.choice([0, len(text), dice.randint(0, len(text))])
            text = text[:at] + piece + text[at:]
            done.append(f"{short(piece)} at {at}")
        else:
            text = edited(text, dice)
            done.append("edited")
    file = empty(place) / "t.jinja"
    file.write_text(text, errors="surrogatepass")
    if dice.random() < 0.1:
        file.write_bytes(spoiled(file.read_bytes(), dice)[0])
        done.append("bytes")
    chats.write_lines(place / "case/rows.jsonl", *rows(dice.choice(["prompt", "messages", "sharegpt"])))
    data = {
        "train": "case/rows.jsonl",
        "template": {"file": "case/t.jinja"},
        "on_bad_row": dice.choice(["error", "skip"]),
    }
    write_recipe(place, SMALL | {"teacher": {"model": "bytes"}, "data": data})
    commands = [["check", "--quick", "r.yaml"]]
    return Case(commands + [["run", "r.yaml"]] * (dice.random() < 0.1), f"{'; '.join(done)}: {short(text)}")
