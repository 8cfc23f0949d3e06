"""Requests to a scripted endpoint, without a recipe."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from builders.endpoint import Act, Endpoint, Turned, answer
from potstill.generate import openai
from potstill.generate.price import Price
from potstill.generate.sampling import Sampling
from potstill.generate.served import Asked, Given, Spending, TextRequest
from potstill.teachers.served import ServedTeacher

PRICE = Price(1.0, 10.0)  # a reply of 10 + 5 tokens costs 0.00006
PROMPTS = [f"w{i}" for i in range(12)]
HUNDRED = [f"p{i}" for i in range(100)]


class Agreed:
    """Somebody who agrees to every price, or to none."""

    def __init__(self, answer: BaseException | None = None) -> None:
        self.questions: list[str] = []
        self._answer = answer

    def __call__(self, question: str) -> None:
        self.questions.append(question)
        if self._answer is not None:
            raise self._answer


def teacher(endpoint: Endpoint | str, **changes: Any) -> ServedTeacher:
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    return ServedTeacher(**({"endpoint": url, "model": "big", "price": PRICE} | changes))


def asked(prompts: Sequence[str], samples: int = 1) -> list[Asked]:
    return [Asked(({"role": "user", "content": text},), 10, tuple(range(samples))) for text in prompts]


def request(endpoint: Endpoint | str, place: Path, prompts: Sequence[str], **changes: Any) -> TextRequest:
    """A request for these prompts, with a clock whose time passes only where somebody waits."""
    parts: dict[str, Any] = {
        "teacher": teacher(endpoint, **changes.pop("teacher", {})),
        "prompts": changes.pop("asked", None) or asked(prompts, changes.pop("samples", 1)),
        "sampling": Sampling(changes.pop("most", 20), changes.pop("temperature", 0.7)),
        "seed": 0,
        "workers": 4,
        "journal": place / "journal.sqlite",
        "payer": "run/generate",
        "clock": Turned(),
    }
    return TextRequest(**(parts | changes))


def ask(
    endpoint: Endpoint | str,
    place: Path,
    prompts: Sequence[str],
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> list[Given]:
    """What comes back, in the prompts' order."""
    made = request(endpoint, place, prompts, **changes)
    return sorted(openai.write(made, **(options or {})), key=lambda given: (given.index, given.sample))


def texts(given: Sequence[Given]) -> list[str]:
    return [one.text for one in given]


def last(spendings: Sequence[Spending]) -> Spending:
    return spendings[-1]


def once(fault: Act) -> Callable[[Any, int], Act]:
    """A script: this at a prompt's first request, then an answer."""
    return lambda sent, times: fault if times == 0 else answer(f"so {sent.prompt}")


def attempts(place: Path, columns: str = "*") -> list[tuple[Any, ...]]:
    """The rows of the journal, in the order in which they were written."""
    with closing(sqlite3.connect(place / "journal.sqlite")) as db:
        return db.execute(f"SELECT {columns} FROM attempts ORDER BY id").fetchall()


def states(place: Path) -> list[str]:
    """The state of each of these rows."""
    return [state for (state,) in attempts(place, "state")]


def change(place: Path, sql: str) -> None:
    """Put the journal into the state that a killed process leaves."""
    with closing(sqlite3.connect(place / "journal.sqlite")) as db, db:
        db.execute(sql)
