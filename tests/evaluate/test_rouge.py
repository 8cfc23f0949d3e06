"""ROUGE-L: the words of any script, and English as rouge_score reads it."""

from __future__ import annotations

import pytest

from potstill.data.questions import Question
from potstill.evaluate import rouge_l
from potstill.evaluate.subject import Answer, Subject


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("你好世界", "你好", 2 / 3),
        ("Привет мир", "Привет, мир!", 1.0),
        ("Ответ: 42", "Совсем другое 42", 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("สวัสดี", "สวัสดี", 1.0),
        ("हिन्दी भाषा", "हिन्दी", 2 / 3),
        ("I love it ❤️", "I love it", 1.0),
    ],
)
def test_rouge_reads_the_words_of_any_script(text, other, same):
    questions = [Question("a", (), (), "", other, 1)]
    (figure,) = rouge_l.measure(Subject("after", questions=questions, answers=[Answer(text, 1, True)]))
    assert figure.value == pytest.approx(same)


def test_words_of_english_are_those_of_rouge_score():
    from rouge_score.tokenizers import DefaultTokenizer

    text = "The runners' 3 dogs_were running, quickly: re-running (x2)!\nUPPER cases were studied."
    assert rouge_l.Words().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)
