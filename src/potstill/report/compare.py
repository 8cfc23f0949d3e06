"""Several runs side by side: grouped by recipe minus seed, with means and differences on the same prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.errors import RecipeError
from potstill.evaluate import by_prompt, stats
from potstill.recipe import yaml
from potstill.report import gather, verdict
from potstill.report.figures import RESULTS, Summary, described
from potstill.store.folder import RECIPE, RunDir
from potstill.types import Figure

APART = ("version", "name", "seed", "runs", "devices")  # keys that change no result, and the seed
FEW_SEEDS = 5


@dataclass(frozen=True)
class Run:
    """One run. `figures` are its trained student's, with their prompts where the run kept them; `measured_on` says
    of each which answers were measured; `settings` are its recipe's, by path, without the seed."""

    name: str
    seed: int
    summary: Summary
    figures: Mapping[str, Figure]
    measured_on: Mapping[str, str]
    settings: Mapping[str, str]

    @property
    def identity(self) -> str:
        """What the runs of one group have in common: the recipe without its seed, and the rows."""
        return json.dumps([self.settings, self.summary.get("data")], sort_keys=True)


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in their seeds, in the order of these; named by the first one given."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def about(self) -> str:
        """The seeds in words."""
        return f"seed{'s' * (len(self.runs) > 1)} {', '.join(map(str, self.seeds))}"


@dataclass(frozen=True)
class Line:
    """One figure: its mean in every group, and how far each group but the first is from the first."""

    about: Figure
    means: tuple[Figure, ...]
    differences: tuple[Figure, ...]


