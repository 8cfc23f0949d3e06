"""What `auto` may depend on, and what it became."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

# Memory for the logits of a chunk, both sides. A CPU's caches want few rows. A GPU's units want many, and it reads and
# writes the whole gradient of a trained head once a chunk.
CHUNK_BYTES = {"cpu": 96 * 2**20, "mps": 96 * 2**20, "cuda": 512 * 2**20}
# A compiled loss keeps no temporaries of a chunk's size, so that twice the rows take less memory than without it.
COMPILED_CHUNK_BYTES = CHUNK_BYTES | {"cuda": 2**30}
# Compiling takes seconds; in a step of 32 thousand scored tokens the passes it removes take a tenth or two of one.
COMPILED_STEPS = 200


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
    whole: bool = True  # one teacher gives its whole distribution
    no_compiler: str | None = None  # why the loss cannot be compiled here

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


Value = TypeVar("Value")


def settled(value: Value | str | None) -> Value:
    """The value of an option that is no longer `auto` or left out."""
    assert value is not None
    assert value != "auto"
    return value  # type: ignore[return-value]
