"""How a model reads text: its tokenizer, chat template and vocabulary as one value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from potstill.data.template import Templater
from potstill.models.vocabulary import Overlap, Vocabulary, overlap, read_vocabulary


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

    @property
    def unknown_id(self) -> int | None:
        """The id that stands for what the tokenizer cannot write; None where it has no such id of its own."""
        special = self.vocabulary.special
        own = special.get("unk")
        return None if own in (special.get("bos"), special.get("eos"), self.pad_id) else own

    @cached_property
    def unused_ids(self) -> tuple[int, ...]:
        """Ids below the largest that stand for nothing. Some tokenizers leave ids out of their map that have text."""
        return tuple(index for index in self.vocabulary.unused if not self._has_text(index))

    def _has_text(self, index: int) -> bool:
        try:
            return bool(self.decode([index]))
        # A tokenizer raises whatever its own code and its bindings do.
        except MemoryError:
            raise
        except Exception:
            return False

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, without special tokens and with its spaces as they are."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Readers:
    """The teacher's and the student's reader. A teacher behind an API has none."""

    teacher: Reader | None
    student: Reader
    same_prompts: bool = True  # both are asked in the same words

    @property
    def teacher_reader(self) -> Reader:
        """The teacher's reader, where it must have one: a run without it is refused before."""
        assert self.teacher is not None
        return self.teacher

    @property
    def of_prompts(self) -> Reader:
        """Who reads what the teacher answers: the teacher, else the student, where the teacher is sent the turns."""
        return self.teacher or self.student

    @cached_property
    def overlap(self) -> Overlap | None:
        """What the two vocabularies share; None without a teacher's."""
        return None if self.teacher is None else overlap(self.teacher.vocabulary, self.student.vocabulary)

    @cached_property
    def shared_vocabulary(self) -> bool:
        """Whether an id means the same to teacher and student, and both have the same ids."""
        return self.overlap is not None and self.overlap.whole

    @property
    def comparable(self) -> bool:
        """Whether both distributions can be compared, on the ids that both models have."""
        return self.overlap is not None and self.overlap.compatible

    @property
    def partial(self) -> bool:
        """Whether they can be compared on some of their ids only, because one model has more."""
        return self.comparable and not self.shared_vocabulary

    @property
    def shared_ids(self) -> int:
        """Ids that both heads are cut to where their distributions are compared.

        Ids below mean the same to both. A teacher without a reader has the student's.
        """
        return self.overlap.size if self.overlap is not None else self.student.vocabulary.size

    @property
    def padding(self) -> int:
        """The id that fills up batches which both models read: the student's, or 0 where the teacher lacks it."""
        return self.student.pad_id if self.student.pad_id < self.shared_ids else 0

    def foreign(self, ids: Iterable[int]) -> list[int]:
        """The ids that only one of the models has."""
        return [index for index in ids if index >= self.shared_ids]

    @cached_property
    def read_alike(self) -> bool:
        """Whether teacher and student read a row as the same ids, by one template and the same special tokens."""
        if self.teacher is None or not self.shared_vocabulary or not self.same_prompts:
            return False
        teacher, student = self.teacher.templater, self.student.templater
        return teacher.fingerprint == student.fingerprint and teacher.sample == student.sample

    @property
    def other_templater(self) -> Templater | None:
        """The teacher's templater, where it reads rows differently from the student's."""
        return None if self.teacher is None or self.read_alike else self.teacher.templater


def reader_of(tokenizer: Any, templater: Templater) -> Reader:
    """Build a reader. Rows are padded with the padding token, else the end token, else id 0."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Reader(tokenizer, templater, read_vocabulary(tokenizer), int(pad if pad is not None else 0))
