"""A signal while a model measures or writes, where no training loop looks at it."""

from __future__ import annotations

from typing import Any

import pytest

from cases.jobs import Memory, student, world
from generate.small import watched
from potstill.divergences import forward_kl, reverse_kl
from potstill.errors import Interrupted
from potstill.generate.sampling import Sampling
from potstill.stages import evaluate, generate
from potstill.types import Example
from tiny import EOS, PAD, tiny_model

LONG = [Example(f"r{i}", tuple(range(4, 104)), (False,) * 60 + (True,) * 40) for i in range(120)]


def measure(folder, teacher: Any, stop, metrics: tuple[str, ...]):
    questions = [
        evaluate.Question(row.id, row.input_ids[:60], row.input_ids[:60], "p", "w64", 40)
        for row in LONG
        if "rouge_l" in metrics
    ]
    job = evaluate.Job(
        name="evaluate",
        teacher=Memory(teacher),  # type: ignore[arg-type]
        students={"before": student(folder / "s", tiny_model())},
        examples=LONG,
        questions=questions,
        metrics=metrics,
        max_new_tokens=20,
        resamples=100,
        vocabulary=128,
        pad_id=PAD,
        stop_ids=(EOS,),
        own=evaluate.Reader(128, PAD, (EOS,)),
        foreign="",
        forward_kl=forward_kl.value,
        reverse_kl=reverse_kl.value,
    )
    return evaluate.run(world(folder, stop), job)


@pytest.mark.parametrize("metrics", [("likelihood",), ("rouge_l",)])
def test_an_evaluation_goes_on_to_its_end_after_a_signal(tmp_path, metrics):
    """One batch or one token after the signal, the stage ends; nothing is kept as if it were whole."""
    teacher = tiny_model(seed=1)
    with watched(teacher.model if metrics == ("likelihood",) else teacher) as passes:
        with pytest.raises(Interrupted) as caught:
            measure(tmp_path, teacher, lambda: 15 if len(passes) >= 2 else 0, metrics)
        assert 2 <= len(passes) <= 3
    assert caught.value.exit_code == 143
    assert not list((tmp_path / "store").glob("evaluate-*"))
    assert measure(tmp_path, teacher, lambda: 0, metrics).path.is_dir()


def test_a_writing_teacher_does_not_hear_the_signal(tmp_path):
    """Finished answers are kept, the rest is written by the next run, and none is written twice."""
    teacher = tiny_model(seed=1)
    prompts = [generate.Prompt(f"p{i}", tuple(range(4, 10 + i))) for i in range(12)]

    def written(stop):
        return generate.run(
            world(tmp_path, stop),
            "generate",
            Memory(teacher),  # type: ignore[arg-type]
            prompts,
            Sampling(8, temperature=0.7),
            batch_rows=2,
            stop_ids=(EOS,),
            pad_id=PAD,
        )

    with watched(teacher) as passes:
        with pytest.raises(Interrupted):
            written(lambda: 2 if len(passes) >= 20 else 0)
        assert len(passes) == 20
    (journal,) = (tmp_path / "store").glob(".building-generate-*/journal.jsonl")
    kept = len(journal.read_text().splitlines())
    assert 0 < kept < 12
    answers = generate.read(written(lambda: 0))
    assert [answer.row_id for answer in answers] == [prompt.row_id for prompt in prompts]
