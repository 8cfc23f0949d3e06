"""The stages of one run, in order: each gets the state that the one before left."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.errors import RecipeError
from potstill.recipe.plugins import did_you_mean
from potstill.recipe.stages import StageSpec, run_of
from potstill.recipe.verbs import verbs
from potstill.stages import _questions, _rows
from potstill.stages._context import Context, State
from potstill.stages._later import require_answers
from potstill.store.folder import RunDir


def go(context: Context, folder: RunDir, until: str | None = None) -> State:
    """Run the stages, up to the last one of the name or verb `until`, and link what each left into the run's folder."""
    stages = upto(context.stages, until)
    folder.keep_links("stages", [stage.name for stage in stages])
    state = State()
    _rows.require_rows(stages, context)
    for stage in stages:
        folder.update({"stage": stage.name})
        if stage.trains and any(later.measures for later in stages):
            # What cannot be measured later is refused before hours of training.
            _questions.questions(state, context, 10**9)
            require_answers(context, stage.name, state)
        before, state = state, run_of(stage)(stage, state, context)
        _link(stage.name, before, state, folder)
    return state


def _link(name: str, before: State, state: State, folder: RunDir) -> None:
    """Link what a stage left, and the signals that stand beside the answers of a served teacher."""
    left, captured = state.artifacts[name].path, state.captured
    folder.link(f"stages/{name}", left)
    if captured is not None and captured is not before.captured and captured.path != left:
        folder.link(f"stages/{name}.signals", captured.path)


def upto(stages: Sequence[StageSpec], until: str | None) -> Sequence[StageSpec]:
    """The stages up to the last one of a name or verb; all of them for None."""
    if until is None:
        return stages
    return stages[: max(index for index, stage in enumerate(stages) if until in (stage.name, stage.verb)) + 1]


def require_stage(stages: Sequence[StageSpec], until: str) -> None:
    """Raises RecipeError where no stage has this name or verb."""
    known = dict.fromkeys(word for stage in stages for word in (stage.name, stage.verb))
    if until in known:
        return
    fix = f"Add `- {until}` to its stages" if until in verbs() else f"Its stages: {', '.join(known)}"
    message = f"the recipe has no {until} stage{did_you_mean(until, known)}"
    raise RecipeError(message, path="stages", fix=f"{fix}.", value=until)
