"""Final hidden states that a teacher's answers were drawn from, beside the answers: a capture needs no pass for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.generate.request import Completion
from potstill.models import anatomy
from potstill.signals.hidden import Hidden
from potstill.store.artifacts import Artifact

KEPT = "states"
BLOCK = 32  # answers


class States:
    """Writes the states of answers, some at a time; those of the last few are lost in a kill, and asked for again."""

    def __init__(self, writer: Writer | None, model: Any = None, vocabulary: int = 0) -> None:
        self._writer, self._waiting = writer, list[tuple[bytes, Hidden]]()
        if model is not None:
            self._head = anatomy.head_of(model, vocabulary, anatomy.head_form(model))

    def __enter__(self) -> States:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, prompt: tuple[int, ...], completion: Completion) -> None:
        """Keep the states of one answer to a prompt."""
        if self._writer is None or completion.states is None:
            return
        scored = (False,) * len(prompt) + (True,) * len(completion.ids)
        key = key_of((*prompt, *completion.ids), scored)
        self._waiting.append((key, Hidden(completion.states, self._head)))
        if len(self._waiting) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._writer is not None and self._waiting:
            self._writer.add_block(self._waiting)
            self._waiting = []


def finish_states(folder: Path) -> None:
    """Write the index of what all processes have kept."""
    with Writer(folder, Cache.open(folder).header) as writer:
        writer.finish()


def kept_by(answers: Artifact | None, teacher: Any) -> Cache | None:
    """The states that a generate stage kept of this teacher; None where it kept none."""
    folder = None if answers is None else answers.path / KEPT
    if folder is None or not folder.is_dir():
        return None
    cache = Cache.open(folder)
    return cache if cache.header.teacher == teacher.fingerprint else None


def dtype_of(teacher: Any) -> str:
    """The number format in which a teacher computes, by its name."""
    return str(getattr(teacher, "dtype", torch.float32)).removeprefix("torch.")
