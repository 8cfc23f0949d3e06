"""When a training on the student's own text gives an alarm, and when it stops."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from potstill.recipe.specs import Count, Share, Spec

Above: TypeAlias = Annotated[float, Field(gt=1)]


class Guards(Spec):
    """Limits at which a training on the student's own text stops; null turns one off. Each is compared with the
    mean over the last `window` steps that measured it, and gives one alarm before, halfway (twice a lower limit)."""

    repetition: Share | None = 0.5
    """Most 4-grams of ids that occurred before in the same rollout, as a share."""
    truncation: Share | None = 0.9
    """Most rollouts that max_new_tokens cuts, as a share of those whose row's answer ends within it."""
    length: Above | None = 4.0
    """Longest mean rollout, over that of the first window or of the rows' answers, whichever is longer."""
    entropy: Share | None = 0.1
    """Least entropy of the student, over its teacher's at the same tokens of the rollouts."""
    overlap: Share | None = 0.2
    """Least share of the teacher's 16 most likely ids that are among the student's 16."""
    window: Count = 20
    """Steps of a mean; no guard acts before it has seen so many."""
