"""What a store holds, which runs refer to it, and what none refers to any more.

A run refers to the artifacts that its links and its summary name, to everything that these were made from, and
to the work that it began and did not finish. What cannot be known is in use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.errors import ArtifactError
from potstill.store import artifacts, disk
from potstill.store.artifacts import BUILDING, MANIFEST, OWNERS, REGISTER, Store
from potstill.store.disk import real
from potstill.store.folder import MADE, RECIPE, STATE, RunDir

Kind = Literal["artifact", "unfinished", "leftover"]


@dataclass(frozen=True)
class Entry:
    """One folder or file of a store; `runs` are those that refer to it, `held` says that a process works on it."""

    path: Path
    kind: Kind
    what: str
    bytes: int
    made: float  # seconds since 1970
    runs: tuple[str, ...] = ()
    held: bool = False

    @property
    def free(self) -> bool:
        """Whether nobody refers to it."""
        return not self.runs and not self.held


@dataclass(frozen=True)
class Usage:
    """A store's entries, and the places of runs that cannot be looked into; what they use is not known."""

    store: Store
    entries: tuple[Entry, ...]
    unreachable: Mapping[Path, Path]  # a link or a note of the store -> the run that it names

    @property
    def free(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.free)


def read_usage(store: Store) -> Usage:
    """Look at everything in a store and at every run that may refer to it. Reads no weights."""
    runs, unreachable = _runs(store)
    made = {path.name: _manifest(path) for path in _artifacts(store.root)}
    users: dict[str, list[str]] = {}
    for label, run in runs.items():
        for name in _with_sources(_named(run, store, made), made):
            users.setdefault(name, []).append(label)
    entries = [
        *(_artifact(store, name, manifest, users.get(name, ())) for name, manifest in made.items()),
        *(_unfinished(store, path, runs) for path in sorted(store.root.glob(f"{BUILDING}*"))),
        *(_leftover(path) for path in _leftovers(store.root)),
    ]
    return Usage(store, tuple(entries), unreachable)


def _runs(store: Store) -> tuple[dict[str, Path], dict[Path, Path]]:
    """The run folders beside a store and those that it has a note of, and what leads to none of them."""
    runs: dict[str, Path] = {}
    unreachable: dict[Path, Path] = {}
    root = real(store.root)
    for place in sorted(store.root.parent.iterdir()):
        if place.name.startswith("."):
            continue
        if place.is_dir():
            runs[place.name] = place
        elif place.is_symlink() and root not in real(place).parents:
            unreachable[place] = real(place)
    inside = {real(run) for run in runs.values()}
    for note in sorted((store.root / REGISTER).glob("[0-9a-f]*")):
        run = Path(note.read_text(encoding="utf-8"))
        if run in inside:
            continue
        if run.is_dir():
            runs[str(run)] = run
        else:
            unreachable[note] = run
    return runs, unreachable


def _named(run: Path, store: Store, made: Mapping[str, Mapping[str, Any] | None]) -> set[str]:
    """The artifacts that a run's links and its summary name, and those that one which is not finished has made."""
    root, names = real(store.root), set[str]()
    for place in (run, *_inside(run), *_inside(run / "stages")):
        target = real(place)
        if place.is_symlink() and root in target.parents:
            names.add(target.relative_to(root).parts[0])
    state = _read(run / STATE)
    if state.get("status") != "finished":  # the links of a stage come at its end
        names |= {name for name in made if name in {*_texts(state.get(MADE))}}
    keys = _read(run / "summary.json").get("artifacts")
    return names | _of_keys(set(_texts(keys)), made)


def _with_sources(names: set[str], made: Mapping[str, Mapping[str, Any] | None]) -> set[str]:
    """Add everything that artifacts were made from; all of the store where one of them does not say."""
    reached, new = set[str](), names & made.keys()
    while new:
        reached |= new
        manifests = [made[name] for name in new]
        if None in manifests:
            return set(made)
        keys = {text for manifest in manifests if manifest for text in _texts(_sources(manifest))}
        new = _of_keys(keys, made) - reached
    return reached


def _sources(manifest: Mapping[str, Any]) -> list[Any]:
    """What an artifact was made from, and the measurements that an evaluation shares with others."""
    facts = manifest.get("facts")
    return [manifest.get("inputs"), facts.get("measurements") if isinstance(facts, dict) else None]


def _of_keys(keys: set[str], made: Mapping[str, Any]) -> set[str]:
    """The artifacts with these keys, or with those that texts end with: a training names captured signals as
    "TEACHER from KEY". Names end with the first part of a key."""
    short = {key.rpartition(" from ")[2][: artifacts.SHOWN] for key in keys}
    return {name for name in made if name.rpartition("-")[2] in short}


