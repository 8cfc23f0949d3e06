"""Text of two models: what is drawn from, exactly, and both caches in step."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders.tiny import EOS, PAD, tiny_model
from potstill.errors import ModelError, RecipeError
from potstill.generate import beside
from potstill.generate.beside import Beside
from potstill.generate.local import generate
from potstill.generate.sampling import Sampling, choose, uniforms

Q = [2.0, 1.0, 0.0, -1.0, 0.5]  # logits of the student, and of the teacher
P = [-1.0, 2.5, 1.0, 0.0, -2.0]
MIXED = partial(beside.mixture, share=0.2)
PROPOSED = partial(beside.proposals, top_k=2)


class Says(nn.Module):
    """A model with the same logits everywhere."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.config = SimpleNamespace(max_position_embeddings=64)

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **inputs: Any) -> Any:
        rows, positions = input_ids.shape
        return SimpleNamespace(logits=self.logits.expand(rows, positions, -1), past_key_values="cache")


def drawn(combine: beside.Combine, temperature: float = 1.0, draws: int = 20_000, **how: Any) -> Tensor:
    """How often each id comes out over an even grid of uniform numbers."""
    settings = {"vocabulary": 5, "temperature": temperature} | how
    pair = Beside(Says(Q), Says(P), combine, **settings)
    logits = pair(input_ids=torch.tensor([[1]]), past_key_values=None).logits[:, -1].expand(draws, -1)
    numbers = (torch.arange(draws) + 0.5) / draws
    chosen = choose(logits, numbers, Sampling(1, temperature))
    return chosen.bincount(minlength=5).double() / draws


def probabilities(logits: list[float], temperature: float) -> Tensor:
    return (torch.tensor(logits, dtype=torch.float64) / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_mixture_is_drawn_from_at_the_sampling_temperature(share, temperature):
    wanted = share * probabilities(P, temperature) + (1 - share) * probabilities(Q, temperature)
    got = drawn(partial(beside.mixture, share=share), temperature)
    assert (got - wanted).abs().max() <= 2 / 20_000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [1, 2, 3, 5, 9])
def test_a_proposal_is_kept_or_drawn_again_exactly_as_in_two_draws(top_k, temperature):
    """Enumerated: the student's token, and where the teacher refuses it each token of the teacher."""
    q, p = probabilities(Q, temperature), probabilities(P, temperature)
    kept = set(sorted(range(5), key=lambda token: -P[token])[:top_k])
    wanted = torch.zeros(5, dtype=torch.float64)
    for token in range(5):
        if token in kept:
            wanted[token] += q[token]
        else:
            wanted += q[token] * p
    assert float(wanted.sum()) == pytest.approx(1.0)
    got = drawn(partial(beside.proposals, top_k=top_k), temperature)
    assert (got - wanted).abs().max() <= 2 / 20_000


@pytest.mark.parametrize("combine", [MIXED, PROPOSED])
def test_ids_that_are_not_shared_or_no_token_have_no_part_in_either_distribution(combine):
    got = drawn(combine, vocabulary=4, unused=(1,))
    q, p = (torch.tensor([x[0], -torch.inf, x[2], x[3]]).double().softmax(-1) for x in (Q, P))
    wanted = combine(q[None], p[None])[0]
    assert got[[1, 4]].sum() == 0
    assert (got[:4] - wanted).abs().max() <= 2 / 20_000


PROMPTS = [[5, 6, 7, 8, 9], [5, 6], [30, 31, 32], [40], [50, 51, 52, 53], [60, 61]]


def pair(combine: beside.Combine, temperature: float, kind: str = "llama") -> Beside:
    models = (tiny_model(64, seed=seed, kind=kind, num_attention_heads=4) for seed in (16, 17))
    return Beside(*models, combine, vocabulary=64, temperature=temperature)


def written(model: Beside, sampling: Sampling, batch_rows: int, samples: int = 2) -> dict[Any, Any]:
    finished = generate(
        model, PROMPTS, sampling, stop_ids={EOS}, pad_id=PAD, seed=0, batch_rows=batch_rows, samples=samples
    )
    return {(one.index, one.sample): one.ids for one in finished}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding", "convolution"])
@pytest.mark.parametrize("combine", [MIXED, PROPOSED])
def test_both_caches_keep_step_with_refilled_places(combine, kind):
    """The same text as by full passes of both models for every token, whatever the batch."""
    sampling = Sampling(10, 0.9)
    model = pair(combine, 0.9, kind)
    few = written(model, sampling, batch_rows=3)
    assert few == written(model, sampling, batch_rows=16)
    for (index, sample), ids in few.items():
        numbers = torch.from_numpy(uniforms(0, PROMPTS[index], sample, 10))
        context = list(PROMPTS[index])
        for place, token in enumerate(ids):
            both = [
                m(torch.tensor([context]), use_cache=False).logits[:, -1]
                for m in (model.student, model.teacher)
            ]
            mixed = combine(*((logits / 0.9).softmax(-1) for logits in both))
            assert int(choose(0.9 * mixed.log(), numbers[place : place + 1], sampling)) == token
            context.append(token)


def test_the_shorter_of_both_contexts_is_the_limit():
    model = pair(MIXED, 1.0)
    model.teacher.config.max_position_embeddings = 12
    with pytest.raises(RecipeError, match="12 positions"):
        written(model, Sampling(10), batch_rows=2)


def test_a_model_without_a_cache_is_refused():
    class NoCache(Says):
        def forward(self, *inputs: Any, **named: Any) -> Any:
            return SimpleNamespace(logits=super().forward(*inputs, **named).logits, past_key_values=None)

    model = Beside(Says(Q), NoCache(P), MIXED, vocabulary=5)
    with pytest.raises(ModelError, match="keeps no key-value cache"):
        written(model, Sampling(4), batch_rows=2)
