"""Where what a student was trained on comes from: whose text, when, how it was drawn, under which terms, and what was
left out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from potstill.data.prompts import MEASURED
from potstill.report.numbers import whole

NOT_STATED = "not stated"


def sources(outcome: Any) -> list[dict[str, Any]]:
    """Every source of text: its kind, its terms, and of a teacher who answered, when, and how answers were drawn."""
    data, recipe = outcome.data, outcome.recipe
    listed = [
        {
            "source": f"the answers of {name}",
            "kind": "teacher",
            "provider": source["provider"],
            "model": source["model"],
            "answered_by": source.get("answered_by", {}),
            "endpoint": source.get("endpoint"),
            "date": source["date"],
            "sampling": source["sampling"],
            "licence": source.get("licence") or None,
            "terms": source["terms"] or None,
            "answers": facts["answers"],
        }
        for name, facts, source in _written(outcome.state)
    ]
    if data.train:
        listed.append(_file(recipe.data.train, recipe.data.terms, len(data.train) + len(data.validation)))
    for part in recipe.data.mix or ():
        if part.source in data.mixed:
            listed.append(_file([part.source], part.terms, len(data.mixed[part.source])))
    for stage in recipe.stages:
        if stage.name in data.of_stages:
            parts = data.of_stages[stage.name]
            listed.append(_file(stage.data, getattr(stage, "terms", ""), len(parts.train + parts.validation)))
    return listed


def _file(names: Sequence[str], terms: str, rows: int) -> dict[str, Any]:
    return {
        "source": ", ".join(names),
        "kind": "rows",
        "files": list(names),
        "terms": terms or None,
        "rows": rows,
    }


def manner(sampling: Mapping[str, Any]) -> str:
    """How a teacher's answers were drawn."""
    how = f"at temperature {sampling['temperature']:g} and at most {sampling['max_new_tokens']} tokens an answer"
    if longer := sampling.get("retry_truncated"):
        how += f" ({longer} where it was cut off)"
    return how


def _written(state: Any) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """The stages that let a teacher write, with their facts and what they say of the source."""
    for name, artifact in state.artifacts.items():
        if (source := artifact.facts.get("source")) is not None:
            yield name, artifact.facts, source


def judged(state: Any) -> dict[str, Any]:
    """Of every stage whose answers were judged: how many are used, and what filters and verifier found."""
    return {
        name: {
            "used": facts["answers"],
            "rejected": facts.get("rejected", {}),
            "filters": facts.get("filters", {}),
            "replies": facts.get("rejected_samples", {}),
            **({"alternatives": facts["alternatives"]} if "alternatives" in facts else {}),
            **({"verified": facts["verified"]} if "verified" in facts else {}),
        }
        for name, facts, _ in _written(state)
    }


def _not_measured(outcome: Any) -> Counter[str]:
    """The held-out rows that the teacher was to answer and that cannot be measured, by reason."""
    state, lost = outcome.state, Counter[str]()
    if state.answers is None:
        return lost
    for reason, count in state.left_out.items():
        if reason.startswith(MEASURED):
            lost[reason.removeprefix(MEASURED).removeprefix("answer: ")] += count
    if "heldout" in outcome.examples:
        lost.update(outcome.examples["heldout"].funnel)
    return +lost


def sentences(outcome: Any) -> Iterator[str]:
    """The same for a reader of the page."""
    for name, facts, source in _written(outcome.state):
        how = manner(source["sampling"])
        terms = source["terms"] or f"{NOT_STATED} (teacher.terms)"
        if "endpoint" in source:
            by = ", ".join(f"{model} ({count})" for model, count in source["answered_by"].items())
            yield (
                f"{name}: {source['model']} at {source['endpoint']} was asked on {source['date']}, {how}; it was answered "
                f"by {by or 'a model that gives no name'}. {facts['spent']['requests']} requests, {facts['spent']['cost']}. "
                f"Terms: {terms}."
            )
        else:
            licence = f" Licence of its files: {source['licence']}." if source["licence"] else ""
            yield f"{name}: {source['model']} ({source['provider']}) wrote by {source['date']}, {how}. Terms: {terms}.{licence}"
        if rejected := facts.get("rejected"):
            reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
            yield f"{name}: answers that are not used: {reasons}."
        if beside := facts.get("alternatives"):
            why = ", ".join(f"{count} {reason}" for reason, count in beside["refused"].items())
            yield (
                f"{name}: alternatives beside its tokens are kept of {whole(beside['kept'])} of {whole(beside['answers'])} "
                f"answers{f'; the text alone of the others: {why}' if why else ''}."
            )
        if verified := facts.get("verified"):
            yield (
                f"{name}: {whole(verified['right'])} of {whole(verified['answers'])} answers are right by {verified['by']}; "
                f"{whole(verified['kept'])} are kept ({verified['keep']}). "
                f"{whole(verified['prompts_without_a_right_answer'])} of {whole(verified['prompts'])} prompts have no right "
                "answer and are not trained on."
            )
    if lost := _not_measured(outcome):
        reasons = ", ".join(f"{count} {reason}" for reason, count in lost.items())
        count = f"{whole(lost.total())} of {whole(len(outcome.data.heldout))} held-out rows"
        if outcome.recipe.task is None:
            yield f"{count} are not measured, since the teacher has no answer to them: {reasons}. Its figures are of the others."
        else:
            yield (
                f"The teacher has no answer to {count}: {reasons}. In the figures of the task they count as its invalid "
                "answers; figures token by token are of the others."
            )
    for one in sources(outcome):
        if one["kind"] == "rows" and one["terms"]:
            yield f"{one['source']}: {whole(one['rows'])} rows. Terms: {one['terms']}."
    if outcome.mix:
        parts = (f"{one.source} {one.rows} of {one.of_rows} rows, {one.tokens} tokens" for one in outcome.mix)
        yield f"Trained on a mix: {'; '.join(parts)}."
