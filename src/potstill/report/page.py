"""The page: one HTML file without script, under a policy that lets it load nothing."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from potstill.report import numbers, parts, text, views
from potstill.report.metrics import ROLES
from potstill.report.model import Absent, Report

MOST_BYTES = 1_000_000
MOST_SAMPLES = 12
_LIMITS = (6_000, 2_000, 600, 200)  # characters of an answer, lowered until the page fits MOST_BYTES
T = TypeVar("T")


def render(report: Report) -> str:
    """The page as text. Whatever a model, a recipe or a library wrote is escaped and shown as written."""
    page = ""
    for limit in _LIMITS:
        page = _environment(limit).get_template("report.html.j2").render(_context(report))
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def write(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write the page atomically: a reader sees the old file or the new one, never half. Raises OSError."""
    target = Path(path)
    page = render(report).encode()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep colleagues from reading a shared run folder
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def _source(name: str) -> str:
    return files("potstill.report").joinpath(name).read_text(encoding="utf-8")


def _show(value: object) -> object:
    """Every string that the template prints passes here; markup was made by us and is done already."""
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _environment(limit: int) -> Environment:
    made = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"ROLES": ROLES, "LEAD": min(700, limit), "LIMIT": limit}
    made.filters |= {
        "split": text.split,
        "clip": text.clip,
        "whole": numbers.whole,
        "short": numbers.short,
        "size": numbers.size,
        "pair": numbers.pair,
    }
    return made


def _context(report: Report) -> dict[str, object]:
    css = _source("report.css")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    sections = report.sections
    return {
        "css": Markup(css),
        "policy": f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "report": report,
        "sections": sections,
        "highlights": views.highlights(report),
        "distances": views.distances(report),
        "by_stage": views.by_stage(report),
        "retention": views.retention(report),
        "curves": views.curves(report),
        "training": views.training(report),
        "samples": report.samples[:MOST_SAMPLES],
        "overlap": _part(sections.overlap, parts.overlap),
        "funnel": _part(sections.funnel, parts.funnel),
        "lengths": _part(sections.lengths, parts.lengths),
        "behaviour": _part(sections.behaviour, parts.behaviour),
        "costs": _part(sections.costs, parts.costs),
        "defaults": parts.defaults(sections.defaults),
        "versions": parts.versions(report.versions),
    }


@dataclass(frozen=True)
class Part:
    """A section's view, or why it is absent."""

    view: object = None
    reason: str = ""


def _part(section: T | Absent, view: Callable[[T], object]) -> Part:
    return Part(reason=section.reason) if isinstance(section, Absent) else Part(view(section))
