"""A bound in place of knobs: the smallest setting that keeps to it, its error measured and said."""

from __future__ import annotations

import pytest
import torch

from builders.losses import divergence
from potstill.cache import codecs
from potstill.cache.fidelity import choose
from potstill.cache.measure import measure
from potstill.errors import SignalError
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.types import Head

FORWARD, REVERSE, MSE = (divergence(name) for name in ("forward_kl", "reverse_kl", "logit_mse"))


@pytest.fixture(scope="module")
def sample() -> Hidden:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(80, 32, generator=generator) / 2.5, 77)
    return Hidden(torch.randn(150, 32, generator=generator), head)


@pytest.mark.parametrize(
    ("divergences", "temperatures", "kind", "why"),
    [
        ([FORWARD], [1.0], "topk_sampled", "linear in the teacher"),
        ([FORWARD], [1.0, 2.0], "hidden", "every divergence, temperature"),
        ([REVERSE], [1.0], "hidden", "every divergence"),
        ([FORWARD, MSE], [1.0], "hidden", "every divergence"),
        ([], [1.0], "hidden", "evaluation"),
    ],
)
def test_auto_takes_what_the_recipe_needs_and_says_why(sample, divergences, temperatures, kind, why):
    choice = choose(sample, divergences=divergences, temperatures=temperatures, max_kl_nats=0.01)
    assert choice.kind == kind
    assert why in choice.why
    assert choice.measured["kl_mean"] <= 0.01


def test_the_smallest_setting_within_the_bound_is_taken(sample):
    loose, tight = (choose(sample, "hidden", max_kl_nats=bound) for bound in (1e-3, 1e-6))
    assert (loose.setting["format"], tight.setting["format"]) == ("int8", "fp16")
    assert loose.measured["bytes_per_token"] < tight.measured["bytes_per_token"]
    coarse, fine = (choose(sample, "topk", max_kl_nats=bound).measured for bound in (0.3, 0.05))
    assert coarse["bytes_per_token"] < fine["bytes_per_token"]
    assert fine["kl_mean"] <= 0.05 < coarse["kl_mean"] <= 0.3
    assert fine["kl_p99"] >= fine["kl_mean"]


def test_the_best_setting_within_the_bytes_is_taken(sample):
    for kind in ("topk", "sampled", "topk_sampled"):
        small, large = (choose(sample, kind, bytes_per_token=budget).measured for budget in (20, 60))
        assert small["bytes_per_token"] <= 20
        assert large["bytes_per_token"] <= 60
        assert large["kl_mean"] < small["kl_mean"]
    assert choose(sample, divergences=[REVERSE], bytes_per_token=20).kind == "topk"
    assert choose(sample, divergences=[REVERSE], bytes_per_token=200).setting["format"] == "fp16"


def test_measured_bytes_are_those_of_the_cache(sample):
    (measured,) = measure(sample, [("hidden", codecs.codec("hidden").check({}))], examples=[100, 50])
    assert measured["bytes_per_token"] == pytest.approx(64 + 2 * (24 + 12 + 8) / 150, rel=1e-5)


def test_what_cannot_be_met_is_refused_with_the_closest(sample):
    with pytest.raises(SignalError, match=r"no setting keeps to 1e-09.*the best, topk .*choose hidden"):
        choose(sample, "topk", max_kl_nats=1e-9)
    with pytest.raises(SignalError, match=r"fits into 1 bytes a token; the smallest takes"):
        choose(sample, "sampled", bytes_per_token=1)
    with pytest.raises(SignalError, match="both"):
        choose(sample, max_kl_nats=1e-3, bytes_per_token=3)
    with pytest.raises(SignalError, match="no hidden states"):
        choose(Dense(torch.zeros(3, 5)), divergences=[MSE])


@pytest.mark.parametrize(
    ("kind", "divergences", "temperatures", "what"),
    [
        ("topk", [MSE], [1.0], "logit_mse"),
        ("sampled", [REVERSE], [1.0], "reverse_kl"),
        ("topk_sampled", [FORWARD], [1.0, 2.0], "one temperature"),
        ("token", [FORWARD], [1.0], "forward_kl"),
    ],
)
def test_a_kind_that_a_divergence_cannot_read_is_refused(sample, kind, divergences, temperatures, what):
    with pytest.raises(SignalError, match=what):
        choose(sample, kind, divergences=divergences, temperatures=temperatures)
