"""Likeness of the greedy answers to the references (ROUGE-L)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import regex

from potstill.evaluate.subject import Subject
from potstill.types import Figure

ROUGE_L = Figure(
    "rouge_l", label="ROUGE-L", better="up",
    meaning="Longest common subsequence of a model's answer and the reference, F-measure from 0 to 1. "
    "References are the answers of the data (gold); the teacher's own where no held-out row holds one.",
)  # fmt: skip
ROUGE_L_TEACHER = Figure(
    "rouge_l_teacher", label="ROUGE-L vs teacher", better="up",
    meaning="The same with the answers that the teacher wrote before training as references, also for the "
    "teacher: how much it repeats itself.",
)  # fmt: skip
FIGURES = (ROUGE_L, ROUGE_L_TEACHER)
NEEDS = frozenset({"answers"})


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Mean ROUGE-L F1 (Lin 2004) with stemming, in [0, 1]; a diagnostic of likeness, not of quality.

    Against the data's answers and, apart from these, the teacher's; one figure where there is one kind. The
    floor is the better of two answers that know nothing: the prompt itself, another prompt's reference.
    """
    gold, written = ([getattr(q, kind) for q in subject.questions] for kind in ("gold", "written"))
    if not any(gold) and not any(written):
        return tuple(_against(subject, figure, gold) for figure in FIGURES)
    vs = {"gold": gold, "teacher": written}
    first = "gold" if any(gold) else "teacher"
    figures = [_against(subject, replace(ROUGE_L, label=f"ROUGE-L vs {first}"), vs[first])]
    if any(gold) and any(written):
        figures.append(_against(subject, ROUGE_L_TEACHER, written))
    return tuple(figures)


def _against(subject: Subject, figure: Figure, references: Sequence[str]) -> Figure:
    """The figure over the prompts that have a reference, with its floor."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    known = [index for index, reference in enumerate(references) if reference]

    def scores(texts: Sequence[str]) -> list[float]:
        return [
            scorer.score(references[i], texts[i])["rougeL"].fmeasure if references[i] else 0.0
            for i in range(len(references))
        ]

    answers = [answer.text for answer in subject.answers]
    figure = subject.ratio(figure, scores(answers), [float(bool(reference)) for reference in references])
    trivial = {"the prompt copied": scores([question.last_turn for question in subject.questions])}
    if len(known) > 1:
        other = dict(zip(known, known[1:] + known[:1], strict=True))
        trivial["another prompt's reference"] = scores(
            [references[other.get(i, i)] for i in range(len(references))]
        )
    return figure.above(trivial)


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
