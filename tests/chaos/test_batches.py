"""A process that asks in batches is killed at any moment: no batch is submitted twice, and no answer is bought twice."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from builders import asking, killing
from builders.batch_provider import providing
from potstill.generate import batch
from potstill.generate.bill import PILOT
from potstill.generate.served import Clock, Given

WORKERS = 8


def work(url: str, place: str, count: int, per_batch: int) -> list[Given]:
    """Ask for everything, the first one by one and the rest in small batches."""
    prompts = [f"p{i}" for i in range(count)]
    request = asking.request(url, Path(place), prompts, workers=WORKERS, clock=Clock())
    given = batch.write(request, requests_per_batch=per_batch, batches_at_once=2, poll_seconds=0.01)
    return sorted(given, key=lambda one: (one.index, one.sample))


def plain(given: list[Given]) -> list[Given]:
    return [replace(one, attempts=0, at=0.0, endpoint="") for one in given]


def prove(place: Path, monkeypatch: pytest.MonkeyPatch, count: int, kills: int, per_batch: int) -> None:
    """Compare an undisturbed process with killed ones: answers, batches and requests."""
    # Where the server that forks the processes finds what it imports once for all of them.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    with providing() as (provider, endpoint):
        undisturbed = work(endpoint.url, str(place / "calm"), count, per_batch)
        calls = len(provider.calls)
    with providing() as (provider, endpoint):

        def progress() -> int:
            return len(endpoint.sent) + len(provider.calls)

        dice = random.Random(3)
        args = (endpoint.url, str(place / "killed"), count, per_batch)
        for _ in range(kills):
            killing.start_and_kill(work, args, progress, (PILOT + calls) // (kills + 1), dice)
        assert plain(work(*args)) == plain(undisturbed)
        assert set(provider.answered.values()) == {1}  # in batches, none twice
        assert sum(provider.answered.values()) + len(endpoint.sent) <= count + kills * WORKERS


def test_five_kills_submit_no_batch_twice(tmp_path, monkeypatch):
    prove(tmp_path, monkeypatch, count=80, kills=5, per_batch=8)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_fifty_kills_over_two_thousand_prompts_submit_no_batch_twice(tmp_path, monkeypatch):
    prove(tmp_path, monkeypatch, count=2000, kills=50, per_batch=10)
