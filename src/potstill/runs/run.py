"""The composition root: a recipe becomes parts, parts become stages, stages become a report."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from potstill.console import Console, silent
from potstill.data.mix import Taken
from potstill.devices import jobs, memory, ranks
from potstill.errors import Interrupted, RecipeError
from potstill.models.source import find_source, in_full
from potstill.recipe.recipe import Recipe, dump_yaml
from potstill.report import gather
from potstill.report.summary import Outcome
from potstill.runs import pipeline, setup, status, tracking
from potstill.runs.stopping import stop_signals
from potstill.stages import _rows
from potstill.stages._context import Context, Setup, State
from potstill.stages._metrics import figures_of_ours
from potstill.stages._training_rows import Examples
from potstill.store.artifacts import Store
from potstill.store.disk import real, write_text
from potstill.store.folder import RECIPE, Onlooker, RunDir


@dataclass(frozen=True)
class RunResult:
    """A finished run. The summary's blocks are attributes: `result.after.forward_kl.value`."""

    path: Path
    summary: Mapping[str, Any]
    verdict: str
    outputs: Mapping[str, Path]

    def __getattr__(self, name: str) -> Any:
        try:
            return _namespace(self.summary[name])
        except KeyError:
            raise AttributeError(f"the summary has no {name!r}") from None


def _namespace(value: Any) -> Any:
    if isinstance(value, Mapping):
        return SimpleNamespace(**{str(k): _namespace(v) for k, v in value.items()})
    return value


def run(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    until: str | None = None,
    console: Console | None = None,
    yes: bool = False,
) -> RunResult:
    """Run a recipe's stages; what is finished and unchanged is taken from the store.

    Args:
        recipe: a recipe file, or the folder of an earlier run to go on with.
        overrides: `key.path=value`, as on the command line.
        until: stop after the last stage of this name or verb.
        yes: agree to what a served teacher costs; without it, a price above its `confirm_above` is asked for.

    Raises:
        PotstillError: with the exit code of `potstill.errors`; `Interrupted` when a signal arrived.
    """
    jobs.adopt()
    memory.bound_caches()
    with ranks.joined(jobs.processes() or 1):
        shown = (console or Console()) if ranks.first() else silent()
        return _together(recipe, overrides, until, shown, yes)


def _together(
    recipe: str | Path, overrides: Sequence[str], until: str | None, console: Console, yes: bool
) -> RunResult:
    """The run, in each of its processes."""
    opened = setup.open_recipe(recipe, overrides)
    place = Path(opened.recipe.runs) / opened.recipe.name
    folder = RunDir(place) if ranks.first() else Onlooker(place)
    if until is not None:
        pipeline.require_stage(opened.recipe.stages, until)
    folder.create()
    store = Store(folder.store_root(), run=folder.path)
    with folder.owned(), stop_signals() as received:
        if real(store.root).parent != real(folder.path).parent:
            console.say(f"note: {folder.path} is {real(folder.path)}; its artifacts are in {store.root}.")
        before = folder.state()
        if before.get("status") == "running":
            console.warn(status.post_mortem(status.last_step((before.get("training") or {}).get("metrics"))))
        date = ranks.by_first(folder.date)
        parts = ranks.first_goes_first(lambda: setup.set_up(opened, date))
        if ranks.first():
            write_text(folder.path / RECIPE, dump_yaml(opened.recipe))
        identity = {
            "base": str(opened.base),
            "recipe_hash": opened.recipe.hash(),
            "date": None if parts.date is None else parts.date.isoformat(),
            "place": str(real(folder.path)),
            "store": str(real(store.root)),
        }
        folder.update(identity | {"status": "running", "error": None})
        context = Context(
            setup=parts,
            store=store,
            console=console,
            seed=opened.recipe.seed,
            stages=opened.recipe.stages,
            stop_signal=lambda: received.number,
            announce=folder.update,
            yes=yes,
        )
        with (
            _last_word(folder, recipe, overrides),
            store.in_use(),
            tracking.tracking(opened.recipe, folder.path, console, first=ranks.first()) as tracked,
        ):
            context = replace(context, track=tracked.log)
            for note in parts.notes:
                console.say(f"note: {note}")
            console.say(f"rows: {parts.data.counts}")
            if unread := parts.data.not_read:
                console.warn(
                    f"columns that are not read: {', '.join(f'{name} ({n} rows)' for name, n in unread.items())}. "
                    "data.columns gives them a use, or `unused` where they are to stay out."
                )
            context.stop_if_signalled()
            state = pipeline.go(context, folder, until)
            outcome = Outcome(
                opened.recipe,
                parts.data,
                parts.teacher,
                state,
                _examples(state, context),
                figures_of_ours(),
                parts.notes,
                _licences(parts),
                _mix(state, context),
                _base_model(opened.recipe, parts),
            )
            summary, verdict, outputs = ranks.by_first(lambda: gather.publish(folder, outcome))
            tracked.finish(summary)
            folder.update({"status": "finished", "verdict": verdict})
            return RunResult(folder.path, summary, verdict, outputs)


