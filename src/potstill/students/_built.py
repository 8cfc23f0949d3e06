"""What a student is built from, and what its build returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from potstill.console import Console
from potstill.data.batch import collate
from potstill.models.loading import Loaded
from potstill.types import Batch, Example

CALIBRATION_TOKENS = 16_384


@dataclass(frozen=True)
class StudentContext:
    """What a run offers to whoever makes its student.

    Args:
        teacher: returns the teacher, its weights loaded; None where they are not in this process.
        fingerprint: identifies the teacher.
        layers: how many the teacher has, None where that is not known.
        base: folder that relative model paths start from.
        device: where models are loaded for measurements.
        examples: returns the training rows, which may first have to be answered by the teacher.
    """

    teacher: Callable[[], Loaded] | None
    fingerprint: str
    layers: int | None
    base: Path
    device: torch.device
    examples: Callable[[], Sequence[Example]] = tuple
    pad_id: int = 0
    console: Console = field(default_factory=Console)

    def calibration(self) -> list[Example]:
        """Training rows to measure on: the first ones, up to `CALIBRATION_TOKENS`."""
        rows: list[Example] = []
        tokens = 0
        for example in self.examples():
            if tokens >= CALIBRATION_TOKENS:
                break
            rows.append(replace(example, room=0))  # a prompt that waits for its answer is read as it is
            tokens += len(example.input_ids)
        return rows

    def batches(self, label: str, size: int = 8) -> Iterator[Batch]:
        """The calibration rows as batches, with a progress bar."""
        rows = self.calibration()
        with self.console.bar(label, len(rows)) as bar:
            for start in range(0, len(rows), size):
                yield collate(rows[start : start + size], pad_id=self.pad_id)
                bar.update(min(start + size, len(rows)))


@dataclass(frozen=True)
class Reads:
    """How a student reads text: its tokenizer, the most tokens that it takes, and ids that end its answers; and how
    many values its output layer reads, where that is known."""

    tokenizer: Any
    context_length: int | None
    end_ids: tuple[int, ...] = ()
    hidden_width: int | None = None


@dataclass(frozen=True)
class Built:
    """A student before training: fp32 weights, its tokenizer, and JSON-safe facts for later readers."""

    model: Any
    tokenizer: Any
    facts: Mapping[str, Any] = field(default_factory=dict)
