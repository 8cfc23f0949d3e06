"""What stages read of a capture: the teacher that they are given, and the rows that were reached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from potstill.data.reader import Reader
from potstill.errors import DataError, RecipeError
from potstill.recipe.training import Training
from potstill.signals.teacher import Teacher
from potstill.stages._context import Context, Setup, State
from potstill.stages._training_rows import TrainingRows
from potstill.store.artifacts import key_of
from potstill.teachers._remembering import Remembering
from potstill.teachers.cached import CachedTeacher, reading_of
from potstill.types import Example


def teaching(spec: Training, state: State, context: Context) -> Teacher:
    """The teacher of a training stage: the cache, where one was captured and no student writes text; one that remembers
    also beside a student that writes, for the rows and rollouts that return.

    Raises:
        RecipeError: a teacher in parts is to remember, and each of its passes needs all processes.
    """
    live: Any = context.setup.teacher
    writes = "live" in spec.asks
    if state.captured is not None and not writes:
        return _cached(state, context)
    if not getattr(live, "remembers", False) or (writes and live.sharded):
        return live
    if live.sharded:
        raise RecipeError(
            "cannot keep the signals of a teacher in parts.",
            path="teacher.cache",
            fix="Put a capture stage before the training, or leave cache out.",
        )
    if "remembering" not in context.memo:
        vocabulary = context.setup.readers.teacher_reader.vocabulary.size
        folder = context.store.work("kept", key_of("kept", {"teacher": live.fingerprint}))
        context.memo["remembering"] = Remembering(live, folder, vocabulary)
    return context.memo["remembering"]


def measuring(state: State, context: Context) -> Teacher:
    """The teacher that students are compared with: the cache of held-out rows, where there is one."""
    live: Any = context.setup.teacher
    # What is kept of a served teacher is of its training rows.
    if state.captured is None or live.reads is None:
        return heldout_of(live)
    kept = heldout_of(_cached(state, context))
    # Several teachers have no hidden state in common: what is kept of them is less than they say here.
    whole = "dense" in live.provides and getattr(live, "batchwise", True)
    return heldout_of(live) if whole and "dense" not in kept.provides else kept


def is_whole(teacher: Any) -> bool:
    """Whether one teacher gives its whole distribution, which is what can be compiled."""
    return "dense" in teacher.provides and not hasattr(teacher, "members")


def heldout_of(teacher: Any) -> Teacher:
    """The same teacher on the rows to measure on; itself where it is the same for all rows."""
    measured: Teacher = teacher.heldout() if hasattr(teacher, "heldout") else teacher
    return measured


def _cached(state: State, context: Context) -> CachedTeacher:
    assert state.captured is not None
    key = "captured", state.captured.key
    if key not in context.memo:
        reader = context.setup.readers.of_prompts
        context.memo[key] = CachedTeacher(state.captured.path, reader, context.setup.device)
    return context.memo[key]


def reached(name: str, rows: TrainingRows, teacher: Teacher, context: Context) -> TrainingRows:
    """The rows whose signals are at hand, of a cache that a deadline cut short; all rows of any other teacher.

    Raises:
        CacheMiss: a row was never to be captured; says what was prepared otherwise.
        DataError: none was reached.
    """
    if not hasattr(teacher, "caches"):
        return rows
    train, validation = (_reached(part, teacher, context) for part in (rows.train, rows.validation))
    if rows.train and not train:
        raise DataError(
            f"none of the {len(rows.train)} training rows was captured before the deadline.",
            path=f"stages.{name}",
            fix="Capture again with a later deadline.",
        )
    if lost := len(rows.train) - len(train):
        context.console.warn(
            f"{name}: trains on {len(train)} of {len(rows.train)} rows: {lost} were not captured before the deadline."
        )
    return replace(rows, train=tuple(train), validation=tuple(validation))


def _reached(rows: Sequence[Example], teacher: Any, context: Context) -> list[Example]:
    kept = []
    for row in rows:
        absent = lacking(row, teacher)
        for cache in absent:
            if not cache.not_reached(reading_of(row)):
                raise cache.miss(row.id, differences(cache, context.setup))
        if not absent:
            kept.append(row)
    return kept


def lacking(row: Example, teacher: Any) -> list[CachedTeacher]:
    """The caches that are asked about a row and do not hold it."""
    reading = reading_of(row)
    if not any(reading.scored):
        return []
    return [cache for cache in teacher.caches(row) if not cache.holds(reading)]


def prepared(setup: Setup) -> dict[str, Any]:
    """What decides on the ids of a row, for the capture to keep and a miss to compare."""
    readers = setup.readers
    reader = readers.of_prompts
    return {
        "template": reader.templater.fingerprint,
        "tokenizer": tokenizer_identity(reader),
        "student's template": readers.student.templater.fingerprint,
        "student's tokenizer": tokenizer_identity(readers.student),
        "max_length": setup.max_length,
        "data seed": setup.data_seed,
    }


def differences(teacher: CachedTeacher, setup: Setup) -> str:
    """What was prepared otherwise than for the capture, as a sentence."""
    then, now = teacher.facts["prepared"], prepared(setup)
    different = [name for name in now if name in then and then[name] != now[name]]
    if not different:
        same = [name for name in now if name in then]
        if not same:
            return "How its rows were prepared is not known."
        are = "are those" if len(same) > 1 else "is that"
        return f"The {', '.join(same)} {are} of the capture: the rows or their answers differ."
    shown = (f"{name} ({then[name]} then, {now[name]} now)" for name in different if name in _SHOWN)
    return f"What differs: {', '.join([*(name for name in different if name not in _SHOWN), *shown])}."


_SHOWN = ("max_length", "data seed")


def tokenizer_identity(reader: Reader) -> str:
    """What identifies a tokenizer by all that decides how it reads and writes text."""
    backend = getattr(reader.tokenizer, "backend_tokenizer", None)
    whole = {} if backend is None else json.loads(backend.to_str())
    about = {name: part for name, part in whole.items() if name not in ("padding", "truncation")}
    tokens, special = sorted(reader.vocabulary.tokens.items()), sorted(reader.tokenizer.all_special_ids)
    return key_of(
        "tokenizer", {"tokens": tokens, "rules": about, "ends": [*reader.stop_ids], "special": special}
    )


def vocabulary_hash(reader: Reader) -> str:
    """What identifies a tokenizer's ids."""
    return key_of("vocabulary", {"tokens": sorted(reader.vocabulary.tokens.items())})[:16]