def _licences(parts: Setup) -> dict[str, str]:
    """What teacher and student say of their licences; a cut is its teacher's."""
    teacher, student = getattr(parts.teacher, "licence", ""), parts.student
    if student.cut:
        return {"teacher": teacher, "student": teacher}
    own = getattr(student.plugin, "licence", None)
    return {"teacher": teacher, "student": own(student.context, **student.options) if own else ""}


def _base_model(recipe: Recipe, parts: Setup) -> str:
    """The model of the hub whose weights the student began with, a cut one's teacher; "" where it is none."""
    name, options = (recipe.teacher if parts.student.cut else recipe.student).plugin
    if name not in ("local", "model"):
        return ""
    source = find_source(options["model"], base=parts.base)
    return in_full(source.location) if source.kind == "hub" else ""


def _examples(state: State, context: Context) -> dict[str, Examples]:
    """The examples of every split that the run used."""
    splits: list[_rows.Split] = [] if state.student is None else ["train", "validation"]
    if state.evaluation is not None:
        splits.append("heldout")
    return {split: _rows.examples(state, context, split) for split in splits}


def _mix(state: State, context: Context) -> Sequence[Taken]:
    """What was taken of each source, where a stage trained on a mix of several."""
    trained = [name for name in state.trained if name not in context.setup.data.of_stages]
    return () if context.setup.mix is None or not trained else _rows.mix(state, context)[1]


def rebuild_report(run_folder: Path) -> RunResult:
    """Write a run's report and summary again from what it recorded; no model, row or artifact is read for it.

    Raises:
        RecipeError: the folder holds no run.
        ArtifactError: the run is not finished, its record is damaged, or another process works in the folder.
    """
    if not (run_folder / RECIPE).is_file():
        raise RecipeError(f"{run_folder} holds no run.", fix="Name a folder below runs/.")
    folder = RunDir(run_folder)
    with folder.owned():
        return RunResult(folder.path, *gather.republish(folder))


@contextmanager
def _last_word(folder: RunDir, recipe: str | Path, overrides: Sequence[str]) -> Iterator[None]:
    """Whatever ends the run, its folder says so before the error goes on; one that was deleted is not named."""

    def again() -> str:
        there = (folder.path / RECIPE).is_file()
        return status.goes_on(folder.path) if there else status.goes_on(Path(recipe), overrides)

    try:
        yield
    except Interrupted as stop:
        stop.fix = again()
        folder.update_at_end({"status": "interrupted"})
        raise
    except KeyboardInterrupt as error:
        folder.update_at_end({"status": "interrupted"})
        raise Interrupted(
            "stopped at once; what was not saved is done again.",
            signal_number=signal.SIGINT,
            fix=again(),
        ) from error
    except Exception as error:
        folder.update_at_end({"status": "failed", "error": status.reason(error).as_dict()})
        raise
