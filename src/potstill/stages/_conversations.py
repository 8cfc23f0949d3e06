"""The conversations that a served teacher is asked, each once, and the rows that its answers belong to."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.data.prompts import Prompt
from potstill.generate.sampling import Sampling
from potstill.generate.served import Asked, Given
from potstill.stages._context import Context
from potstill.store.artifacts import key_of

Draw = tuple[int, int]  # the place of a conversation, and the number of the answer to it
_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")


def digest_of(asked: Asked) -> str:
    """What identifies a conversation in files of answers."""
    return key_of("conversation", {"turns": asked.messages})[:32]


def conversations(
    prompts: Sequence[Prompt], sampling: Sampling, context: Context
) -> tuple[list[Asked], list[tuple[str, int, Draw]]]:
    """Every conversation once, and the row, sample and draw of every answer.

    Rows with one conversation have draws of their own, unless all are the likeliest text.
    """
    by_id = {row.id: row for row in context.setup.data.everything}
    templater = context.setup.readers.student.templater
    places: dict[str, int] = {}
    parts: list[tuple[Any, Any, int]] = []
    used: Counter[int] = Counter()
    rows: list[tuple[str, int, Draw]] = []
    for prompt in prompts:
        row = by_id[prompt.row_id]
        turns = tuple(_turn(message) for message in templater.conversation(row.for_teacher.prompt))
        place = places.setdefault(key_of("conversation", {"turns": turns, "tools": row.tools}), len(places))
        if place == len(parts):
            tokens = len(prompt.ids)
            if row.teacher_turns:  # about: the student's template need not take them
                tokens = len(templater.text_ids("\n".join(turn["content"] for turn in row.teacher_turns)))
            parts.append((turns, row.tools, tokens))
        for sample in range(prompt.samples):
            rows.append((prompt.row_id, sample, (place, used[place])))
            used[place] += sampling.temperature > 0
    numbers: dict[int, list[int]] = {}
    for _, _, (place, draw) in rows:
        numbers.setdefault(place, []).append(draw)
    asked = [
        Asked(turns, tokens, tuple(dict.fromkeys(numbers[place])), tools)
        for place, (turns, tools, tokens) in enumerate(parts)
    ]
    return asked, rows


def repeated(given: Mapping[Draw, Given]) -> tuple[int, int]:
    """How many conversations have several answers, and how many of these have one text over and over."""
    texts = defaultdict[int, list[str]](list)
    for (place, _), one in given.items():
        if not one.reason:
            texts[place].append(one.text)
    several = [answers for answers in texts.values() if len(answers) > 1]
    return len(several), sum(len(set(answers)) == 1 for answers in several)


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as the protocol writes it: arguments of a tool call are JSON text."""
    turn = {key: message[key] for key in _KEYS if message.get(key) is not None}
    if calls := turn.get("tool_calls"):
        turn["tool_calls"] = [_call(call) for call in calls]
    return turn


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], sort_keys=True)
    return {**call, "function": {**function, "arguments": arguments}}
