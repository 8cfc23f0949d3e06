"""A capture that goes on with what another one left: one with another deadline, or a damaged one.

A damaged capture is made as it was. Its folder stands for its inputs, and students were trained on what it held, so
rows that its deadline left out stay left out: a later deadline is another capture, which goes on with this one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cache import blocks, heads, index
from potstill.cache.files import Folder
from potstill.cache.index import Index
from potstill.cache.keys import key_of
from potstill.cache.mending import Mender
from potstill.cache.reader import Cache
from potstill.cache.writer import completed
from potstill.errors import ArtifactError, MachineError
from potstill.store import disk
from potstill.store.artifacts import MANIFEST
from potstill.teachers.cached import ABOUT, HELDOUT, LEFT_OUT, SIGNALS

if TYPE_CHECKING:
    from potstill.stages._capture import Job
    from potstill.stages._writing import Writing

STAGE = "capture"
ALIKE = "alike"  # all that a capture depends on, but for its deadline
KEPT = ".kept.json"
MENDS = ".mends"  # in a folder whose blocks come from a damaged cache: what was known of it
LIKE = ".alike"  # the same as a stopped one's folder says it
LATE = ".late-"  # and the number of a share that came to its deadline
BEGIN = ".begin.lock"
PLACES = SIGNALS, HELDOUT


@dataclass(frozen=True)
class Damaged:
    """What a damaged capture said before anything of it was moved.

    `damage` has a sentence for each damaged place, `left_out` the keys in hex of the rows that its deadline left out;
    None where nothing that can be read says so.
    """

    damage: tuple[str, ...]
    left_out: frozenset[str] | None


def damage_of(job: Job) -> list[str]:
    """What is damaged in a finished capture, a sentence each; every byte is read."""
    folder, damage = job.context.store.place(STAGE, job.key), list[str]()
    for place in PLACES:
        try:
            damage += Cache.open(folder / place).verify()
        except ArtifactError as error:
            damage.append(error.message)
    if not damage:
        try:
            job.context.store.find(STAGE, job.key)
        except ArtifactError as error:
            damage.append(error.message)
    return damage


def begin_repair(job: Job) -> list[str]:
    """Move a damaged capture aside, to be mended by the build of its artifact; what is damaged, a sentence each.

    Where an earlier repair was stopped, what that one read.

    Raises:
        MachineError: another process makes or mends the same capture.
    """
    place = job.context.store.place(STAGE, job.key)
    with job.context.store.alone(STAGE, job.key) as free:
        if not free:
            raise MachineError(
                f"another process makes or mends {place}.",
                fix="Wait until it is done, or stop it: the same command goes on with what it leaves.",
            )
        return _begin_repair(job, place)


def _begin_repair(job: Job, place: Path) -> list[str]:
    store, console = job.context.store, job.context.console
    if not place.is_dir():
        stopped = noted(store.work(STAGE, job.key))
        if stopped is None and not _aside(job):
            notes = (noted(folder) for folder in _stopped(job))
            return next(([*note.damage] for note in notes if note is not None), [])
        console.say(f"{job.spec.name}: goes on with a repair that was stopped")
        return [f"{place} was moved aside, damaged"] if stopped is None else [*stopped.damage]
    damage = damage_of(job)
    if damage:
        # First: behind the move nobody else knows that the blocks are to be read.
        _note(job, store.work(STAGE, job.key), place, damage)
        aside = disk.set_aside(place)
        console.say(f"{job.spec.name}: {len(damage)} damaged places; it is moved to {aside} and mended")
    return damage


def end_repair(job: Job) -> None:
    """Remove what stands aside, once the capture is whole in its place."""
    for aside in _aside(job):
        disk.discard(aside)
    disk.sweep(job.context.store.root)


def noted(folder: Path) -> Damaged | None:
    """What is known of the damaged capture that is mended in `folder`; None where none is."""
    if not (folder / MENDS).is_file():
        return None
    try:
        value = disk.read_sealed(folder / MENDS)
        left_out = value["left_out"]
        return Damaged(tuple(value["damage"]), None if left_out is None else frozenset(left_out))
    except (ArtifactError, KeyError):
        return Damaged((), None)  # begun by an earlier version


def _note(job: Job, folder: Path, damaged: Path, damage: Sequence[str]) -> None:
    _write_note(folder, damage, _left_out(job, damaged))


def _write_note(folder: Path, damage: Sequence[str], left_out: Sequence[str] | None) -> None:
    disk.write_sealed(folder / MENDS, {"damage": [*damage], "left_out": left_out})


def _left_out(job: Job, damaged: Path) -> list[str] | None:
    """The keys of the rows that a capture's deadline left out; three of its files say so, any of them is enough."""
    if job.spec.deadline is None:
        return []
    with suppress(ArtifactError, KeyError):
        return [*disk.read_sealed(damaged / LEFT_OUT)["keys"]]
    with suppress(ArtifactError, KeyError):
        facts = disk.read_sealed(damaged / MANIFEST)["facts"]
        if facts["rows"] == facts["planned_rows"]:
            return []
    with suppress(ArtifactError, OSError):
        listed = Index.from_bytes((damaged / SIGNALS / index.NAME).read_bytes())
        every = (key_of(row.input_ids, row.scored) for row in job.rows)
        return [key.hex() for key in every if listed.find(key) is None]
    return None


