"""One scorer for every student of the study, and the teacher's answers that it compares with.

KL(teacher ‖ student) is a mean over the tokens of text that the teacher drew, KL(student ‖ teacher) over those of
the student's own answers, drawn at temperature 1 with the same numbers for every student. ROUGE-L, repetition and
stop rate are of greedy answers, by the metrics of `potstill evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pair import TEACHER, product_dtype

NEW_TOKENS, TEACHER_TEMPERATURE, BATCH_ROWS, SEED = 128, 0.7, 100, 1234
Pairs = list[list[float]]  # numerators and denominators, prompt by prompt


def load(model: str) -> Any:
    """A model in the format in which a run measures."""
    from potstill.models import loading

    return loading.load(loading.find_source(model), dtype=product_dtype())


def write(loaded: Any, prompts: Sequence[Sequence[int]], temperature: float) -> list[Any]:
    """A model's completions in the prompts' order; draws depend on the prompts alone."""
    from potstill.generate.local import generate
    from potstill.generate.sampling import Sampling
    from potstill.models.vocabulary import read_vocabulary

    tokenizer = loaded.tokenizer
    completions = generate(
        loaded.model,
        prompts,
        Sampling(NEW_TOKENS, temperature),
        stop_ids=[tokenizer.eos_token_id],
        pad_id=tokenizer.pad_token_id,
        seed=SEED,
        batch_rows=BATCH_ROWS,
        vocabulary=read_vocabulary(tokenizer).size,
    )
    return sorted(completions, key=lambda one: one.index)


def answers(questions: Sequence[str]) -> list[dict[str, Any]]:
    """The teacher's answers to held-out questions: one drawn as its training answers are, and the greedy one."""
    teacher = load(TEACHER)
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompts = [
        teacher.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)["input_ids"]
        for chat in chats
    ]
    drawn, greedy = write(teacher, prompts, TEACHER_TEMPERATURE), write(teacher, prompts, 0.0)
    return [
        {
            "question": question,
            "prompt": list(prompt),
            "drawn": list(text.ids),
            "greedy": _text(teacher, best),
            "greedy_tokens": len(best.ids),
        }
        for question, prompt, text, best in zip(questions, prompts, drawn, greedy, strict=True)
    ]


def score(file: str, student: str, most: int, text: bool) -> dict[str, Pairs]:
    """Every figure as its pairs on the first `most` prompts of a file; without `text` both KLs alone."""
    from potstill.evaluate import behaviour, rouge_l
    from potstill.evaluate.subject import Answer, Subject

    asked = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()[:most]]
    prompts = [row["prompt"] for row in asked]
    loaded, teacher = load(student), _teacher()
    own = [one.ids for one in write(loaded, prompts, 1.0)]
    found = {
        "forward_kl": _kl(loaded, teacher, prompts, [row["drawn"] for row in asked], "forward_kl"),
        "own_reverse_kl": _kl(loaded, teacher, prompts, own, "reverse_kl"),
    }
    if text:
        written = [
            Answer(_text(loaded, one), len(one.ids), one.finish == "stop")
            for one in write(loaded, prompts, 0.0)
        ]
        subject = Subject("after", questions=[_question(row) for row in asked], answers=written, resamples=1)
        for figure in (*rouge_l.measure(subject), *behaviour.measure(subject)):
            found[figure.key] = [list(side) for side in zip(*figure.pairs, strict=True)]
    return found


def _teacher() -> Any:
    from potstill.models.vocabulary import read_vocabulary
    from potstill.teachers.local import LocalTeacher

    loaded = load(TEACHER)
    size = read_vocabulary(loaded.tokenizer).size
    return LocalTeacher(loaded.model, vocabulary=size, fingerprint="teacher")


def _kl(
    loaded: Any, teacher: Any, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], which: str
) -> Pairs:
    from potstill.divergences import forward_kl, reverse_kl
    from potstill.evaluate import scores
    from potstill.models.vocabulary import read_vocabulary
    from potstill.objectives.token import Divergence
    from potstill.types import Example

    examples = [
        Example(str(i), (*prompt, *text), (False,) * len(prompt) + (True,) * len(text))
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    result = scores.score(
        loaded.model,
        teacher,
        examples,
        vocabulary=read_vocabulary(loaded.tokenizer).size,
        pad_id=loaded.tokenizer.pad_token_id,
        forward_kl=Divergence.from_module(forward_kl),
        reverse_kl=Divergence.from_module(reverse_kl),
    )
    return [list(result.sums[which]), list(result.tokens)]


def _question(row: dict[str, Any]) -> Any:
    from potstill.data.questions import Question

    ids = tuple(row["prompt"])
    asked = row["question"]
    return Question(asked, ids, ids, asked, "", row["greedy_tokens"], written=row["greedy"], last_turn=asked)


def _text(loaded: Any, completion: Any) -> str:
    text: str = loaded.tokenizer.decode(list(completion.ids), skip_special_tokens=True)
    return text
