"""What an engine of a served teacher is given and what it gives back: messages, and answers in text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.generate.sampling import Sampling


@dataclass(frozen=True)
class Asked:
    """A prompt as a conversation, and the samples of it that are wanted.

    Args:
        messages: turns with role, content and, where they have any, tool calls, as the protocol writes them.
        tools: tools that are described to the teacher.
        tokens: about how many the prompt has.
        samples: the numbers of the answers wanted; rows with one prompt have numbers of their own.
    """

    messages: tuple[Mapping[str, Any], ...]
    tokens: int
    samples: tuple[int, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Given:
    """Sample `sample` of prompt `index`. `reason` says why it is not to be used, "" where it is."""

    index: int
    sample: int
    text: str = ""
    finish: str = ""
    reason: str = ""
    attempts: int = 1
    at: float = 0.0  # when it was asked for, in seconds since 1970
    echoed: str = ""  # the model that the reply names
    endpoint: str = ""  # that gave it
    tokens_in: int | None = None  # as the reply states them
    tokens_out: int | None = None
    cached: int = 0
    cost: float | None = None  # what was paid for it; None where the price was not known then


@dataclass(frozen=True)
class Spending:
    """Where the answers to a request stand, and what they cost.

    `money` is the cost of replies that state their usage, None where the price is unknown; `unknown` counts requests
    that may have been billed and have no reply, or one without usage. `seconds` are those of this process.
    """

    done: int
    total: int
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    money: float | None = None
    currency: str = ""
    unknown: int = 0
    seconds: float = 0.0
    here: int = 0  # answers that arrived in this process

    @property
    def seconds_left(self) -> float | None:
        """By the pace so far; None before the first answer."""
        return None if not self.here else (self.total - self.done) * self.seconds / self.here

    @property
    def cost(self) -> str:
        """The money in words: an unknown price is said, never 0."""
        words = "price unknown" if self.money is None else f"{self.money:.4g} {self.currency}".strip()
        return words + (f", and {self.unknown} requests whose usage nobody stated" if self.unknown else "")


class Clock:
    """Time as engines read it, so that tests can turn it."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()

    def date(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Let go of a held condition until it is notified, or for so many seconds."""
        condition.wait(seconds)


@dataclass(frozen=True)
class TextRequest:
    """Conversations for a served teacher to answer.

    Args:
        teacher: says where and how it is asked; see `potstill.teachers.served.ServedTeacher`.
        workers: most requests in flight at once.
        journal: the file that keeps everything sent and received; several runs may share it.
        payer: whose money it is: a run and its stage. A budget counts all that was ever sent for it.
        response_format: what the server is to write, as the protocol says it; None for any text.
        ignores: says why a text shows that the server ignores `response_format`, "" where it does not.
        problem: says why a text is no valid answer, "" where it is one. The bill counts with it.
        say: prints a line.
        warn: prints a warning.
        confirm: asks whether to go on at this price; raises where the answer is not yes.
        judge: says why an answer would not be trained on, "" where it would, from its prompt, its text and its finish.
        alternatives: how many of the likeliest tokens are asked for beside each token of an answer.
        keep: is given every answer that is used, with the raw reply that it was read from.
        on_progress: called now and then.
        should_stop: asked now and then; once true nothing more is sent, and what is in flight may finish.
    """

    teacher: Any
    prompts: Sequence[Asked]
    sampling: Sampling
    seed: int
    workers: int
    journal: Path
    payer: str
    response_format: Mapping[str, Any] | None = None
    ignores: Callable[[str], str] = lambda text: ""
    problem: Callable[[str], str] = lambda text: ""
    say: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    confirm: Callable[[str], None] = lambda question: None
    judge: Callable[[str, str, str], str] = lambda prompt, text, finish: ""
    alternatives: int = 0
    keep: Callable[[Given, bytes], None] | None = None
    on_progress: Callable[[Spending], None] = lambda spending: None
    should_stop: Callable[[], bool] = lambda: False
    clock: Clock = field(default_factory=Clock)
