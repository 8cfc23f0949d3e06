"""DistiLLM's share of steps whose text the student writes: it rises when the validation loss does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Rising:
    """A share that rises by `rise` whenever a cross-entropy on validation rows is `rise` above the last one that it rose at.

    The first validation, before the training, is what the next ones are compared with (Ko et al. 2024,
    arXiv:2402.03898, whose code uses 0.1 for both). With `rise` 0 the share stays.
    """

    share: float
    rise: float = 0.0
    loss: float | None = None  # compared with

    def validated(self, loss: float) -> None:
        """Compare one more validation loss."""
        if self.rise == 0:
            return
        if self.loss is None:
            self.loss = loss
        elif loss >= self.loss + self.rise:
            self.loss = loss
            self.share = min(1.0, round(self.share + self.rise, 9))
