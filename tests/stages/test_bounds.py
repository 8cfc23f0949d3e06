"""Lower bounds of a KL are measured where they are bounds: against one teacher that states its likeliest ids."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from builders.losses import divergence
from builders.steps import ragged_rows
from potstill.evaluate import scores
from potstill.signals.ensemble import Ensemble
from potstill.signals.topk import TopK
from potstill.stages._evaluated import Job

READERS = SimpleNamespace(teacher="ids", same_prompts=True, comparable=True, foreign=lambda ids: ())


def job(teacher: object) -> Job:
    context = SimpleNamespace(setup=SimpleNamespace(readers=READERS))
    return Job("evaluate", (), 1, {}, ragged_rows(), (), 1, context, teacher)


def test_stated_ids_of_one_teacher_bound_a_kl_and_those_of_several_are_not_compared():
    one = SimpleNamespace(provides={"topk"})
    several = SimpleNamespace(provides={"topk"}, members=(one, one))
    assert job(one).compared is one
    assert job(several).compared is None


def test_the_average_of_stated_ids_is_no_coarser_distribution():
    """A student that is the true average has a KL of 0, and the estimate says more."""
    first, second = torch.tensor([[0.6, 0.3, 0.09, 0.01]]), torch.tensor([[0.05, 0.05, 0.6, 0.3]])
    stated = [TopK(p.argmax(-1, keepdim=True), p.amax(-1, keepdim=True).log()) for p in (first, second)]
    signal = Ensemble(
        "topk", False, ("a", "b"), tuple(stated), (1.0, 1.0), "probabilities", torch.full((1, 2), 0.5)
    )
    forward = divergence("forward_kl")
    truth = ((first + second) / 2).log()
    sides = signal.chunks(forward, "bucket")(slice(0, 1), truth).beside(truth, slice(0, 1), 1.0)
    _, kl, _, _ = scores._coarse(
        sides, torch.zeros(1, 1, dtype=torch.long), forward, divergence("reverse_kl")
    )
    assert float(kl) > 0.005
    assert float(forward.value(truth, truth)) == pytest.approx(0.0, abs=1e-9)
