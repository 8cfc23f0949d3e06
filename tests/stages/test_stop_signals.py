"""A signal while a model measures or writes, where no training loop looks at it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from builders.hooks import watched
from builders.jobs import Memory, context, student
from builders.tiny import tiny_model
from potstill.data.prompts import Prompt
from potstill.data.questions import Question
from potstill.errors import Interrupted
from potstill.recipe.specs import MetricChoice
from potstill.stages import _evaluation, _rows, generate
from potstill.stages._context import State
from potstill.types import Example

LONG = [Example(f"r{i}", tuple(range(4, 104)), (False,) * 60 + (True,) * 40) for i in range(120)]


def measure(folder, teacher: Any, stop, metrics: tuple[str, ...]):
    questions = [
        Question(row.id, row.input_ids[:60], row.input_ids[:60], "p", "w64", 40)
        for row in LONG
        if "rouge_l" in metrics
    ]
    job = _evaluation.Job(
        name="evaluate",
        choices=[MetricChoice(name=name) for name in metrics],
        resamples=100,
        students={"before": student(folder / "s", tiny_model())},
        examples=LONG,
        questions=questions,
        max_new_tokens=20,
        context=context(folder, Memory(teacher), stop),
    )
    return _evaluation.evaluate(job)


@pytest.mark.parametrize("metrics", [("likelihood",), ("rouge_l",)])
def test_an_evaluation_stops_at_a_signal(tmp_path, metrics):
    """One batch or one token after the signal, the stage ends; nothing is kept as if it were whole."""
    teacher = tiny_model(seed=1)
    with watched(teacher.model if metrics == ("likelihood",) else teacher) as passes:
        with pytest.raises(Interrupted) as caught:
            measure(tmp_path, teacher, lambda: 15 if len(passes) >= 2 else 0, metrics)
        assert 2 <= len(passes) <= 3
    assert caught.value.exit_code == 143
    assert not list((tmp_path / "store").glob("evaluate-*"))
    assert measure(tmp_path, teacher, lambda: 0, metrics).path.is_dir()


def test_a_writing_teacher_stops_at_a_signal_and_keeps_finished_answers(tmp_path, monkeypatch):
    """Finished answers are kept, the rest is written by the next run, and none is written twice."""
    teacher = tiny_model(seed=1)
    prompts = [Prompt(f"p{i}", tuple(range(4, 10 + i))) for i in range(12)]
    monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (prompts, {}))

    def written(stop):
        spec = generate.Generate(filters=None, max_new_tokens=8, sampling_temperature=0.7, batch_rows=2)
        return generate.run(spec, State(), context(tmp_path, Memory(teacher), stop)).answers

    with watched(teacher) as passes:
        with pytest.raises(Interrupted):
            written(lambda: 2 if len(passes) >= 20 else 0)
        assert len(passes) == 20
    (journal,) = (tmp_path / "store").glob(".building-generate-*/.journal.jsonl")
    kept = len(journal.read_text().splitlines())
    assert 0 < kept < 12
    answers = _rows.read_answers(written(lambda: 0))
    assert [answer.row_id for answer in answers] == [prompt.row_id for prompt in prompts]


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_byte_in_an_unfinished_journal_changes_no_answer(tmp_path, monkeypatch, seed):
    """What is no longer as it was written is written again."""
    prompts = [Prompt(f"p{i}", tuple(range(4, 10 + i))) for i in range(40)]
    monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (prompts, {}))
    teacher, dice = tiny_model(seed=1), random.Random(seed)

    def written(place, stop=lambda: 0):
        spec = generate.Generate(filters=None, max_new_tokens=8, sampling_temperature=0.7, batch_rows=1)
        return generate.run(spec, State(), context(place, Memory(teacher), stop)).answers

    whole = _rows.read_answers(written(tmp_path / "whole"))
    with watched(teacher) as passes, pytest.raises(Interrupted):
        written(tmp_path, lambda: 2 if len(passes) >= 150 else 0)
    (journal,) = (tmp_path / "store").glob(".building-generate-*/.journal.jsonl")
    data = bytearray(journal.read_bytes())
    for _ in range(3):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    journal.write_bytes(bytes(data))
    assert _rows.read_answers(written(tmp_path)) == whole
