"""What a run offers to whoever makes its teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.data.reader import Reader


@dataclass(frozen=True)
class TeacherContext:
    """What a run offers to whoever makes its teacher.

    Args:
        base: folder that relative paths start from.
        device: where its weights belong.
        reader: makes a reader of a tokenizer, and of the ids that end the model's answers where it has any,
            with the chat template and policies of the recipe's data.
        sharded: whether each process of the run holds a part of it.
        read_on: where its signals are read: the student's device; its own where none is named.
        member: makes another teacher from what a recipe says of it, and where it says so.
        average: which average of several teachers suits what the recipe compares by, and why.
    """

    base: Path
    device: torch.device
    reader: Callable[..., Reader]
    sharded: bool = False
    read_on: torch.device | None = None
    member: Callable[[Any, str], Any] | None = None
    average: tuple[str, str] = ("probabilities", "right for forward KL")
