"""A prompt that several rows share is read once, and every row has the states of a pass of its own."""

from __future__ import annotations

import pytest
import torch

from builders.captures import Memory, captured, reading
from builders.hooks import watched
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.stages._plan import drawn_order, plan_of
from potstill.teachers.local import LocalTeacher
from potstill.types import Example


def samples(prompts: int = 4, each: int = 3) -> list[Example]:
    """Answers of 1 to 6 tokens to prompts of 3 to 9; in some the middle is not scored."""
    dice, rows = torch.Generator().manual_seed(0), []
    for number in range(prompts):
        prompt = torch.randint(4, 128, (3 + 2 * number,), generator=dice).tolist()
        for sample in range(each):
            answer = torch.randint(4, 128, (1 + (number + 2 * sample) % 6,), generator=dice).tolist()
            marks = [place != 2 for place in range(len(answer))]
            rows.append(Example(f"p{number}#{sample}", (*prompt, *answer), (*[False] * len(prompt), *marks)))
    return rows


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding"])
def test_rows_behind_a_shared_prompt_have_the_states_of_a_pass_of_their_own(kind):
    teacher = LocalTeacher(tiny_model(seed=1, kind=kind), vocabulary=128, fingerprint="t")
    rows = samples()
    for row, signal in zip(rows, teacher.signals(rows, 0), strict=True):
        wanted = teacher.signal(collate([row], pad_id=0)).hidden
        torch.testing.assert_close(signal.hidden, wanted, atol=2e-4, rtol=2e-4)


class Local(Memory):
    """A teacher in memory that knows shared prompts."""

    def signals(self, rows, pad_id):
        return LocalTeacher(self._model, vocabulary=128, fingerprint="memory").signals(rows, pad_id)


def test_a_capture_reads_the_prompt_of_several_answers_once(tmp_path):
    rows, model = samples(each=8), tiny_model(seed=1)
    read = []
    for name, teacher in (("alone", Memory(model)), ("shared", Local(model))):
        with watched(model.base_model) as passes:
            artifact = captured(tmp_path / name, rows, teacher, batch_tokens=256)
        read.append(sum(batch * length for batch, length in passes))
        cached = reading(artifact, teacher)
        for row in rows:
            wanted = Memory(model).signal(collate([row], pad_id=0)).hidden
            got = cached.signal(collate([row], pad_id=0)).hidden
            torch.testing.assert_close(got, wanted, atol=1e-2, rtol=2**-9)
    assert read[1] < read[0]


def test_rows_that_share_a_prompt_are_asked_about_in_one_batch():
    rows = drawn_order(samples(prompts=12), 0)
    plan = plan_of(rows, batch_tokens=128, bytes_per_token=64.0, part_bytes=10**9)
    batches = [batch for part in plan.parts for block in part for batch in block.batches]
    homes = {row.id: number for number, batch in enumerate(batches) for row in batch}
    split = {row.id.split("#")[0] for row in rows if homes[row.id] != homes[f"{row.id.split('#')[0]}#0"]}
    assert len(split) <= len(plan.parts[0])  # a block may end between them
    assert sorted(homes) == sorted(row.id for row in rows)


def test_texts_without_a_prompt_are_drawn_and_batched_one_by_one():
    texts = [Example(f"t{n}", (1, *range(4, 12), 20 + n), (False, *[True] * 9)) for n in range(40)]
    order = drawn_order(texts, 0)
    assert [row.id for row in order] != [row.id for row in texts]
    (part,) = plan_of(order, batch_tokens=40, bytes_per_token=64.0, part_bytes=10**9).parts
    assert max(len(batch) for block in part for batch in block.batches) == 4


def test_many_answers_to_one_prompt_are_batches_that_fit():
    rows = [Example(f"s{n}", (1, 5, 6, 7, 20 + n, 2), (*[False] * 4, True, True)) for n in range(40)]
    (part,) = plan_of(rows, batch_tokens=30, bytes_per_token=64.0, part_bytes=10**9).parts
    assert {len(batch) for block in part for batch in block.batches} == {5}
