"""Likeness of the greedy answers to the references (ROUGE-L)."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from potstill.evaluate.subject import Subject
from potstill.types import Figure

ROUGE_L = Figure(
    "rouge_l", label="ROUGE-L", better="up",
    meaning="Longest common subsequence of a model's answer and the reference, F-measure from 0 to 1.",
)  # fmt: skip
FIGURES = (ROUGE_L,)
NEEDS = frozenset({"answers"})


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Mean ROUGE-L F1 (Lin 2004) with stemming, in [0, 1]; a diagnostic of likeness, not of quality.

    Its floor is the better of two answers that know nothing: the prompt itself, another prompt's reference.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    references = [question.reference for question in subject.questions]

    def scores(texts: Sequence[str]) -> list[float]:
        return [
            scorer.score(reference, text)["rougeL"].fmeasure
            for reference, text in zip(references, texts, strict=True)
        ]

    figure = subject.ratio(ROUGE_L, scores([answer.text for answer in subject.answers]))
    trivial = {"the prompt copied": scores([question.last_turn for question in subject.questions])}
    if len(references) > 1:
        trivial["another prompt's reference"] = scores(references[1:] + references[:1])
    return (figure.above(trivial),)


class Words:
    """Words of any script, for rouge_score, whose own tokenizer knows a to z and digits only.

    Scripts that write no spaces give one word a character. Latin words are cut to their stems as
    rouge_score cuts them, so that English texts score what they always did.
    """

    _unspaced = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    _word = regex.compile(
        rf"(?V1)[{_unspaced}]\p{{M}}*|[[\p{{L}}\p{{N}}]--[{_unspaced}]][[\p{{L}}\p{{M}}\p{{N}}]--[{_unspaced}]]*"
    )

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """The words, lower case."""
        words = self._word.findall(text.lower())
        return [self._stemmer.stem(w) if len(w) > 3 and w.isascii() else w for w in words]
