"""A capture that goes on with what another one left: one with another deadline, or a damaged one."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.cache import blocks, heads
from potstill.cache.files import Folder
from potstill.cache.keys import key_of
from potstill.cache.mending import Mender
from potstill.cache.reader import Cache
from potstill.cache.writer import completed
from potstill.errors import ArtifactError
from potstill.store import disk
from potstill.store.artifacts import MANIFEST
from potstill.teachers.cached import HELDOUT, SIGNALS

if TYPE_CHECKING:
    from potstill.stages._capture import Job
    from potstill.stages._writing import Writing

STAGE = "capture"
ALIKE = "alike"  # all that a capture depends on, but for its deadline
KEPT = ".kept.json"
MENDS = ".mends"  # in a folder whose blocks come from a damaged cache
LATE = ".late-"  # and the number of a share that came to its deadline
BEGIN = ".begin.lock"
PLACES = SIGNALS, HELDOUT


def damage_of(folder: Path) -> list[str]:
    """What is damaged in a finished capture's caches, a sentence each; every byte is read."""
    damage: list[str] = []
    for place in PLACES:
        try:
            damage += Cache.open(folder / place).verify()
        except ArtifactError as error:
            damage.append(error.message)
    return damage


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
    damaged = (path for path in job.context.store.aside(STAGE, job.key) if any(path.rglob("shard-*.bin")))
    if (aside := next(damaged, None)) is not None:
        _take_damaged(job, aside, folder)
    elif not (folder / MENDS).is_file():
        _take_copy(job, folder)


def _take_damaged(job: Job, aside: Path, folder: Path) -> None:
    """Move the blocks of a damaged capture here; `mend` looks at each of them."""
    disk.write_text(folder / MENDS, "")
    for place in PLACES:
        (folder / place).mkdir(exist_ok=True)
        for file in (aside / place).glob("shard-*.bin"):
            file.rename(folder / place / file.name)
        with suppress(ArtifactError):
            heads.read_head(Folder(aside / place))  # whole
            for name in (heads.NAME, heads.CHECK):
                shutil.copy2(aside / place / name, folder / place / name)
    with suppress(ArtifactError, KeyError):
        # Last: a kill before it moves what is left.
        disk.write_sealed(folder / KEPT, disk.read_sealed(aside / MANIFEST)["facts"]["kept"])
    job.context.console.say(f"{job.spec.name}: goes on with what is whole in {aside}")


def _take_copy(job: Job, folder: Path) -> None:
    earlier = [*job.context.store.alike(STAGE, ALIKE, job.inputs[ALIKE])]
    if not earlier:
        return
    most = max(earlier, key=lambda artifact: artifact.facts["rows"])
    for place in PLACES:
        shutil.copytree(most.path / place, folder / place, dirs_exist_ok=True)
    # Last: a kill before it copies all of it again.
    disk.write_sealed(folder / KEPT, most.facts["kept"])
    rows = f"{most.facts['rows']} of {most.facts['planned_rows']} rows"
    job.context.console.say(f"{job.spec.name}: goes on with {rows}, captured with another deadline")


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
