"""An answer is written once: another prompt, row or sample beside it writes no other answer again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import fake_ray
from builders.hooks import watched
from builders.jobs import Memory, context
from builders.tiny import tiny_model
from potstill.data.answers import Written
from potstill.data.prompts import Prompt
from potstill.errors import Interrupted, MachineError
from potstill.generate import local, ray
from potstill.runs.status import _writing
from potstill.stages import _rows, generate
from potstill.stages._context import State
from potstill.store.lines import append_line, read_journal

PROMPTS = [Prompt(f"p{i}", (1, *range(4, 8 + i), 11)) for i in range(12)]
NEW = Prompt("new", (1, 40, 41, 42, 43, 44, 11))


class Half(Memory):
    """A teacher in half precision, where the rows of a batch round each other."""

    batch_invariant = False


@pytest.fixture
def asked(monkeypatch) -> list[tuple[tuple[int, ...], int]]:
    """Every answer that was asked for: the prompt's ids and the sample."""
    calls: list[tuple[tuple[int, ...], int]] = []
    write = local.write

    def spy(request):
        pairs = ((i, sample) for i in range(len(request.prompts)) for sample in range(request.samples))
        calls.extend((request.prompts[i], sample) for i, sample in pairs if (i, sample) not in request.skip)
        return write(request)

    monkeypatch.setattr(local, "write", spy)
    return calls


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Run a generate stage on prompts in one store, or another, and return its answers."""

    def run(
        prompts, place=tmp_path, teacher: Any = None, stop=lambda: 0, announce=lambda values: None, **options
    ) -> list[Written]:
        monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (prompts, {}))
        spec = generate.Generate(**{"max_new_tokens": 8, "batch_rows": 2, "filters": None} | options)
        where = replace(context(place, teacher or Memory(tiny_model(seed=1)), stop), announce=announce)
        return _rows.read_answers(generate.run(spec, State(), where).answers)

    return run


CHANGES = {
    "one more prompt": ([*PROMPTS[:5], NEW, *PROMPTS[5:]], [NEW.ids]),
    "another order": (PROMPTS[::-1], []),
    "fewer prompts": (PROMPTS[3:9], []),
    "rows with other ids": ([replace(p, row_id=f"{p.row_id}x") for p in PROMPTS], []),
    "one more sample": ([replace(p, samples=2) for p in PROMPTS], [p.ids for p in PROMPTS]),
    "a second row with one of the prompts": ([*PROMPTS, Prompt("again", PROMPTS[3].ids)], [PROMPTS[3].ids]),
}  # fmt: skip


@pytest.mark.parametrize("kind", [Memory, Half])
@pytest.mark.parametrize("change", CHANGES)
def test_only_answers_that_no_run_holds_are_written(written, asked, change, kind):
    teacher = kind(tiny_model(seed=1))
    before = {answer.row_id.rstrip("x"): answer.ids for answer in written(PROMPTS, teacher=teacher)}
    asked.clear()
    prompts, missing = CHANGES[change]
    after = written(prompts, teacher=teacher)
    assert sorted(ids for ids, _ in asked) == sorted(missing)
    assert [(a.row_id, a.sample) for a in after] == [(p.row_id, n) for p in prompts for n in range(p.samples)]
    kept = {a.row_id.rstrip("x"): a.ids for a in after if a.sample == 0}
    assert all(kept[name] == ids for name, ids in before.items() if name in kept)


@pytest.mark.parametrize("change", CHANGES)
def test_kept_answers_are_those_of_an_empty_store(tmp_path, written, change):
    written(PROMPTS)
    prompts = CHANGES[change][0]
    assert written(prompts) == written(prompts, place=tmp_path / "empty")


@pytest.mark.parametrize("options", [{"sampling_temperature": 0.5}, {"max_new_tokens": 9}, {"top_k": 3}])
def test_other_settings_write_every_answer_anew(written, asked, options):
    written(PROMPTS)
    asked.clear()
    written(PROMPTS, **options)
    assert len(asked) == len(PROMPTS)


def test_another_teacher_writes_every_answer_anew(written, asked):
    written(PROMPTS)
    asked.clear()
    written(PROMPTS, teacher=Memory(tiny_model(seed=2), "another"))
    assert len(asked) == len(PROMPTS)


def test_what_an_interrupted_stage_wrote_is_kept_when_a_prompt_is_added(tmp_path, written, asked):
    teacher = Memory(tiny_model(seed=1))
    with watched(teacher.loaded().model) as passes, pytest.raises(Interrupted):
        written(PROMPTS, teacher=teacher, stop=lambda: 2 if len(passes) >= 20 else 0)
    (journal,) = (tmp_path / "store").glob(".building-generate-*/.journal.jsonl")
    finished = len(journal.read_text().splitlines())
    asked.clear()
    after = written([*PROMPTS, NEW], teacher=teacher)
    assert 0 < finished < len(PROMPTS)
    assert len(asked) == len(PROMPTS) + 1 - finished
    assert after == written([*PROMPTS, NEW], place=tmp_path / "empty", teacher=teacher)


def test_greedy_answers_to_one_prompt_are_written_once(written, asked):
    twins = [Prompt(name, PROMPTS[0].ids) for name in ("a", "b", "c")]
    one, two, three = written(twins, sampling_temperature=0)
    assert one.ids == two.ids == three.ids
    assert len(asked) == 1


def test_a_damaged_artifact_is_no_source_of_answers(tmp_path, written, asked):
    before = written(PROMPTS)
    (file,) = (tmp_path / "store").glob("generate-*/answers.jsonl")
    file.write_text(file.read_text().replace('"text": "', '"text": "w4 ', 1))
    asked.clear()
    assert written([*PROMPTS, NEW])[:-1] == before
    assert len(asked) == len(PROMPTS) + 1


def test_a_stopped_stage_goes_on_with_the_portions_that_it_began(tmp_path, monkeypatch):
    """In bf16 the rows of a batch round each other: kept answers change no portion of those that are missing."""
    model = tiny_model(seed=1, hidden=64).to(torch.bfloat16)

    def run(place, prompts, stop=lambda: 0):
        monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (prompts, {}))
        spec = generate.Generate(filters=None, max_new_tokens=12, batch_rows=2, sampling_temperature=1.0)
        return _rows.read_answers(generate.run(spec, State(), context(place, Half(model), stop)).answers)

    more = [Prompt(f"q{i}", (1, *range(30, 36 + i), 11)) for i in range(24)]
    for place in ("calm", "stopped"):
        run(tmp_path / place, PROMPTS)
    calm = run(tmp_path / "calm", PROMPTS + more)
    with watched(model) as passes, pytest.raises(Interrupted):
        run(tmp_path / "stopped", PROMPTS + more, lambda: 2 if len(passes) >= 60 else 0)
    run(tmp_path / "stopped", more[:3])  # another run finishes in between
    assert run(tmp_path / "stopped", PROMPTS + more) == calm


def test_journals_of_workers_are_merged_and_what_they_hold_is_not_written_again(
    tmp_path, written, asked, monkeypatch
):
    """Two workers; the process that started them is stopped when two of three portions are there."""
    portions = []

    def by_workers(requests, *, workers=2):
        for number, request in enumerate(requests):
            portions.append(number)
            for one in local.write(request):
                journal = request.journal.with_name(f"{request.journal.name}.worker-{number % workers}")
                append_line(journal, ray.line(ray.digest_of(request.prompts[one.index]), one))
                yield number, one

    monkeypatch.setattr(ray, "write", by_workers)
    rows = [replace(p, samples=3) for p in PROMPTS]  # 36 answers in portions of 16
    with pytest.raises(Interrupted):
        written(rows, engine="ray", stop=lambda: 2 if len(portions) > 2 else 0)
    (journal, *_) = journals = sorted((tmp_path / "store").glob(".building-generate-*/.journal.jsonl*"))
    assert [one.name for one in journals[1:]] == [f"{journal.name}.worker-0", f"{journal.name}.worker-1"]
    asked.clear()
    after = written(rows, engine={"ray": {"workers": 3}})  # how many there are is no part of what they write
    assert 0 < len(asked) < 36
    assert after == written(rows, place=tmp_path / "alone")


class Weights(Memory):
    """A teacher whose weights workers load by themselves."""

    source, dtype = "weights", torch.float32


def test_the_journal_of_a_killed_worker_is_merged_on_the_next_start(tmp_path, written, asked, monkeypatch):
    """The first worker is killed at once, the second one within a line when it has written a portion."""
    monkeypatch.syspath_prepend(str(Path(fake_ray.__file__).parent))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(ray, "require", lambda teacher: None)
    weights = Weights(tiny_model(seed=1))
    monkeypatch.setattr(ray.loading, "load", lambda *_, **__: weights.loaded())
    rows = [replace(p, samples=3) for p in PROMPTS]  # 36 answers in portions of 16
    import ray as module

    module.dying.append(True)
    announced: dict[str, Any] = {"stage": "generate"}
    with pytest.raises(MachineError, match="what workers have written is kept"):
        written(rows, teacher=weights, engine="ray", announce=announced.update)
    assert _writing(announced) == {"done": 16 + 4, "total": 36}  # as `potstill status` counts
    (journal,) = (tmp_path / "store").glob(".building-generate-*/.journal.jsonl.worker-*")
    there = len(read_journal(journal))
    journal.write_bytes(journal.read_bytes() + b'{"prompt": "half a li')
    asked.clear()
    after = written(rows, teacher=weights, engine="ray")
    assert there == 16 + 4
    assert len(asked) == 36 - there
    assert after == written(rows, place=tmp_path / "alone")
    sys.modules.pop("ray")
