"""A teacher from outside the package: a table of logits by the last token, and a tokenizer; no weights, no text."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer

from potstill.signals.dense import Dense
from potstill.types import Batch


class Bigram:
    name = "a table of pairs"
    provides = frozenset({"dense"})

    def __init__(self, reads: Any, sharpness: float) -> None:
        self.reads = reads
        self.fingerprint = f"bigram {sharpness}"
        size = reads.vocabulary.size
        self.table = sharpness * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        self.closed = 0

    def signal(self, batch: Batch) -> Dense:
        return Dense(self.table[batch.input_ids[batch.predicts]])

    def close(self) -> None:
        self.closed += 1


def bigram(context: Any, *, tokenizer: str, sharpness: float = 2.0) -> Bigram:
    """What follows depends on the last token alone."""
    return Bigram(context.reader(AutoTokenizer.from_pretrained(context.base / tokenizer)), sharpness)
