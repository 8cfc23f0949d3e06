"""What filters say of answers, and what they are told of the recipe to say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from potstill.data.rows import Row
from potstill.filters._candidate import Candidate, FilterContext
from potstill.recipe.filters import action_of, at_work
from potstill.recipe.specs import FilterChoice
from potstill.stages._context import Context


def judge_of(spec: Any, context: Context) -> Callable[[str, str, str], str]:
    """What the filters that reject say of one answer alone, from its prompt, its text and its finish."""
    choices = [c for c in at_work(spec.filters) if action_of(c) == "reject" and c.constant("ALONE")]
    loaded = [(context.plugin(choice), choice.options) for choice in choices]
    around = FilterContext(special_tokens=special_tokens(context))

    def judge(prompt: str, text: str, finish: str) -> str:
        answer = [Candidate(prompt, text, finish)]
        reasons = (next(iter(plugin.problems(answer, around, **options))) for plugin, options in loaded)
        return next((kind_of(reason) for reason in reasons if reason), "")

    return judge


def try_filters(spec: Any, load: Callable[[FilterChoice], Any]) -> None:
    """Let filters refuse their options, and packages that are not installed, before anything is written.

    Raises:
        RecipeError, MachineError: one of them cannot work so.
    """
    for choice in at_work(spec.filters):
        list(load(choice).problems([], FilterContext(), **choice.options))


def special_tokens(context: Context) -> frozenset[str]:
    """The special tokens of both models, but for the one that stands for an unknown word."""
    readers = context.setup.readers
    every = [reader.tokenizer for reader in (readers.teacher, readers.student) if reader is not None]
    return frozenset(
        str(token)
        for tokenizer in every
        for token in (*tokenizer.all_special_tokens, *_turn_tokens(tokenizer))
        if str(token).strip() and token != tokenizer.unk_token
    )


def _turn_tokens(tokenizer: Any) -> Iterator[str]:
    """Added tokens that are marked as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return (str(token) for token in added.values() if getattr(token, "special", False))


def kind_of(reason: str) -> str:
    """A reason without what it says of one answer."""
    return reason.partition(" (")[0]


def asked_of(row: Row) -> str:
    """All that either model is asked, as text: what stands there is quoted in an answer, not made up."""
    turns = [*row.teacher_turns, *row.prompt]
    return "\n".join(str(turn.get("content", "")) for turn in turns)


def texts_of(row: Row, *, answers: bool) -> Iterator[str]:
    """The prompt and the answer of a held-out row, each turn of its own."""
    yield from filter(None, (row.text, row.own_words))
    yield from (str(turn.get("content", "")) for turn in (row.messages if answers else row.prompt))
