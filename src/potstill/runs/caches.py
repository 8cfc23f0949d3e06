"""Look at caches of teacher signals: what they hold, whether every byte is right, whether a live teacher agrees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.cache import header as headers
from potstill.cache.packed import moved
from potstill.cache.reader import Cache
from potstill.data.batch import collate
from potstill.data.reader import reader_of
from potstill.data.template import Templater
from potstill.errors import REPAIR, ArtifactError
from potstill.models.loading import best_device
from potstill.objectives.token import Divergence
from potstill.recipe import plugins
from potstill.signals.given import Given
from potstill.stages._writing import in_bytes
from potstill.store.artifacts import MANIFEST, SELF_CHECKED
from potstill.store.artifacts import read as read_artifact
from potstill.store.disk import read_sealed
from potstill.teachers._context import TeacherContext
from potstill.teachers.cached import ABOUT, HELDOUT, PROBES, SIGNALS
from potstill.types import Example

FAR = (
    0.01  # nats a token between what is stored and what a teacher says now, from which it is another teacher
)


def caches_in(place: Path) -> dict[str, Path]:
    """The caches of a capture's folder by name, or the one cache that a folder is.

    Raises:
        ArtifactError: it is neither.
    """
    parts = {name: place / name for name in (SIGNALS, HELDOUT) if (place / name / headers.NAME).is_file()}
    if parts:
        return parts
    if not (place / headers.NAME).is_file():
        raise ArtifactError(
            f"{place} is no cache of teacher signals.",
            fix="Name a capture's folder, such as runs/NAME/stages/capture, or the folder of one cache.",
        )
    return {place.name: place}


def stats(place: Path) -> dict[str, Any]:
    """What each cache holds, and whose word it is."""
    about = read_sealed(place / ABOUT) if (place / ABOUT).is_file() else {}
    shown = {name: about[name] for name in ("name", "dtype", "licence", "terms", "sizes") if about.get(name)}
    return {"path": str(place), "teacher": shown} | {
        name: Cache.open(path).stats() for name, path in caches_in(place).items()
    }


def stats_text(values: dict[str, Any]) -> str:
    """The same in lines."""
    lines = [f"{values['path']}: teacher {values['teacher'].get('name', 'unknown')}"]
    for name, part in values.items():
        if name in ("path", "teacher"):
            continue
        setting = ", ".join(f"{key} {value}" for key, value in part["setting"].items())
        measured = part["facts"].get("measured") or {}
        lost = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in measured.items() if isinstance(value, float))  # fmt: skip
        lines.append(
            f"  {name}: {part['kind']} ({setting}), {part['examples']} examples, {part['tokens']} tokens, "
            f"{in_bytes(part['bytes'])}, {part['bytes_per_token']:.1f} bytes a token"
            f"{'' if part['complete'] else ', partial'}{f'; {lost}' if lost else ''}"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Verified:
    """Damage, a sentence each, and what a live teacher says of the probe rows."""

    place: Path
    damage: tuple[str, ...]
    examples: int
    probes: int = 0
    distance: float | None = None  # mean KL in nats a token
    limit: float = FAR
    same: bool | None = None  # the teacher's fingerprint is the cache's

    @property
    def passed(self) -> bool:
        return not self.damage and (self.distance is None or abs(self.distance) <= self.limit)

    def text(self) -> str:
        """The findings in lines."""
        lines = [*self.damage, f"{self.place}: {self.examples} examples, {len(self.damage)} damaged places"]
        if self.damage:
            lines.append(REPAIR)
        if self.distance is not None:
            word = "the same" if abs(self.distance) <= self.limit else "another teacher"
            named = "" if self.same else " (its fingerprint is not the cache's)"
            lines.append(
                f"{self.probes} probe rows: {self.distance:.2g} nats a token from what is stored, at most "
                f"{self.limit:.2g}: {word}{named}"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "place": str(self.place), "damage": list(self.damage), "passed": self.passed}


def verify(place: Path, teacher: str | None = None, dtype: str | None = None) -> Verified:
    """Read every byte of the caches in a folder; with a teacher ask it about the probe rows again.

    Args:
        teacher: a model as a recipe names it.
        dtype: the number format to load it in; the cache's when not given.
    """
    damage: list[str] = []
    examples = 0
    if (place / MANIFEST).is_file():
        damage += _files(place)
    for name, path in caches_in(place).items():
        try:
            cache = Cache.open(path)
        except ArtifactError as error:
            damage.append(f"{name}: {error.message}")
            continue
        examples += len(cache)
        damage += [f"{name}: {sentence}" for sentence in cache.verify()]
    result = Verified(place, tuple(damage), examples)
    return result if teacher is None or damage else _asked_again(result, teacher, dtype)


def _files(place: Path) -> list[str]:
    """What the manifest knows better than the files do."""
    try:
        read_artifact(place)
    except ArtifactError as error:
        # What its own blocks say is said by them.
        return [] if SELF_CHECKED.search(error.message) else [error.message]
    return []


@torch.no_grad()
def _asked_again(result: Verified, model: str, dtype: str | None) -> Verified:
    """The distance from a live teacher on the probe rows.

    Raises:
        ArtifactError: the folder holds no probe rows.
    """
    place = result.place
    rows = read_sealed(place / PROBES)["rows"] if (place / PROBES).is_file() else []
    if not rows:
        raise ArtifactError(
            f"{place} holds no probe rows.",
            fix="Name the folder of a capture or of an import; of answers that a teacher stated tokens for, rows with certain ids.",
        )
    about = read_sealed(place / ABOUT)

    def reader(tokenizer: Any, end_ids: Any = (), template: Any = None) -> Any:
        return reader_of(tokenizer, Templater(tokenizer, end_ids=end_ids))

    context = TeacherContext(Path.cwd(), best_device(), reader)
    options = {"model": model, "dtype": dtype or about["dtype"]}
    live = plugins.load("teachers", "local", options).build(context, **options)
    cache = Cache.open(caches_in(place)[SIGNALS])
    forward_kl = Divergence.from_module(plugins.load("divergences", "forward_kl"))
    values = []
    for row in rows:
        example = Example("probe", tuple(row["ids"]), tuple(row["scored"]))
        batch = collate([example], pad_id=0).to(context.device)
        now = live.signal(batch)
        width = min(now.head.vocabulary, cache.header.vocabulary)
        every = torch.zeros(batch.count, width, device=context.device)
        logits = now.chunks(forward_kl, "bucket")(slice(0, batch.count), every).logits
        then = cache.signal(example.input_ids, example.scored)
        if isinstance(then, Given):
            values.append((Given.of(logits, batch.targets).lp - then.lp.to(context.device)).abs())
            continue
        chunk = moved(then, context.device).chunks(forward_kl, "bucket")(slice(0, batch.count), logits)
        sides = chunk.beside(logits, slice(0, batch.count), 1.0)
        value = forward_kl.value(sides.student_lp, sides.teacher_lp)
        # Of a served teacher's answers the end may be the student's own.
        values.append((value if sides.offset is None else value + sides.offset)[: row.get("own")])
    every = torch.cat(values).double()
    noise = 4 * float(every.std()) / math.sqrt(len(every)) if then.estimated else 0.0
    measured = cache.header.facts.get("measured") or {}
    limit = FAR + noise + 2 * float(measured.get("kl_mean") or 0.0)
    same = live.fingerprint == about["fingerprint"]
    return Verified(place, (), result.examples, len(rows), float(every.mean()), limit, same)
