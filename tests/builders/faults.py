"""Faults that a test brings about: a stage that fails, a key that is pressed."""

from __future__ import annotations

import signal

from potstill.stages import _train as train_stage


def failing(monkeypatch, error: BaseException) -> None:
    """The training stage ends with this error."""

    def fail(*args, **settings):
        raise error

    monkeypatch.setattr(train_stage, "train", fail)


def pressing(monkeypatch, place: object, name: str, times: int = 1) -> None:
    """Ctrl-C is pressed when this function is called."""

    def press(*args, **settings):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(place, name, press)
