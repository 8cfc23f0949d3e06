"""The student writes in the middle of its training as a fresh one would, and trains on as if it had not."""

from __future__ import annotations

import pytest
import torch

from builders.hooks import watched
from builders.tiny import EOS, tiny_model
from potstill.generate.local import generate
from potstill.generate.sampling import Sampling
from potstill.train.step import StudentModule
from potstill.train.writer import Writer

PROMPTS = [[1, 10, 11], [1, 20, 21, 22, 11], [1, 30]]
SETTINGS = {"pad_id": 0, "packed": False, "micro_batch_tokens": 40, "seed": 0, "steps": 1, "stop_ids": (EOS,)}


def texts(writer: Writer, sampling: Sampling, samples: int = 1) -> list[tuple[int, ...]]:
    written = writer.write(PROMPTS, sampling, seeds=[5, 6, 7], samples=samples)
    return [completion.ids for completion in written]


def test_training_settings_do_not_reach_the_text_nor_the_text_the_training():
    """Checkpointing on, dropout a half: the tokens of a fresh model; the flags are as before."""
    model = tiny_model(attention_dropout=0.5, use_cache=False)
    fresh = tiny_model()
    fresh.load_state_dict(model.state_dict())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = StudentModule(model, 128).train()
    greedy = Sampling(8, temperature=0)
    with watched(model) as passes:
        written = texts(Writer(module, vocabulary=128, **SETTINGS), greedy)
    assert {positions for _, positions in passes[1:]} == {1}, "a cache is read"
    alone = generate(fresh, PROMPTS, greedy, stop_ids={EOS}, pad_id=0, seed=0, batch_rows=32, vocabulary=128)
    assert written == [c.ids for c in sorted(alone, key=lambda c: c.index)]
    assert module.training
    assert model.training
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False


@pytest.mark.parametrize("reading", ["vocabulary", "unused"])
def test_only_ids_that_both_models_share_are_written(reading):
    limits = {"vocabulary": 20} if reading == "vocabulary" else {"vocabulary": 128, "unused": range(20, 128)}
    writer = Writer(StudentModule(tiny_model(), 128), **SETTINGS | limits)
    assert max(token for ids in texts(writer, Sampling(12), 4) for token in ids) < 20


def test_a_prompts_seed_decides_its_text_whatever_stands_beside_it():
    writer = Writer(StudentModule(tiny_model(), 128), vocabulary=128, **SETTINGS)
    together = texts(writer, Sampling(8))
    alone = writer.write(PROMPTS[1:2], Sampling(8), seeds=[6])
    assert alone[0].ids == together[1]
    assert writer.write(PROMPTS[1:2], Sampling(8), seeds=[8])[0].ids != together[1]


def test_weights_are_cast_once_for_a_whole_text(monkeypatch):
    """In bf16 the head's weight is cast once, however many tokens there are."""
    module = StudentModule(tiny_model(), 128, autocast=torch.bfloat16)

    def casts(length: int) -> int:
        writer = Writer(module, vocabulary=128, autocast=torch.bfloat16, **SETTINGS | {"stop_ids": ()})
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
        ) as profile:
            texts(writer, Sampling(length))
        events = profile.key_averages(group_by_input_shape=True)
        return sum(e.count for e in events if e.key == "aten::_to_copy" and e.input_shapes[0] == [128, 32])

    assert casts(4) == casts(12) == 1
