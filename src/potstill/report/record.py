"""What a run recorded of itself: a page is made from this alone, whatever became of models, rows and store."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from potstill.data.split import Overlap
from potstill.errors import ArtifactError
from potstill.recipe.defaults import Default
from potstill.report.content import Content
from potstill.report.curves import Curve
from potstill.report.figures import Summary
from potstill.store.disk import read_sealed, write_sealed
from potstill.store.folder import RunDir

log = logging.getLogger("potstill")

RECORD = "record.json"
VERSION = 1
MADE_AGAIN = "potstill run with the run's folder writes it again."


@dataclass(frozen=True)
class Record:
    """What a run left: `recipe` as it stood in the folder, `complete` where all of its stages are done; without an
    evaluation no `content`. `prompts` has the trained student's figures prompt by prompt."""

    summary: Summary
    recipe: str
    complete: bool
    content: Content | None
    prompts: Mapping[str, Any] = field(default_factory=dict)


def write(folder: RunDir, record: Record) -> None:
    """Write the record with a seal of itself."""
    content = None if record.content is None else _stored(record.content)
    value = {
        "version": VERSION,
        "summary": record.summary,
        "recipe": record.recipe,
        "complete": record.complete,
        "content": content,
        "prompts": record.prompts,
    }
    write_sealed(folder.path / RECORD, json.loads(json.dumps(value, default=str), parse_constant=_absent))


def read(folder: RunDir) -> Record | None:
    """The record of a run folder, None where there is none.

    Raises:
        ArtifactError: it is not as it was written, or of another version.
    """
    path = folder.path / RECORD
    if not path.is_file():
        return None
    value = read_sealed(path)
    if value.get("version") != VERSION:
        raise ArtifactError(f"{path} is of another version of potstill.", fix=MADE_AGAIN)
    try:
        content = None if value["content"] is None else _content(value)
        prompts = dict(value.get("prompts", {}).items())  # earlier versions wrote none
        return Record(dict(value["summary"].items()), value["recipe"], value["complete"], content, prompts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a record of a run.", fix=MADE_AGAIN) from error


def read_or_warn(folder: RunDir) -> Record | None:
    """The record; None with a warning where it is damaged."""
    try:
        return read(folder)
    except ArtifactError as error:
        log.warning("%s It is made again.", error.message)
        return None


def _stored(content: Content) -> dict[str, Any]:
    """The content as JSON, without what the record holds beside it."""
    defaults = [[default.path, default.shown, default.source] for default in content.defaults]
    stored = asdict(content) | {"defaults": defaults}
    return {name: value for name, value in stored.items() if name != "summary"}


def _content(value: dict[str, Any]) -> Content:
    stored = value["content"]
    overlap = stored["overlap"]
    return Content(
        **stored
        | {
            "summary": value["summary"],
            "curves": _curves(stored["curves"]),
            "on_policy": _curves(stored.get("on_policy", ())),  # earlier versions wrote none
            "overlap": None if overlap is None else Overlap(**overlap),
            "defaults": [Default(*default) for default in stored["defaults"]],
        }
    )


def _curves(stored: Any) -> list[Curve]:
    return [Curve(**curve | {"points": _points(curve["points"])}) for curve in stored]


def _points(points: Any) -> tuple[tuple[float, float], ...]:
    return tuple((step, math.nan if value is None else value) for step, value in points)


def _absent(_constant: str) -> None:
    """JSON has no NaN and no infinity."""
