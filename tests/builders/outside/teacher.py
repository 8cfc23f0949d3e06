"""A teacher from outside the package: a table of logits by the last token, and a tokenizer; no weights, no text."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer

from potstill.signals.dense import Dense
from potstill.signals.topk import TopK
from potstill.types import Batch


class Bigram:
    name = "a table of pairs"

    def __init__(self, reads: Any, sharpness: float, keep: int) -> None:
        self.reads, self.keep = reads, keep
        self.provides = frozenset({"topk" if keep else "dense"})
        self.fingerprint = f"bigram {sharpness} {keep}"
        size = reads.vocabulary.size
        self.table = sharpness * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        self.closed = 0

    def signal(self, batch: Batch) -> Dense | TopK:
        logits = self.table.to(batch.input_ids.device)[batch.input_ids[batch.predicts]]
        if not self.keep:
            return Dense(logits)
        lp, ids = logits.log_softmax(-1).topk(self.keep)
        return TopK(ids, lp, vocabulary=len(self.table))

    def close(self) -> None:
        self.closed += 1


def bigram(context: Any, *, tokenizer: str, sharpness: float = 2.0, keep: int = 0) -> Bigram:
    """What follows depends on the last token alone; with `keep`, only so many likeliest ids are told."""
    return Bigram(context.reader(AutoTokenizer.from_pretrained(context.base / tokenizer)), sharpness, keep)
