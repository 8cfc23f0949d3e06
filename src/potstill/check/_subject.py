"""What a check looks at."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.recipe.recipe import Recipe
from potstill.recipe.training import Training
from potstill.stages._context import Setup


@dataclass(frozen=True)
class Subject:
    """A recipe, the method that its stages came from, and what it names."""

    recipe: Recipe
    method: str | None
    setup: Setup

    @property
    def training(self) -> list[Training]:
        """The stages that train."""
        return [stage for stage in self.recipe.stages if isinstance(stage, Training)]

    @property
    def answer_tokens(self) -> int:
        """The most tokens that a stage lets the teacher write, 0 where none does."""
        writing = [stage for stage in self.recipe.stages if "text" in stage.needs]
        return max((getattr(stage, "max_new_tokens", 0) for stage in writing), default=0)
