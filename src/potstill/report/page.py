"""The page: one HTML file without script, under a policy that lets it load nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from potstill.console import visible
from potstill.report import numbers, quality, row_tables, tables, tasks, text, training_tables, verdict
from potstill.report.content import ROLES, Content
from potstill.store.disk import write_text

MOST_BYTES = 1_000_000
MOST_SAMPLES = 8
_LIMITS = (6_000, 2_000, 600, 200)  # characters of an answer, lowered until the page fits MOST_BYTES
_VIEWS = (
    tables.results, tables.not_compared, tables.highlights, tables.distances, tables.by_stage, tables.against_control,
    tables.retention, tasks.confusions, tasks.invalid, tasks.money, training_tables.curves, training_tables.training,
    training_tables.on_policy, training_tables.rollouts, row_tables.overlap, row_tables.funnel, row_tables.lengths,
    tables.behaviour, training_tables.costs, quality.replies, quality.filters, tables.speed, tables.defaults, row_tables.data,
    tables.precision, tables.versions,
)  # fmt: skip


def render(content: Content) -> str:
    """The page as text. Whatever a model, a recipe or a library wrote is escaped and shown as written."""
    page, values = "", _values(content)
    for limit in _LIMITS:
        page = environment(limit).get_template("report.html.j2").render(values)
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def write(content: Content, path: str | os.PathLike[str]) -> Path:
    """Write the page: a reader sees the old file or the new one, never half. Raises OSError."""
    target = Path(path)
    write_text(target, render(content))
    target.chmod(0o644)  # whatever the umask: colleagues read a shared run folder
    return target


def cautions(content: Content) -> list[str]:
    """What a reader should know before believing the figures: of the summary, the data and the seed."""
    texts = verdict.cautions(content.summary)
    seen = content.overlap
    if seen is not None and (seen.exact or seen.near):
        texts.append(
            f"Of {seen.of} held-out prompts, {seen.exact} are also training prompts and {seen.near} nearly "
            "so: they flatter the student."
        )
    if (seed := content.summary.get("seed")) is not None:
        texts.append(f"One seed ({seed}): the intervals tell nothing of the spread between seeds.")
    return texts


def _source(name: str) -> str:
    return files("potstill.report").joinpath(name).read_text(encoding="utf-8")


def _show(value: object) -> object:
    """Make controls in a string visible; every value that the template prints passes here."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def environment(limit: int = _LIMITS[0]) -> Environment:
    """The templates, with what every page prints by; `limit` cuts answers."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"ROLES": ROLES, "BETTER": tables.BETTER, "LEAD": min(700, limit), "LIMIT": limit}
    environment.filters |= {"split": text.split, "clip": text.clip}
    environment.filters |= {
        name: getattr(numbers, name) for name in ("whole", "short", "size", "pair", "shown")
    }
    return environment


def frame() -> dict[str, object]:
    """The style of every page, and the policy under which nothing else is loaded."""
    css = _source("report.css")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return {"css": Markup(css), "policy": policy}


def _values(content: Content) -> dict[str, object]:
    """What the template prints: `content`, and each of the _VIEWS under its name."""
    summary = content.summary
    unknown = {"name": "unnamed", "params": None, "bytes": None, "source": "", "licence": None, "terms": ""}
    teacher, student = (unknown | (summary.get(side) or {}) for side in ("teacher", "student"))
    return {
        **frame(),
        "content": content,
        "title": ": ".join(part for part in (summary.get("name"), student["name"]) if part),
        "models": [(role, teacher if role == "teacher" else student) for role in content.roles],
        "made": summary.get("made") or {},
        "recipe_hash": summary.get("recipe_hash") or "",
        "verdict": verdict.verdict(summary),
        "cautions": cautions(content),
        "samples": content.samples[:MOST_SAMPLES],
        **{view.__name__: view(content) for view in _VIEWS},
    }
