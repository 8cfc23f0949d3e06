"""Stages whose student writes, for the terms that their options make."""

from __future__ import annotations

from typing import Any

from potstill.stages.distill import Distill

WRITES = "builders.outside.written:twice"


def stage(**options: Any) -> Distill:
    strategy = options.pop("strategy", WRITES)
    return Distill.model_validate({"strategy": strategy, "steps": 4, **options})
