"""DistiLLM's scheduler on scripted validation losses."""

from __future__ import annotations

import pytest

from potstill.strategies import on_policy
from potstill.strategies._adaptive import Rising


def traced(losses: list[float], rise: float = 0.1, start: float = 0.0) -> list[float]:
    rising = Rising(start, rise)
    shares = []
    for loss in losses:
        rising.validated(loss)
        shares.append(rising.share)
    return shares


def test_the_share_rises_where_the_loss_is_a_tenth_above_the_last_rise():
    losses = [3.0, 2.5, 3.05, 3.1, 3.15, 3.2, 3.19, 3.4]
    assert traced(losses) == pytest.approx([0, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.3])


def test_the_share_never_exceeds_1():
    assert traced([float(i) for i in range(15)], start=0.5)[-1] == 1.0


def test_without_a_rise_the_share_stays():
    assert traced([1.0, 5.0, 9.0], rise=0.0, start=0.3) == [0.3, 0.3, 0.3]


def test_the_strategy_hears_validations_and_says_its_share():
    strategy = on_policy.build(on_policy_fraction=0.0, replay=4, adaptive=0.1)
    for loss in (2.0, 2.2, 2.1, 2.4):
        strategy.validated({"cross_entropy": loss, "loss": -loss})
    assert strategy.figures()["on_policy_fraction"] == pytest.approx(0.2)
