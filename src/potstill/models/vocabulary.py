"""Identity of vocabularies: two models share one when their id-to-token maps agree.

The size in a config does not tell: output layers are padded to different widths, and different tokenizers
can have equal sizes.
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


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """Read the vocabulary of a transformers tokenizer, added tokens included."""
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk")}
    return Vocabulary(tokens, special)


def first_conflict(teacher: Vocabulary, student: Vocabulary) -> str | None:
    """Describe the first id with two meanings; None when the vocabularies are the same."""
    for index in sorted(teacher.tokens.keys() | student.tokens.keys()):
        left, right = teacher.tokens.get(index), student.tokens.get(index)
        if left != right:
            return f"id {index} is {left!r} for the teacher and {right!r} for the student"
    return None


def require_same(teacher: Vocabulary, student: Vocabulary) -> None:
    """Require that an id means the same to both models.

    Raises:
        VocabularyError: the maps differ; names the first such id.
    """
    if conflict := first_conflict(teacher, student):
        raise VocabularyError(
            f"teacher and student do not share a vocabulary: {conflict}"
            f" (sizes {teacher.size} and {student.size}).",
            fix="Train on the teacher's text instead (stages: generate, finetune), which needs no shared ids.",
        )


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