def _aside(job: Job) -> list[Path]:
    """Where damaged captures of these inputs were moved, the last one first."""
    asides = job.context.store.aside(STAGE, job.key)
    return [path for path in asides if any((path / place).is_dir() for place in PLACES)]


def _full(asides: Sequence[Path]) -> list[Path]:
    """Those that still hold blocks."""
    return [path for path in asides if any(path.rglob("shard-*.bin"))]


def take_over(job: Job, folder: Path) -> None:
    """Begin with what another capture of these rows has written, so that nobody is asked about a row twice; of shares
    side by side the first one does it, and the others wait."""
    with (folder / BEGIN).open("a") as handle:
        while not disk.lock(handle):
            time.sleep(0.1)
        _begin(job, folder)


def _begin(job: Job, folder: Path) -> None:
    if (folder / KEPT).is_file():
        return
    disk.write_text(folder / LIKE, job.inputs[ALIKE])
    asides, begun = _aside(job), (folder / MENDS).is_file()
    # Of one from which all blocks were moved, before an interruption, the rest is still to be taken.
    if damaged := _full(asides) or (asides if begun else []):
        _take_damaged(job, damaged[0], folder)
    else:
        _take_copy(job, folder)


def _take_damaged(job: Job, aside: Path, folder: Path) -> None:
    """Move the blocks of a damaged capture here; `mend` looks at each of them."""
    if noted(folder) is None:
        _note(job, folder, aside, [f"{aside} was moved there, damaged"])
    _take(aside, folder, Path.rename)
    if (kept := _kept_of(aside)) is not None:
        # Last: a kill before it moves what is left.
        disk.write_sealed(folder / KEPT, kept)
    job.context.console.say(f"{job.spec.name}: goes on with what is whole in {aside}")


def _take(source: Path, folder: Path, take: Callable[[Path, Path], Any]) -> None:
    """Move or copy blocks, and copy the head where it is whole."""
    for place in PLACES:
        (folder / place).mkdir(exist_ok=True)
        for file in (source / place).glob("shard-*.bin"):
            take(file, folder / place / file.name)
        with suppress(ArtifactError):
            heads.read_head(Folder(source / place))
            for name in (heads.NAME, heads.CHECK):
                shutil.copy2(source / place / name, folder / place / name)


def _kept_of(damaged: Path) -> Any:
    """What a capture keeps of a position; two of its files say so. None where neither can be read: it is measured again."""
    with suppress(ArtifactError, KeyError):
        return disk.read_sealed(damaged / MANIFEST)["facts"]["kept"]
    with suppress(ArtifactError, KeyError):
        return disk.read_sealed(damaged / ABOUT)["kept"]
    return None


def _take_copy(job: Job, folder: Path) -> None:
    """Copy the most that was captured with another deadline, finished or not."""
    earlier = {one.path: one for one in job.context.store.alike(STAGE, ALIKE, job.inputs[ALIKE])}
    source = max([*earlier, *_stopped(job)], key=lambda one: disk.size_of(one / SIGNALS), default=None)
    if source is None:
        return
    if source not in earlier:
        _take_stopped(job, source, folder)
        return
    most = earlier[source]
    for place in PLACES:
        shutil.copytree(most.path / place, folder / place, dirs_exist_ok=True)
    # Last: a kill before it copies all of it again.
    disk.write_sealed(folder / KEPT, most.facts["kept"])
    rows = f"{most.facts['rows']} of {most.facts['planned_rows']} rows"
    job.context.console.say(f"{job.spec.name}: goes on with {rows}, captured with another deadline")


def _stopped(job: Job) -> Iterator[Path]:
    """The folders in which these rows were captured or mended with another deadline, until that was stopped."""
    own = job.context.store.work(STAGE, job.key)
    for folder in job.context.store.underway(STAGE):
        if folder == own or not (folder / KEPT).is_file():
            continue
        if (folder / LIKE).is_file() and (folder / LIKE).read_text(encoding="utf-8") == job.inputs[ALIKE]:
            yield folder


def _take_stopped(job: Job, stopped: Path, folder: Path) -> None:
    """Copy the blocks of a capture that was stopped; where it was a repair, `mend` looks at each of them."""
    if (note := noted(stopped)) is not None:
        _write_note(folder, note.damage, None)
    _take(stopped, folder, shutil.copy2)
    disk.write_sealed(folder / KEPT, disk.read_sealed(stopped / KEPT))
    job.context.console.say(
        f"{job.spec.name}: goes on with what is whole in {stopped}, begun with another deadline"
    )


def mend(writing: Writing, part: int) -> bool:
    """Ask again about the rows of a part's damaged blocks, and write each where it stood; false where a signal came."""
    if not (writing.folder / blocks.shard_name(part << 16)).is_file():
        return True
    context = writing.job.context
    with Mender(writing.folder, completed(writing.header), part) as mender:
        for block in writing.plan.parts[part]:
            held = mender.holds([key_of(row.input_ids, row.scored) for row in block.rows])
            if held is None:
                return True  # what is missing behind it is written next
            if not held:
                if context.stop_signal():
                    return False
                name = mender.put(list(writing.job.entries.of(block, writing.header)))
                context.console.say(f"{writing.job.spec.name}: {name} of {writing.folder.name} is made again")
        mender.end()
    return True
