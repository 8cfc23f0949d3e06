"""What decoding computed of an answer is kept, and a capture asks the teacher nothing about it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from builders import captures
from builders.hooks import watched
from builders.jobs import context
from builders.tiny import tiny_model
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.data.batch import collate
from potstill.data.prompts import Prompt
from potstill.errors import RecipeError
from potstill.generate import local
from potstill.generate.request import Completion
from potstill.generate.sampling import Sampling
from potstill.models.projection import plain_logits
from potstill.recipe.specs import MetricChoice
from potstill.signals.topk import TopK
from potstill.stages import _capture, _evaluation, _rows, _signals, generate
from potstill.stages._context import State
from potstill.stages._later import asked_later, needs_of, temperatures_behind
from potstill.stages._states import States, finish_states, header_of
from potstill.stages.capture import Capture
from potstill.stages.distill import Distill
from potstill.stages.evaluate import Evaluate
from potstill.types import Example

PROMPTS = [Prompt(f"p{i}", (1, *range(4, 8 + i % 4), 11, 20 + i)) for i in range(10)]


def rows_of(state: State) -> list[Example]:
    """The prompts with their answers, as a training reads them."""
    answers = {answer.row_id: answer for answer in _rows.read_answers(state.answers)}
    rows = []
    for prompt in PROMPTS:
        ids = (*prompt.ids, *answers[prompt.row_id].ids)
        rows.append(Example(prompt.row_id, ids, tuple(i >= len(prompt.ids) for i in range(len(ids)))))
    return rows


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
    rows = rows_of(state)
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
    for keep in ("hidden", "topk", None):
        spec = generate.Generate(max_new_tokens=6, batch_rows=4, keep=keep)
        where = context(tmp_path / str(keep), captures.teacher())
        both.append(_rows.read_answers(generate.run(spec, State(), where).answers))
    assert both[0] == both[1] == both[2]


def test_the_likeliest_ids_are_those_of_the_unchanged_logits_at_temperature_1(tmp_path, monkeypatch):
    """Whatever the draw does with them: its temperature, top-p and top-k leave what is kept as a capture has it."""
    teacher = captures.teacher()
    where = context(tmp_path, teacher)
    monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (PROMPTS, {}))
    drawn = {"sampling_temperature": 0.3, "top_p": 0.5, "top_k": 3}
    spec = generate.Generate(max_new_tokens=6, batch_rows=4, keep="topk", **drawn)
    state = generate.run(spec, State(), where)
    rows, heldout = rows_of(state), captures.rows(2)
    monkeypatch.setattr(_capture, "asked_later", lambda *_: None)
    facts = state.written.facts["kept"]
    assert facts["kind"] == "topk"
    assert facts["tokens"] == sum(row.count for row in rows)
    assert 0 <= facts["measured"]["kl_mean"] < 1e-3
    job = replace(
        captures.job(tmp_path, rows, teacher, signal="smallest", kinds=("hidden", "topk")), state=state
    )
    with watched(teacher.loaded().model) as passes:
        artifact = _capture.made(replace(job, heldout=tuple(heldout)))
    assert 0 < len(passes) <= 2 * len(heldout)
    assert artifact.facts["signal"] == "topk"
    assert artifact.facts["measured"] == facts["measured"]
    cached, setting = captures.reading(artifact), facts["setting"]
    for row in rows:
        batch = collate([row], pad_id=0)
        got, logits = cached.signal(batch).whole(), plain_logits_of(teacher, batch)
        lp = logits.log_softmax(-1)
        used = got.ids >= 0
        assert used.sum(-1).tolist() == (lp > math.log(setting["threshold"])).sum(-1).tolist()
        torch.testing.assert_close(got.lp[used], lp.gather(1, got.ids.clamp(min=0))[used], atol=0.05, rtol=0)
        assert (got.lp - lp.gather(1, got.ids.clamp(min=0)))[used].abs().mean() < 0.02
    assert cached.heldout().signal(collate([heldout[0]], pad_id=0)).kind == "dense"


def plain_logits_of(teacher: Any, batch: Any) -> torch.Tensor:
    signal = teacher.signal(batch)
    return plain_logits(signal.head, signal.hidden)


def test_what_decoding_kept_is_stored_again_without_another_rounding(tmp_path, monkeypatch):
    teacher = captures.teacher()
    monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (PROMPTS, {}))
    spec = generate.Generate(max_new_tokens=6, batch_rows=4, keep="topk")
    state = generate.run(spec, State(), context(tmp_path, teacher))
    rows = rows_of(state)
    job = replace(captures.job(tmp_path, rows, teacher, signal="topk", kinds=("topk",)), state=state)
    kept, cached = job.kept_states, captures.reading(_capture.made(job))
    for row in rows:
        (first,), (again,) = (
            c.batch([key_of(row.input_ids, row.scored)]).entries for c in (kept, cached.cache)
        )
        assert all((first.fields[name] == again.fields[name]).all() for name in first.fields)


def test_rows_of_another_template_are_asked_about_and_counted(tmp_path, monkeypatch):
    teacher = captures.teacher()
    monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (PROMPTS, {}))
    for keep in ("hidden", "topk"):
        spec = generate.Generate(max_new_tokens=6, batch_rows=4, keep=keep)
        state = generate.run(spec, State(), context(tmp_path / keep, teacher))
        first, *others = rows_of(state)
        changed = replace(first, input_ids=(3, *first.input_ids), scored=(False, *first.scored))
        job = captures.job(
            tmp_path / keep, [changed, *others], teacher, signal="smallest", kinds=("hidden", "topk")
        )
        job = replace(job, state=state)
        assert _signals.words_of(job, keep).startswith("what 9 of 10 rows were drawn from was kept")
        cached = captures.reading(_capture.made(job))
        assert cached.signal(collate([changed], pad_id=0)).rows == changed.count


@pytest.mark.parametrize(
    ("capture", "distill", "named"),
    [
        ({"signal": "hidden"}, {}, "capture is to keep hidden"),
        ({"max_kl_nats": 0.01}, {}, "capture has a limit"),
        ({}, {"divergence": "logit_mse"}, "does not support topk"),
    ],
)
def test_likeliest_ids_that_cannot_serve_are_refused_beforehand(capture, distill, named):
    stages = (generate.Generate(keep="topk"), Capture(**capture), Distill(**distill))
    with pytest.raises(RecipeError, match=named) as error:
        needs_of(stages, "capture")
    assert error.value.path == "stages.generate.keep"
    assert "keep: hidden" in error.value.fix


def test_likeliest_ids_are_kept_for_the_temperatures_of_later_stages():
    stages = (generate.Generate(keep="topk"), Capture(), Distill(temperature=2.0))
    assert temperatures_behind(stages, "generate") == [1.0, 2.0]
    assert temperatures_behind(stages[:1], "generate") == [1.0]


def test_an_engine_without_states_is_refused_where_a_later_stage_has_another_temperature(tmp_path):
    where = replace(context(tmp_path, captures.teacher()), stages=(generate.Generate(keep="topk"), Capture(), Distill(temperature=2.0)))  # fmt: skip
    assert header_of("topk", "generate", "local", where).setting["temperatures"] == [2.0]
    with pytest.raises(RecipeError, match="vllm shows no log-sum-exp"):
        header_of("topk", "generate", "vllm", where)


def test_ids_that_an_engine_shows_are_kept_above_the_threshold(tmp_path):
    shown = TopK(
        torch.tensor([[5, 7, 9], [3, 4, -1]]), torch.tensor([[0.7, 0.29, 1e-6], [1e-5, 2e-5, 0.0]]).log()
    )
    header = header_of("topk", "generate", "vllm", context(tmp_path, captures.teacher()))
    with Writer(tmp_path / "kept", header) as writer, States(writer) as states:
        states.add((1, 2), Completion(0, 0, (5, 4), "length", likeliest=shown))
        states.flush()
    finish_states(tmp_path / "kept")
    read = Cache.open(tmp_path / "kept").signal((1, 2, 5, 4), (False, False, True, True)).whole()
    assert [sorted(set(row) - {-1}) for row in read.ids.tolist()] == [[5, 7], [4]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": "hidden", "engine": {"vllm": {}}}, "works with the local engine"),
        ({"keep": "topk", "engine": {"ray": {}}}, "works with the local engine, vllm and endpoints"),
        (
            {"keep": "topk", "engine": {"vllm": {"quantization": "fp8"}}},
            "quantised weights are another teacher",
        ),
    ],
)
def test_what_an_engine_cannot_keep_is_refused_in_the_recipe(options, words):
    with pytest.raises(ValidationError, match=words):
        generate.Generate(**options)


def test_fewer_processes_finish_what_killed_ones_have_kept(tmp_path):
    """Half a block of a process that does not come back is cut off; what is whole stays."""
    shown = TopK(torch.tensor([[5, 7]]), torch.tensor([[0.7, 0.3]]).log())
    header = header_of("topk", "generate", "vllm", context(tmp_path, captures.teacher()))
    for part in (0, 1):
        with Writer(tmp_path / "kept", header, part=part) as writer, States(writer) as states:
            for prompt in (3, 4):
                states.add((prompt, part + 10), Completion(0, 0, (5,), "length", likeliest=shown))
                states.flush()
    (torn,) = (tmp_path / "kept").glob("shard-00001-*.bin")
    torn.write_bytes(torn.read_bytes()[:-5])
    assert finish_states(tmp_path / "kept")["examples"] == 3
    kept = Cache.open(tmp_path / "kept")
    assert kept.verify() == []
    assert key_of((3, 11, 5), (False, False, True)) in kept


def test_what_was_kept_is_read_where_signals_are_read(tmp_path, monkeypatch):
    """On the device of the teacher's own word, its head too."""
    teacher = captures.teacher()
    monkeypatch.setattr(_rows, "prompts", lambda context, new_tokens, samples: (PROMPTS, {}))
    spec = generate.Generate(max_new_tokens=6, batch_rows=4, keep="hidden")
    state = generate.run(spec, State(), context(tmp_path, teacher))
    job = replace(captures.job(tmp_path, rows_of(state), teacher), state=state)
    elsewhere = replace(job.entries, device=torch.device("meta"))
    heads = set()
    for _, signal in elsewhere.ask(job.rows):
        assert signal.hidden.is_meta
        assert signal.head.weight.is_meta
        heads.add(id(signal.head))
    assert len(heads) == 1


def test_a_capture_stands_before_an_evaluation_with_a_metric_of_the_task(tmp_path, monkeypatch):
    """It asks the teacher for the answers that this evaluation compares."""
    where = context(tmp_path, captures.teacher())
    measured = Evaluate(metrics=(MetricChoice(name="numbers"),), samples=3, max_new_tokens=5)
    setup = replace(where.setup, task=SimpleNamespace(type="number"))
    where = replace(where, stages=(Capture(), measured), setup=setup)
    monkeypatch.setattr(
        _evaluation, "asked", lambda written, settled, *_: (settled.samples, settled.max_new_tokens)
    )
    assert asked_later(where, "capture", State()) == (3, 5)