def _texts(value: Any) -> Iterator[str]:
    """Every text within lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _artifact(
    store: Store, name: str, manifest: Mapping[str, Any] | None, runs: tuple[str, ...] | list[str]
) -> Entry:
    path = store.root / name
    what = "no complete artifact" if manifest is None else _words(manifest)
    return Entry(
        path,
        "artifact",
        what,
        disk.size_of(path),
        _time(path / MANIFEST),
        tuple(runs),
        _held(store, name),
    )


def _words(manifest: Mapping[str, Any]) -> str:
    """What an artifact is."""
    facts, stage = manifest["facts"], str(manifest.get("stage"))
    match stage:
        case "generate" if "answers" in facts:
            return f"{_counted(facts['answers'], 'answer')} of the teacher"
        case "filter" if "answers" in facts:
            return f"{_counted(facts['answers'], 'answer')} that passed the filters"
        case "train" if "steps" in facts:
            return f"student after {_counted(facts['steps'], 'step')}"
        case "capture":
            part = "" if facts.get("coverage", 1) == 1 else f", {facts['coverage']:.0%} of them"
            return (
                f"a teacher's signals ({facts.get('signal')}) of {_counted(facts.get('rows'), 'row')}{part}"
            )
        case "signals":
            return f"likely tokens that a served teacher stated, of {_counted(facts.get('rows'), 'row')}"
        case "student":
            return "student before training"
        case "evaluate":
            return "evaluation"
        case "scores":
            return "a model's scores on held-out answers"
        case "greedy":
            return "a model's greedy answers"
    return stage


def _counted(number: Any, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _unfinished(store: Store, path: Path, runs: Mapping[str, Path]) -> Entry:
    """Work under way or interrupted; it belongs to the runs that began it, as long as these are there."""
    name = path.name.removeprefix(BUILDING)
    owners = path / OWNERS
    if owners.is_file():
        begun = owners.read_text(encoding="utf-8").splitlines()
        users = [label for label, run in runs.items() if _names(label, run) & set(begun)]
    elif path.is_dir() and not any(path.iterdir()):
        users = []  # of a process that was killed as it began
    else:  # of an earlier version: any run that is not finished may go on with it
        users = [label for label, run in runs.items() if _goes_on(run)]
    stage = name.rpartition("-")[0]
    what = "a teacher's signals, kept by cache: auto" if stage == "kept" else f"unfinished {stage}"
    return Entry(path, "unfinished", what, disk.size_of(path), _time(path), tuple(users), _held(store, name))


def _names(label: str, run: Path) -> set[str]:
    """How a run may have signed: by its name or its place, or by those that it had before it was renamed."""
    place = _read(run / STATE).get("place")
    before = {place, Path(place).name} if isinstance(place, str) else set()
    return {label, str(real(run)), *before}


def _goes_on(run: Path) -> bool:
    return (run / RECIPE).is_file() and _read(run / STATE).get("status") != "finished"


def _leftovers(root: Path) -> Iterator[Path]:
    """What was being deleted when a process was killed, and what was moved aside because it was damaged."""
    for path in sorted(root.glob(".*")):
        if path.name.endswith(disk.GONE) or disk.is_aside(path):
            yield path


def _leftover(path: Path) -> Entry:
    what = "damaged, moved aside" if disk.is_aside(path) else "half deleted"
    return Entry(path, "leftover", what, disk.size_of(path), _time(path))


def _held(store: Store, name: str) -> bool:
    """Whether a process builds the artifact of this name."""
    place = store.root / artifacts.LOCKS / name
    if not place.is_file():
        return False
    with place.open() as handle:
        return disk.is_locked(handle)


def _manifest(path: Path) -> Mapping[str, Any] | None:
    """An artifact's manifest, None where it is unreadable or another's."""
    try:
        manifest = disk.read_sealed(path / MANIFEST)
    except ArtifactError:
        return None
    return manifest if isinstance(manifest.get("facts"), dict) else None


def _artifacts(root: Path) -> Iterator[Path]:
    """The folders of a store that are named as artifacts are; what else lies there is not potstill's."""
    for path in sorted(root.iterdir()):
        if artifacts.NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is none."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")).items())
    except (
        FileNotFoundError,
        NotADirectoryError,
        IsADirectoryError,
        ValueError,
        AttributeError,
        RecursionError,
    ):
        return {}


def _time(path: Path) -> float:
    return (path if os.path.lexists(path) else path.parent).lstat().st_mtime


def store_of(place: Path) -> Store | None:
    """The store of a folder of runs, of one run, or itself; None where there is none."""
    of_run = (place / RECIPE).is_file()
    candidates = [RunDir(place).store_root()] if of_run else [place / ".store", place]
    return next((Store(root) for root in candidates if root.name == ".store" and root.is_dir()), None)
