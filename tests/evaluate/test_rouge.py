"""ROUGE-L: the words of any script, and English as rouge_score reads it."""

from __future__ import annotations

import pytest

from potstill.data.questions import Question
from potstill.evaluate import rouge_l, stats
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


def rouge(texts, prompts, references):
    rows = zip(prompts, references, strict=True)
    questions = [Question(str(i), (), (), p, r, 1, last_turn=p) for i, (p, r) in enumerate(rows)]
    answers = [Answer(text, 1, True) for text in texts]
    (figure,) = rouge_l.measure(Subject("after", questions=questions, answers=answers))
    return figure


PROMPTS = [f"what is the colour of thing{i} today" for i in range(40)]


def test_the_floor_is_the_best_answer_that_knows_nothing():
    echo = rouge(["x"] * 40, PROMPTS, [f"is the colour of thing{i} today" for i in range(40)])
    assert echo.floor_of == "the prompt copied"
    assert echo.floor == pytest.approx(sum(echo.floors) / 40)
    same = rouge(["x"] * 40, PROMPTS, ["blue it will be"] * 40)
    assert (same.floor_of, same.floor) == ("another prompt's reference", 1.0)


@pytest.mark.parametrize("trivial", ["echo", "other", "nothing"])
def test_a_student_that_knows_nothing_keeps_no_share(trivial):
    references = [f"the colour of thing{i} is shade{i}" for i in range(40)]
    teacher = rouge(references, PROMPTS, references)
    texts = {"echo": PROMPTS, "other": references[1:] + references[:1], "nothing": [""] * 40}[trivial]
    kept = stats.retained(teacher, rouge(texts, PROMPTS, references))
    assert kept.value is None
    assert "is not clearly above the" in kept.reason


def test_a_teacher_that_only_copies_prompts_has_no_share_to_keep():
    references = [f"the colour of thing{i} is shade{i}" for i in range(40)]
    kept = stats.retained(rouge(PROMPTS, PROMPTS, references), rouge(references, PROMPTS, references))
    assert kept.value is None
    assert "the teacher's" in kept.reason


def test_a_share_is_counted_above_the_floor():
    references = [f"the colour of thing{i} is shade{i}" for i in range(40)]
    halves = [f"shade{i}" for i in range(40)]
    teacher, student = (
        rouge(texts, PROMPTS, references) for texts in (references, references[:30] + halves[30:])
    )
    kept = stats.retained(teacher, student)
    assert kept.value == pytest.approx((student.value - teacher.floor) / (1 - teacher.floor))
    assert kept.low < kept.value < kept.high
    assert (kept.floor, kept.floor_of) == (teacher.floor, teacher.floor_of)
