"""What a model writes: ROUGE-L against the teacher's answers, and how it behaves while writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from potstill.data.policies import CLOSE, OPEN
from potstill.evaluate import stats
from potstill.types import Metric


@dataclass(frozen=True)
class Answer:
    """One written answer. `stopped` says that the model ended it itself; `tokens` counts its ids."""

    row_id: str
    text: str
    tokens: int
    stopped: bool


class Words:
    """Words of any script, for rouge_score, whose own tokenizer knows a to z and digits only.

    Scripts that write no spaces give one word a character. Latin words are cut to their stems, as
    rouge_score does it, so that English texts score what they always did.
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


def rouge_l(
    answers: Sequence[Answer], references: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Metric:
    """Mean ROUGE-L F1 (Lin 2004) with stemming, in [0, 1]; a diagnostic of likeness, not of quality."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    scores = [
        scorer.score(reference, answer.text)["rougeL"].fmeasure
        for answer, reference in zip(answers, references, strict=True)
    ]
    return stats.ratio(scores, [1.0] * len(scores), resamples=resamples, seed=seed)


def stop_rate(answers: Sequence[Answer], *, resamples: int = 2000, seed: int = 0) -> Metric:
    """The share of answers that the model ended itself."""
    return stats.ratio(
        [float(a.stopped) for a in answers], [1.0] * len(answers), resamples=resamples, seed=seed
    )


def length_ratio(
    answers: Sequence[Answer], reference_tokens: Sequence[int], *, resamples: int = 2000, seed: int = 0
) -> Metric:
    """Tokens written over the tokens of the teacher's answers."""
    return stats.ratio(
        [a.tokens for a in answers], [float(t) for t in reference_tokens], resamples=resamples, seed=seed
    )


def repetition(answers: Sequence[Answer], *, resamples: int = 2000, seed: int = 0) -> Metric:
    """The share of word 4-grams that occurred before in the same answer."""
    pairs = [_repeated(answer.text.split()) for answer in answers]
    return stats.ratio([p[0] for p in pairs], [p[1] for p in pairs], resamples=resamples, seed=seed)


def unfinished_reasoning(answers: Sequence[Answer], *, resamples: int = 2000, seed: int = 0) -> Metric:
    """The share of answers whose last <think> is never closed: a fault of form, not of content."""
    left_open = [float(a.text.rfind(OPEN) > a.text.rfind(CLOSE)) for a in answers]
    return stats.ratio(left_open, [1.0] * len(answers), resamples=resamples, seed=seed)


def _repeated(words: list[str]) -> tuple[float, float]:
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return float(len(grams) - len(set(grams))), float(len(grams))
