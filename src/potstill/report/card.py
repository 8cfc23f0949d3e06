"""The model card of a student: what it was made from and how, under which terms, and what was measured of it.

A README.md in the format of the Hugging Face hub (front matter in YAML, then Markdown). It holds what the run recorded
and nothing else: what nobody states is "not stated", and names of files stand without their folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import yaml

from potstill.console import visible
from potstill.report.content import ROLES
from potstill.report.figures import RESULTS, Summary, described, read
from potstill.report.numbers import shown, whole
from potstill.report.provenance import NOT_STATED, manner

CARD = "README.md"
PLACE = "path/to/this/folder"
BLOCKS = {"after": "after", "before": "before", "teacher": "reference", "control": "control"}  # of a summary
# Those that the hub has a word for; another one is `other` with its name.
_LICENCE = re.compile(
    r"apache-2\.0|mit|bsd-[23]-clause|mpl-2\.0|[al]?gpl-3\.0|cc0-1\.0|cc-by(-nc)?(-sa)?-4\.0|openrail|gemma|llama[234](\.\d)?"
)
_ON_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_MARKS = re.compile(r"[\\`*\[\]<|~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
_LOCAL = re.compile(r"^[/~.]|\\|://|\.(jsonl?|csv|tsv|parquet|arrow|txt|gguf|gz|bz2|zip)$")


def render(outcome: Any, summary: Summary) -> str:
    """The card of a run's student, from a summary of the run and its training stages."""
    lines = [
        f"---\n{yaml.safe_dump(_header(outcome.base_model, summary), sort_keys=False)}---\n",
        f"# {plain(outcome.recipe.name)}: {plain(bare(summary['student']['name']))}\n",
        f"Made by potstill {plain(summary['versions'].get('potstill', '(version unknown)'))} with the recipe "
        f"{code(outcome.recipe.name)} (SHA-256 {code(summary['recipe_hash'])}).\n",
        "## What it was made from\n",
        *_origin(outcome, summary),
        "\n## Training\n",
        *(list(_training(outcome.state)) or ["- No stage trained it."]),
        "\n## Evaluation\n",
        *_evaluation(summary),
        "\n## Use\n",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n",
        f'tokenizer = AutoTokenizer.from_pretrained("{PLACE}")',
        f'model = AutoModelForCausalLM.from_pretrained("{PLACE}", dtype="auto")\n```',
    ]
    return "\n".join(lines) + "\n"


def _header(base_model: str, summary: Summary) -> dict[str, Any]:
    """The front matter. A licence stands there only where all that is stated of base, teacher and sources agrees."""
    licence = summary["student"].get("licence") or ""
    stated = {summary["teacher"].get(key) for key in ("licence", "terms")}
    stated |= {one.get(key) for one in summary["sources"] for key in ("licence", "terms")}
    known: dict[str, str] = {}
    if stated <= {licence, None} and _LICENCE.fullmatch(licence):
        known = {"license": licence}
    elif stated <= {licence, None} and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        known = {"license": "other", "license_name": licence}
    base = {"base_model": base_model} if _ON_HUB.fullmatch(base_model) else {}
    return {"library_name": "transformers", **base, **known, "tags": ["potstill", "distillation"]}


def _origin(outcome: Any, summary: Summary) -> Iterator[str]:
    """The student's own weights, the teachers, and every source of text with its terms."""
    student, teacher = summary["student"], summary["teacher"]
    if student["source"]:
        yield f"- Base: {code(outcome.base_model or bare(student['name']))} ({student['source']}). {_licence(student)}"
    stages = [spec for spec in outcome.state.resolved.values() if not spec.measures]
    if any(spec.needs and getattr(spec, "self_teacher", None) is None for spec in stages):
        names = [code(bare(one["name"])) for one in teacher.get("members") or [teacher]]
        yield f"- Teacher: {', '.join(names)}. {_licence(teacher, 'Licence or terms')}"
    for one in summary["sources"] if outcome.state.trained else ():
        terms = f"Terms: {plain(one['terms'] or NOT_STATED)}."
        if one["kind"] == "teacher":
            by = ", ".join(f"{code(bare(name))} ({count})" for name, count in one["answered_by"].items())
            yield (
                f"- Text: {whole(one['answers'])} answers of {code(bare(one['model']))} ({plain(one['provider'])}"
                f"{f'; answered by {by}' if by else ''}), {one['date']}, {manner(one['sampling'])}. {terms}"
            )
        else:
            files = ", ".join(code(bare(name)) for name in one.get("files") or [one["source"]])
            yield f"- Rows: {files}, {whole(one['rows'])} rows. {terms}"


def _licence(side: Mapping[str, Any], label: str = "Licence") -> str:
    licence, terms = side.get("licence"), side.get("terms")
    if terms and terms != licence:
        return f"Licence: {plain(licence or NOT_STATED)}. Terms: {plain(terms)}."
    return f"{label}: {plain(licence or NOT_STATED)}."


def _training(state: Any) -> Iterator[str]:
    """A line a training stage: its verb, what it minimises, who writes the text, and how long it is."""
    for name in state.trained:
        spec, facts = state.resolved[name], state.artifacts[name].facts
        parts = [spec.verb if spec.verb == spec.name else f"{spec.verb} ({code(spec.name)})"]
        if not hasattr(spec, "divergence"):
            parts.append("cross-entropy of the text")
        else:
            parts += [f"divergence {code(spec.divergence.name)}"] * (spec.divergence_weight != 0)
            parts += [f"strategy {code(spec.strategy.name)}"]
            parts += [term.replace("_", " ") for term in spec.terms]
            parts += ["taught by itself"] * (spec.self_teacher is not None)
        steps = f"{whole(facts['steps'])} step{'s' * (facts['steps'] != 1)}"
        yield f"- {', '.join(parts)}: {steps}, {whole(facts['tokens'])} tokens."


def _evaluation(summary: Summary) -> Iterator[str]:
    """A table of what was measured, with intervals where there are any."""
    rows = []
    for key in described(summary, *RESULTS):
        row = {role: read(summary, summary.get(block), key) for role, block in BLOCKS.items()}
        if row["teacher"].n is None:  # what it has by definition
            row["teacher"] = replace(row["teacher"], value=None)
        if any(figure.value is not None for figure in row.values()):
            rows.append(row)
    if not rows:
        yield "Not evaluated."
        return
    roles = [role for role in BLOCKS if any(row[role].value is not None for row in rows)]
    most = max(figure.n or 0 for row in rows for figure in row.values())
    yield f"On {whole(most)} held-out prompts; in brackets 95 % intervals by resampling prompts.\n"
    yield f"| | {' | '.join(ROLES[role] for role in roles)} |\n|---{'|---' * len(roles)}|"
    for row in rows:
        cells = ["–" if row[role].value is None else plain(shown(row[role])) for role in roles]
        label, unit = row[roles[0]].label, row[roles[0]].unit.replace("share", "")
        yield f"| {plain(f'{label} ({unit})' if unit else label)} | {' | '.join(cells)} |"


def bare(name: str) -> str:
    """A name as others may read it: the last part of a path on this machine, a name on the hub or at a provider as it is."""
    return PurePath(name.replace("\\", "/")).name if _LOCAL.search(name) else name


def plain(text: str) -> str:
    """Text on one line in which Markdown sees nothing but text."""
    return _MARKS.sub(r"\\\g<0>", visible(" ".join(text.split())))


def code(text: str) -> str:
    """Text on one line as a code span, in a longer fence than any that it holds."""
    text = visible(" ".join(text.split())) or "unnamed"
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
