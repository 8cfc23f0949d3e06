"""How a model reads text: its tokenizer, chat template and vocabulary as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from potstill.data.template import Templater
from potstill.models.vocabulary import Vocabulary, first_conflict, read_vocabulary


@dataclass(frozen=True)
class Reader:
    """One model's way from text to ids."""

    tokenizer: Any
    templater: Templater
    vocabulary: Vocabulary
    pad_id: int

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.templater.stop_ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, without special tokens and with its spaces as they are."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Readers:
    """The teacher's and the student's reader. A teacher behind an API has none."""

    teacher: Reader | None
    student: Reader

    @property
    def teacher_reader(self) -> Reader:
        """The teacher's reader, where it must have one: a run without it is refused before."""
        assert self.teacher is not None
        return self.teacher

    @cached_property
    def shared_vocabulary(self) -> bool:
        """Whether an id means the same to teacher and student."""
        if self.teacher is None:
            return False
        return first_conflict(self.teacher.vocabulary, self.student.vocabulary) is None

    @cached_property
    def read_alike(self) -> bool:
        """Whether teacher and student read a row as the same ids."""
        if self.teacher is None or not self.shared_vocabulary:
            return False
        return self.teacher.templater.fingerprint == self.student.templater.fingerprint

    @property
    def other_templater(self) -> Templater | None:
        """The teacher's templater, where it reads rows differently from the student's."""
        return None if self.teacher is None or self.read_alike else self.teacher.templater


def reader_of(tokenizer: Any, templater: Templater) -> Reader:
    """Build a reader. Rows are padded with the padding token, else the end token, else id 0."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Reader(tokenizer, templater, read_vocabulary(tokenizer), int(pad if pad is not None else 0))
