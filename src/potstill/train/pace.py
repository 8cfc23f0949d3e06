"""When a checkpoint or a validation is due."""

from __future__ import annotations

import math
import time

from potstill.devices import ranks
from potstill.recipe.specs import seconds_of


class Pace:
    """When a checkpoint is due: after so many steps, or so much time; the first process's clock decides.

    Args:
        every: steps (0: never), or a duration as `5m`.
    """

    def __init__(self, every: int | str) -> None:
        self._steps = every if isinstance(every, int) else 0
        self._seconds = math.inf if isinstance(every, int) else seconds_of(every)
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one is due after this step."""
        late = ranks.first() and time.monotonic() - self._last > self._seconds
        if not due(step, self._steps) and not ranks.anyone(late):
            return False
        self._last = time.monotonic()
        return True


def due(step: int, every: int) -> bool:
    """Whether something is due after this step that happens every so many; 0 is never."""
    return every > 0 and step % every == 0
