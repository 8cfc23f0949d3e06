"""What end-to-end tests of served teachers share."""

from __future__ import annotations

import pytest

from builders.served import CANARY, KEY


@pytest.fixture
def served_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that recipes of `builders.served` name."""
    monkeypatch.setenv(KEY, CANARY)