@dataclass(frozen=True)
class Comparison:
    """`lines` in the order of the first run's figures; `settings` are those in which the groups differ."""

    groups: tuple[Group, ...]
    lines: tuple[Line, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    def as_dict(self) -> dict[str, Any]:
        """The comparison for programs: of each group its runs, means and differences from the first."""
        groups = []
        for index, group in enumerate(self.groups):
            means = {line.about.key: line.means[index].stored() for line in self.lines}
            apart = {line.about.key: line.differences[index - 1].stored() for line in self.lines if index}
            runs = [{"name": run.name, "seed": run.seed} for run in group.runs]
            groups.append({"name": group.name, "runs": runs, "means": means, "differences": apart})
        return {"groups": groups, "settings": dict(self.settings), "notes": list(self.notes())}

    def sentences(self) -> Iterator[str]:
        """What the paired intervals say of each group against the first."""
        first, *others = self.groups
        for index, group in enumerate(others):
            said: dict[str, list[str]] = {}
            for line in self.lines:
                if line.about.better:
                    words = verdict.AGAINST[verdict.judgement(line.differences[index])]
                    said.setdefault(words, []).append(line.about.label)
            parts = [
                f"{words} in {verdict.listed(said[words])}"
                for words in verdict.AGAINST.values()
                if words in said
            ]
            yield f"Prompt by prompt against {first.name}, {group.name} is {'; '.join(parts)}."
        if not others:
            yield f"All runs are of one recipe, with {first.about}."

    def notes(self) -> Iterator[str]:
        """How the figures came about, and what weakens them."""
        rows = self.runs[0].summary["data"]["heldout"]["rows"]
        yield (
            f"All runs were measured on the same {rows} held-out rows. Runs whose recipes differ in the seed alone "
            "are one column: the mean of their students."
        )
        yield (
            "95 % intervals draw the prompts again, and the seeds too where a column has several. Differences are "
            "paired: both sides on the same prompts, and on the same seeds where they share them. Shares differ in points."
        )
        counts = {len(group.runs) for group in self.groups}
        if 1 in counts:
            yield "Of a column with one seed the interval tells nothing of the spread between seeds."
        if any(1 < count < FEW_SEEDS for count in counts):
            yield f"Intervals over fewer than {FEW_SEEDS} seeds are too narrow: look at the single runs too."
        if without := [run.name for run in self.runs if not run.measured_on]:
            yield (
                f"No paired difference with {verdict.listed(without)}: nothing was kept prompt by prompt. "
                "potstill run with the run's folder adds it."
            )
        kept = [run.measured_on for run in self.runs if run.measured_on]
        if any(len({on[key] for on in kept if key in on}) > 1 for key in {key for on in kept for key in on}):
            yield (
                "The runs were measured on other answers to these rows (a generate stage writes its own), or answers "
                "of another length, so such figures have no difference prompt by prompt."
            )
        if len({run.summary["teacher"]["name"] for run in self.runs}) > 1:
            yield "The runs have different teachers, and each student is measured against its own."


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare finished runs.

    Raises:
        RecipeError: a folder holds no run or is named twice, a run was not evaluated, or runs were not measured
            on the same held-out rows.
        ArtifactError: a run is not finished, or its record is damaged.
    """
    runs = _read(folders)
    _require_same_rows(runs)
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        by_recipe.setdefault(run.identity, []).append(run)
    groups = tuple(
        Group(found[0].name, tuple(sorted(found, key=lambda run: run.seed))) for found in by_recipe.values()
    )
    abouts = {key: about for run in reversed(runs) for key, about in run.figures.items()}
    order = dict.fromkeys(key for run in runs for key in run.figures)
    return Comparison(groups, tuple(_line(abouts[key], groups) for key in order), _settings(groups))


def _read(folders: Sequence[Path]) -> list[Run]:
    places = [folder.resolve() for folder in folders]
    if twice := [
        str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1
    ]:
        raise RecipeError(f"{' and '.join(twice)} are one run.", fix="Name each run once.")
    names = [place.name for place in places]
    return [
        _run(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def _run(path: Path, name: str) -> Run:
    if not (path / RECIPE).is_file():
        raise RecipeError(f"{path} holds no run.", fix="Name folders below runs/.")
    made = gather.finished(RunDir(path))
    summary, raw = made.summary, yaml.load_yaml(made.recipe, str(path / RECIPE))
    if made.content is None or not summary.get("after"):
        fix = "Add an evaluate stage to its recipe, and run it again."
        raise RecipeError(f"the run in {path} was not evaluated.", fix=fix)
    figures = {
        key: verdict.of_role(summary, "after", key) for key in described(summary, *RESULTS, "behaviour")
    }
    measured = {key: figure for key, figure in figures.items() if figure.value is not None}
    kept = {key: entry for key, entry in made.prompts.items() if key in measured}
    return Run(
        name,
        int(summary.get("seed", raw.get("seed", 0))),
        summary,
        {k: by_prompt.restored(f, kept[k]) if k in kept else f for k, f in measured.items()},
        {key: entry["measured_on"] for key, entry in kept.items()},
        dict(_flat({key: value for key, value in raw.items() if key not in APART})),
    )


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The settings of a raw recipe by path; a stage stands under its name."""
    if path == "stages":
        for stage in value:
            ((verb, options),) = stage.items() if isinstance(stage, Mapping) else ((stage, None),)
            options = dict(options or {})
            name = options.pop("name", verb)
            yield f"stages.{name}", verb
            yield from _flat(options, name)
    elif isinstance(value, Mapping) and (value or path in ("", "stages")):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, yaml.to_line(value)


def _require_same_rows(runs: Sequence[Run]) -> None:
    hashes = [((run.summary.get("data") or {}).get("heldout") or {}).get("sha256") for run in runs]
    if others := [run.name for run, value in zip(runs, hashes, strict=True) if value != hashes[0]]:
        were = "was" if len(others) == 1 else "were"
        raise RecipeError(
            f"{verdict.listed(others)} {were} not measured on the held-out rows of {runs[0].name}.",
            fix="Compare runs with one data.heldout, or with one data.train, data.seed and data.heldout_fraction.",
        )


def _line(about: Figure, groups: Sequence[Group]) -> Line:
    first = groups[0]
    means = tuple(stats.mean(_figures(about.key, group.runs)) for group in groups)
    differences = []
    for group in groups[1:]:
        figures = _figures(about.key, (*group.runs, *first.runs))
        count = len(group.runs)
        paired = group.seeds == first.seeds and len(set(first.seeds)) == count
        differences.append(stats.mean_difference(figures[:count], figures[count:], paired_runs=paired))
    blank = replace(about, value=None, low=None, high=None, n=None, reason="", pairs=(), shape=None)
    return Line(blank, means, tuple(differences))


def _figures(key: str, runs: Sequence[Run]) -> list[Figure]:
    """A figure of each run, without prompts where the runs did not measure the same answers."""
    missing = Figure(key, reason="not measured")
    figures = [run.figures.get(key, missing) for run in runs]
    if len({run.measured_on.get(key) for run in runs}) == 1:
        return figures
    return [replace(figure, pairs=()) for figure in figures]


def _settings(groups: Sequence[Group]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    written = [dict(group.runs[0].settings) for group in groups]
    for settings, group in zip(written, groups, strict=True):
        rows = group.runs[0].summary["data"]["train"]
        settings["rows of data.train"] = f"{rows['rows']} (sha256 {rows['sha256'][:8]})"
    paths = dict.fromkeys(path for settings in written for path in settings)
    rows = {path: tuple(settings.get(path, "") for settings in written) for path in paths}
    return tuple((path, values) for path, values in rows.items() if len(set(values)) > 1)
