"""Best of n: which of several answers to a prompt a verifier calls right, and which of those are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.stages._context import Context

WRONG, NOT_KEPT = "wrong answer", "another right answer is kept"
Line = dict[str, Any]


def require_rows(spec: Any, rows: Sequence[Row], load: Callable[[Any], Any]) -> None:
    """Let a verifier refuse rows that it cannot judge answers to, before anything is asked.

    Raises:
        DataError: it refuses one.
    """
    require = getattr(load(spec.verifier), "require_row", None)
    if require is None:
        return
    for row in rows:
        require(row, **spec.verifier.options)


def verify(
    spec: Any, lines: Sequence[Line], rows: Mapping[str, Row], context: Context, asked: Iterable[str]
) -> tuple[list[Line], list[Line], Mapping[str, Any]]:
    """Keep the first right answer to each prompt, the best one, or all of them (rejection sampling). Prompts `asked` of
    whose answers no filter left any have no right answer either.

    Returns:
        the answers that are kept, in their order; the others with their reasons; and the counts.

    Raises:
        DataError: a score is no number from 0 to 1.
    """
    score = context.plugin(spec.verifier).score
    scored = [
        (line, _number(spec, score(line["text"], rows[line["row_id"]], **spec.verifier.options)))
        for line in lines
    ]
    right: dict[str, list[tuple[Line, float]]] = {row_id: [] for row_id in asked}
    for line, value in scored:
        if value >= spec.right_from:
            right[line["row_id"]].append((line, value))
    kept = {id(line) for answers in right.values() for line in _kept(answers, spec.keep_answers)}
    rejected = [
        {
            **line,
            "stage": spec.name,
            "filter": "verifier",
            "score": value,
            "reason": NOT_KEPT if value >= spec.right_from else WRONG,
        }
        for line, value in scored
        if id(line) not in kept
    ]
    without = [row_id for row_id, answers in right.items() if not answers]
    counts = {
        "by": spec.verifier.name,
        "keep": spec.keep_answers,
        "answers": len(lines),
        "right": sum(map(len, right.values())),
        "kept": len(kept),
        "prompts": len(right),
        "prompts_without_a_right_answer": len(without),
        "examples_without_a_right_answer": without[:3],
    }
    context.console.say(
        f"{spec.name}: {counts['right']} of {len(lines)} answers are right by {spec.verifier.name}, "
        f"{len(kept)} are kept; {len(without)} of {len(right)} prompts have no right answer"
    )
    return [line for line in lines if id(line) in kept], rejected, counts


def _kept(answers: Sequence[tuple[Line, float]], keep: str) -> list[Line]:
    """Of right answers to one prompt; of equally good ones the first is the best."""
    if keep == "all" or not answers:
        return [line for line, _ in answers]
    best = answers[0] if keep == "first" else max(answers, key=lambda answer: answer[1])
    return [best[0]]


def _number(spec: Any, value: Any) -> float:
    score = float(value) if isinstance(value, bool | int | float) else math.nan
    if not 0 <= score <= 1:
        raise DataError(
            f"{spec.verifier.name} scored an answer {value!r}.",
            path=f"{spec.name}.verifier",
            fix="A verifier returns a number from 0 to 1, or a truth value.",
        )
    return score
