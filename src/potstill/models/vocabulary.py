"""What two vocabularies share: the ids that both models have, where their id-to-token maps agree.

The size in a config does not tell: output layers are padded to different widths, and different tokenizers
can have equal sizes. One vocabulary may go on behind the other: added tokens, or reserved ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import VocabularyError


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens and special ids. Rows of a head beyond `size`, its largest id + 1, are padding."""

    tokens: Mapping[int, str]
    special: Mapping[str, int | None]

    @property
    def size(self) -> int:
        return max(self.tokens, default=-1) + 1

    @property
    def unused(self) -> tuple[int, ...]:
        """Ids below `size` that the map leaves out: a head has rows for them."""
        return tuple(index for index in range(self.size) if index not in self.tokens)


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """Read the vocabulary of a transformers tokenizer, added tokens included."""
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk")}
    return Vocabulary(tokens, special)


@dataclass(frozen=True)
class Overlap:
    """What two vocabularies share: an id below `size` means the same to both, or is unused on both sides.

    Ids from `size` on belong to one side alone. `example` describes the first conflict, `conflicts` counts them.
    """

    size: int
    teacher_only: int = 0
    student_only: int = 0
    conflicts: str = ""
    example: str = ""

    @property
    def compatible(self) -> bool:
        """Whether the ids below `size` can be compared: no id and no token has two meanings."""
        return not self.example

    @property
    def whole(self) -> bool:
        """Whether both vocabularies are the same."""
        return self.compatible and not self.teacher_only and not self.student_only


def overlap(teacher: Vocabulary, student: Vocabulary) -> Overlap:
    """Compare two vocabularies, id by id and token by token."""
    shared = teacher.tokens.keys() & student.tokens.keys()
    size = max(shared, default=-1) + 1
    ids_of_student = {token: index for index, token in student.tokens.items()}
    other_token = sorted(index for index in shared if teacher.tokens[index] != student.tokens[index])
    other_id = sorted(
        index for index, token in teacher.tokens.items() if ids_of_student.get(token, index) != index
    )
    # A head is cut at its end only, so an id in the middle that one side lacks stands in the way.
    alone = teacher.tokens.keys() ^ student.tokens.keys()
    between = sorted(index for index in alone if index < size)
    teacher_only = len(teacher.tokens.keys() - shared)
    student_only = len(student.tokens.keys() - shared)
    counts = {
        "ids with another token": len(other_token),
        "tokens with another id": len(other_id),
        "ids of one side alone among the shared ones": len(between),
    }
    example = ""
    if first := [*other_token, *between][:1]:
        (index,) = first
        left, right = teacher.tokens.get(index), student.tokens.get(index)
        example = f"id {index} is {left!r} for the teacher and {right!r} for the student"
    elif other_id:
        token = teacher.tokens[other_id[0]]
        example = f"{token!r} is id {other_id[0]} for the teacher and {ids_of_student[token]} for the student"
    elif not shared:
        example = "they have no id in common"
    conflicts = ", ".join(f"{what}: {count}" for what, count in counts.items() if count)
    return Overlap(size, teacher_only, student_only, conflicts, example)


def require_shared(teacher: Vocabulary, student: Vocabulary) -> Overlap:
    """Require that every id which both models have means the same to both; ids of one alone may follow.

    Raises:
        VocabularyError: an id or a token has two meanings; counts them and names the first.
    """
    result = overlap(teacher, student)
    if not result.compatible:
        counts = f"; {result.conflicts}" if result.conflicts else ""
        raise VocabularyError(
            f"teacher and student do not share a vocabulary: {result.example}{counts}"
            f" (sizes {teacher.size} and {student.size}).",
            fix="Train on the teacher's text instead (stages: generate, finetune), which needs no shared ids.",
        )
    return result


def special_differences(teacher: Vocabulary, student: Vocabulary) -> tuple[str, ...]:
    """List special ids that differ between equal maps, as those of an instruct model and its base often do."""
    return tuple(
        f"{name}: teacher {teacher.special[name]}, student {student.special[name]}"
        for name in teacher.special
        if teacher.special[name] != student.special.get(name)
    )


def require_width(rows: int, vocabulary: Vocabulary, who: str) -> None:
    """Refuse a head that is narrower than its tokenizer.

    Raises:
        VocabularyError: fewer output rows than token ids.
    """
    if rows < vocabulary.size:
        raise VocabularyError(
            f"the {who}'s output layer has {rows} rows but its tokenizer knows {vocabulary.size} ids.",
            fix="Use the tokenizer that belongs to these weights.",
        )
