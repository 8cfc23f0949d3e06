"""The engine over vLLM: against a copy of its API, and against vLLM itself where it is installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders import fake_vllm
from builders.tiny import EOS, PAD, save_tiny
from potstill.errors import DataError, MachineError, ModelError, RecipeError
from potstill.generate import local, vllm
from potstill.generate.request import Completion, Request
from potstill.generate.sampling import Sampling
from potstill.teachers import local as teachers
from potstill.teachers._context import TeacherContext

PROMPTS = [[1, 20 + i, 11] for i in range(6)]
GREEDY = Sampling(8, temperature=0.0)


@pytest.fixture
def fake(monkeypatch):
    """The copy of vLLM, imported as vLLM is."""
    monkeypatch.syspath_prepend(str(Path(fake_vllm.__file__).parent))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    import vllm as module

    yield module
    sys.modules.pop("vllm", None)


@pytest.fixture
def teacher(tmp_path) -> Any:
    save_tiny(tmp_path / "teacher", seed=16)
    context = TeacherContext(tmp_path, torch.device("cpu"), lambda tokenizer, ends: SimpleNamespace())
    return teachers.build(context, model="teacher", dtype="float32")


def request(teacher: Any, sampling: Sampling = GREEDY, **changes: Any) -> Request:
    parts: dict[str, Any] = {
        "stop_ids": {EOS, *range(4, 14)},
        "pad_id": PAD,
        "seed": 0,
        "batch_rows": 4,
        "vocabulary": 120,
    }
    return Request(**({"teacher": teacher, "prompts": PROMPTS, "sampling": sampling} | parts | changes))


def by_place(completions: Any) -> dict[tuple[int, int], Completion]:
    return {(one.index, one.sample): one for one in completions}


def test_greedy_text_is_that_of_the_local_engine(fake, teacher) -> None:
    """Ends, padded rows of the head and ids without a token are the request's, whatever the model's files say."""
    asked = request(teacher, unused=(50, 51))
    ours, theirs = by_place(local.write(asked)), by_place(vllm.write(asked))
    assert theirs == ours
    assert {one.finish for one in ours.values()} == {"stop", "length"}


def test_prompts_go_in_as_ids_and_every_setting_is_stated(fake, teacher) -> None:
    by_place(vllm.write(request(teacher, Sampling(8, 0.7, 0.9, 20)), tensor_parallel_size=2))
    (_, model, engine), (_, prompts, params) = fake.calls[-2:]
    assert model == teacher.source.location
    assert (engine["dtype"], engine["generation_config"], engine["max_num_seqs"]) == ("float32", "vllm", 4)
    assert engine["tensor_parallel_size"] == 2
    assert [prompt["prompt_token_ids"] for prompt in prompts] == PROMPTS
    one = params[0]
    assert (one.n, one.temperature, one.top_p, one.top_k, one.max_tokens) == (1, 0.7, 0.9, 20, 8)
    assert (one.stop_token_ids, one.ignore_eos, one.detokenize) == ([EOS, *range(4, 14)], True, False)
    assert one.logit_bias == dict.fromkeys(range(120, 128), -100.0)


def test_a_draw_depends_on_seed_prompt_and_sample_alone(fake, teacher) -> None:
    sampling = Sampling(8, 1.0)
    whole = by_place(vllm.write(request(teacher, sampling, samples=2)))
    assert whole[0, 0].ids != whole[0, 1].ids
    part = by_place(
        vllm.write(request(teacher, sampling, samples=2, prompts=PROMPTS[3:], skip={(0, 0), (1, 1)}))
    )
    assert {(index + 3, sample): one.ids for (index, sample), one in part.items()} == {
        place: one.ids for place, one in whole.items() if place[0] >= 3 and place not in {(3, 0), (4, 1)}
    }
    other = by_place(vllm.write(request(teacher, sampling, samples=2, seed=1)))
    assert [one.ids for one in other.values()] != [one.ids for one in whole.values()]


def test_one_engine_serves_all_requests_until_the_teacher_is_closed(fake, teacher) -> None:
    del fake.calls[:]
    for _ in range(2):
        by_place(vllm.write(request(teacher)))
    assert [name for name, *_ in fake.calls] == ["LLM", "generate", "generate"]
    teacher.close()
    by_place(vllm.write(request(teacher)))
    assert [name for name, *_ in fake.calls].count("LLM") == 2


def test_nothing_is_loaded_after_a_stop_or_where_nothing_is_left(fake, teacher) -> None:
    del fake.calls[:]
    assert by_place(vllm.write(request(teacher, should_stop=lambda: True))) == {}
    assert by_place(vllm.write(request(teacher, skip={(i, 0) for i in range(6)}))) == {}
    assert fake.calls == []


def test_a_missing_package_is_named_with_what_to_install(monkeypatch, teacher) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install 'potstill\[vllm\]'"):
        by_place(vllm.write(request(teacher)))


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_or_refuse_is_refused(fake, teacher, temperature) -> None:
    with pytest.raises(RecipeError, match=r"sampling_temperature: vLLM takes temperatures from 0\.01 to 2"):
        by_place(vllm.write(request(teacher, Sampling(8, temperature))))


def test_a_gguf_file_and_an_empty_prompt_are_refused(fake, teacher) -> None:
    with pytest.raises(DataError, match="Prompt 1 has no tokens"):
        by_place(vllm.write(request(teacher, prompts=[[1], []])))
    teacher.source = SimpleNamespace(kind="gguf")
    with pytest.raises(RecipeError, match="this teacher is a GGUF file"):
        by_place(vllm.write(request(teacher)))


@pytest.mark.parametrize(
    ("ids", "finish", "message"),
    [
        ([125, EOS], "stop", "the id 125, which stands for no token"),
        ([60], "length", "after 1 ids with 'length'"),
        ([60], "abort", "after 1 ids with 'abort'"),
        ([60, 61], "stop", "after 2 ids with 'stop'"),
    ],
)
def test_an_answer_that_cannot_be_is_an_error(fake, teacher, monkeypatch, ids, finish, message) -> None:
    monkeypatch.setattr(fake, "writes", {"ids": ids, "finish": finish})
    with pytest.raises(ModelError, match=message):
        by_place(vllm.write(request(teacher)))


@pytest.mark.gpu
def test_vllm_itself_writes_the_greedy_text_of_the_local_engine(teacher) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed")
    asked = request(teacher)
    written = by_place(vllm.write(asked, enforce_eager=True, gpu_memory_utilization=0.3))
    teacher.close()
    assert written == by_place(local.write(asked))


def test_the_likeliest_ids_are_those_before_bias_and_temperature(fake, teacher) -> None:
    """As the local engine's states have them, whatever is drawn; ids beyond the vocabulary are left out."""
    asked = request(teacher, Sampling(8, 0.7, 0.9, 20))
    shown = by_place(vllm.write(replace(asked, likeliest=16)))
    (_, _, engine), (_, _, params) = fake.calls[-2:]
    assert (engine["max_logprobs"], engine["logprobs_mode"], params[0].logprobs) == (16, "raw_logprobs", 16)
    model = teacher.loaded().model
    for (index, _), one in shown.items():
        ids = torch.tensor([[*PROMPTS[index], *one.ids]])
        lp = model(ids).logits[0, len(PROMPTS[index]) - 1 : -1].log_softmax(-1)
        assert one.likeliest is not None
        signal = one.likeliest.checked()
        used = signal.ids >= 0
        assert int(signal.ids.max()) < 120
        torch.testing.assert_close(
            signal.lp[used], lp.gather(1, signal.ids.clamp(min=0))[used], atol=1e-4, rtol=0
        )
        assert (
            signal.ids.gather(1, signal.lp.argmax(-1, keepdim=True))[:, 0] == lp[:, :120].argmax(-1)
        ).all()
    teacher.close()


def test_an_engine_that_shows_no_ids_is_an_error() -> None:
    with pytest.raises(ModelError, match="shows no likeliest ids"):
        vllm.likeliest(None, 120)
