"""What `auto` may depend on, and what it became."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Facts:
    """What `auto` may depend on. None is unknown."""

    device: Literal["cpu", "cuda", "mps"]
    bf16: bool = False  # bfloat16 arithmetic is fast here
    fp16: bool = False  # float16 arithmetic is fast here
    student_kind: Literal["full", "cut", "adapter"] = "full"  # cut: fresh from the teacher, not yet healed
    parameters: int | None = None  # the student's
    rows: int | None = None  # training prompts
    train_tokens: int | None = None  # scored tokens in an epoch
    row_tokens: int | None = None  # all tokens of the rows in an epoch
    validation_rows: int | None = None  # rows that are kept to choose the best weights by
    validation_tokens: int | None = None  # all tokens of these
    answer_tokens: int | None = None  # most tokens that an earlier stage may write
    context: int = 2048  # tokens
    engine: str = "local"  # what runs the teacher when it writes
    teacher_format: str | None = None  # the number format of its stored weights

    @property
    def accelerated(self) -> bool:
        """Whether a GPU does the work."""
        return self.device != "cpu"

    @property
    def machine(self) -> str:
        """The machine in words."""
        return "a GPU" if self.accelerated else "a CPU"


@dataclass(frozen=True)
class Default:
    """A value that `auto` became, where it stands, and why."""

    path: str
    value: object
    source: str

    @property
    def shown(self) -> str:
        """The value as a line of text has it."""
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)


Automatic: TypeAlias = tuple[object, str]
"""A value for `auto`, and the reason for it."""
