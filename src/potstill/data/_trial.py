"""Render one chat template within limits, in a process of its own: a script that imports jinja2 alone.

Reads {"template", "variables", "inputs"} as JSON from stdin and prints {"characters", "memory"}: the length of the
longest text, and whether memory ran out. A template that needs more time is ended by the system.
"""

from __future__ import annotations

import itertools
import json
import math
import resource
import sys
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 1  # of computing, beside the start of the process
MEMORY = 512 * 2**20  # bytes

_CALL = {"id": "c0", "type": "function", "function": {"name": "area", "arguments": {"side": 5}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "area",
        "description": "Area of a square.",
        "parameters": {"type": "object", "properties": {"side": {"type": "integer", "description": "m"}}},
    },
}
_SYSTEM, _USER, _ANSWER = (
    {"role": role, "content": f"{role} " * 50} for role in ("system", "user", "assistant")
)
_CALLED = [
    _USER,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "25", "name": "area", "tool_call_id": "c0"},
    _ANSWER,
]
CONVERSATIONS: list[tuple[list[Any], list[Any] | None]] = [
    ([_USER], None),
    ([_USER, _ANSWER], None),
    ([_SYSTEM, _USER, _ANSWER] + 20 * [_USER, _ANSWER], None),
    (_CALLED, [_TOOL]),
    ([_SYSTEM, *_CALLED], [_TOOL]),
]


class Generation(Extension):
    """{% generation %} marks, which print nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def longest(template: str, variables: dict[str, Any], inputs: list[dict[str, Any]] | None = None) -> int:
    """Render the conversations as transformers would, or what `inputs` give; the length of the longest text."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, indent=indent)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = datetime.now().strftime
    compiled = environment.from_string(template)
    most = 0
    talks = (
        {"messages": messages, "tools": tools, "add_generation_prompt": prompt}
        for (messages, tools), prompt in itertools.product(CONVERSATIONS, (False, True))
    )
    for given in talks if inputs is None else inputs:
        try:
            most = max(most, len(compiled.render({**variables, **given})))
        except MemoryError:
            raise
        except Exception:
            continue  # a template may refuse a conversation; whoever renders it says so
    return most


def _refuse(message: str) -> None:
    raise ValueError(message)


def _limit() -> None:
    limits = (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, MEMORY)
    for kind, most in (*limits, (resource.RLIMIT_CPU, math.ceil(time.process_time() + SECONDS))):
        with suppress(ValueError, OSError):  # a system that knows no such limit, or has a lower one
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def main() -> None:
    """Try the template that stdin names."""
    given = json.load(sys.stdin)
    result = {"characters": 0, "memory": False}
    _limit()
    try:
        result["characters"] = longest(given["template"], given["variables"], given.get("inputs"))
    except MemoryError:
        result["memory"] = True
    except Exception:
        pass  # whoever renders it says what is wrong with it
    print(json.dumps(result))


if __name__ == "__main__":
    main()
