"""What decoding computed of an answer is kept, and a capture asks the teacher nothing about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from builders import captures
from builders.hooks import watched
from builders.jobs import context
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.data.prompts import Prompt
from potstill.generate import local
from potstill.generate.sampling import Sampling
from potstill.stages import _capture, _rows, generate
from potstill.stages._context import State
from potstill.types import Example

PROMPTS = [Prompt(f"p{i}", (1, *range(4, 8 + i % 4), 11, 20 + i)) for i in range(10)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding"])
def test_the_states_that_an_answer_is_drawn_from_are_those_of_a_pass_over_it(kind):
    """To float32's rounding, with more prompts than places and several samples of each."""
    model = tiny_model(seed=1, kind=kind)
    teacher = captures.Memory(model)
    written = local.generate(
        model, [p.ids for p in PROMPTS], Sampling(6, 1.0), stop_ids=(2,), pad_id=0, seed=0, batch_rows=4,
        samples=2, keep=True,
    )  # fmt: skip
    for completion in written:
        prompt = PROMPTS[completion.index].ids
        scored = (False,) * len(prompt) + (True,) * len(completion.ids)
        row = Example("r", (*prompt, *completion.ids), scored)
        wanted = teacher.signal(collate([row], pad_id=0)).hidden
        assert completion.states is not None
        torch.testing.assert_close(completion.states, wanted, atol=2e-4, rtol=2e-4)


def test_nothing_is_kept_where_nobody_asks_for_it():
    model = tiny_model(seed=1)
    (one,) = local.generate(
        model, [PROMPTS[0].ids], Sampling(3, 0.0), stop_ids=(), pad_id=0, seed=0, batch_rows=4
    )
    assert one.states is None


def test_a_capture_asks_nothing_about_answers_whose_states_were_kept(tmp_path, monkeypatch):
    teacher = captures.teacher()
    where = context(tmp_path, teacher)
    monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (PROMPTS, {}))
    spec = generate.Generate(max_new_tokens=6, batch_rows=4, keep="hidden")
    state = generate.run(spec, State(), where)
    answers = {answer.row_id: answer for answer in _rows.read_answers(state.answers)}
    rows = []
    for prompt in PROMPTS:
        ids = (*prompt.ids, *answers[prompt.row_id].ids)
        rows.append(Example(prompt.row_id, ids, tuple(i >= len(prompt.ids) for i in range(len(ids)))))
    another = captures.rows(2)
    job = captures.job(tmp_path, [*rows, *another], teacher)
    with watched(teacher.loaded().model) as passes:
        artifact = _capture.made(replace(job, state=state))
    assert 0 < len(passes) <= 2 * len(another)
    cached = captures.reading(artifact)
    for row in rows:
        got = cached.signal(collate([row], pad_id=0)).hidden
        wanted = teacher.signal(collate([row], pad_id=0)).hidden
        torch.testing.assert_close(got, wanted, atol=1e-2, rtol=2**-9)


def test_a_run_without_kept_states_has_the_answers_of_one_with(tmp_path, monkeypatch):
    monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (PROMPTS, {}))
    both = []
    for keep in ("hidden", None):
        spec = generate.Generate(max_new_tokens=6, batch_rows=4, keep=keep)
        where = context(tmp_path / str(keep), captures.teacher())
        both.append(_rows.read_answers(generate.run(spec, State(), where).answers))
    assert both[0] == both[1]
