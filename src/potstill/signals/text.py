"""Only the tokens: the teacher wrote them and says nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.signals.support import Tail


@dataclass(frozen=True)
class Text:
    """No distribution: it serves objectives that read the row's own tokens alone."""

    kind: ClassVar[str] = "text"
    estimated: ClassVar[bool] = False
    rows: ClassVar[int] = 0

    def at(self, rows: Tensor) -> Text:
        return self

    def chunks(self, divergence: Divergence, tail: Tail) -> NoReturn:
        raise SignalError(
            "the teacher gave only text, which has no distribution to compare.",
            fix="Use the stage finetune, or ce_weight: 1.0.",
        )
