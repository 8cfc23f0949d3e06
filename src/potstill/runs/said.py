"""What a recipe's reader should know of its rows and models: allowed, and worth a line."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.data.dataset import Dataset
from potstill.data.reader import Readers
from potstill.models import vocabulary
from potstill.recipe.inputs import DataSpec
from potstill.recipe.recipe import Recipe
from potstill.signals.teacher import Teacher


def of_reading(readers: Readers, spec: DataSpec, context_length: int) -> list[str]:
    """What is worth a line about how both models read."""
    notes = []
    student, teacher = readers.student, readers.teacher
    if teacher is not None:
        notes += [
            f"special ids differ: {text}"
            for text in vocabulary.special_differences(teacher.vocabulary, student.vocabulary)
        ]
        if teacher.templater.fingerprint != student.templater.fingerprint:
            notes.append(
                "the chat templates of teacher and student differ; each reads a row through its own."
            )
        elif readers.shared_vocabulary and not readers.read_alike:
            notes.append(
                "teacher and student read a row as different ids by the same chat template; each is given its own."
            )
    if spec.max_length != "auto" and spec.max_length > context_length:
        notes.append(
            f"data.max_length is {spec.max_length}, the models read {context_length} tokens; that is the limit."
        )
    return notes


def of_systems(readers: Readers, spec: DataSpec, data: Dataset) -> list[str]:
    """Which system prompts templates add of their own, and to how many rows."""
    rows = [row for row in (*data.trained_on, *data.heldout) if row.text is None]
    # A prompt that is merged into the user's turn, or dropped, is none to the template.
    without = sum(spec.system != "keep" or not row.has_system for row in rows)
    if not without:
        return []
    systems = {"the": readers.student.templater.default_system}
    if readers.teacher is not None and readers.teacher.templater.default_system != systems["the"]:
        systems["the teacher's"] = readers.teacher.templater.default_system
    return [
        f"{owner} chat template adds a system prompt of its own to the {without} of {len(rows)} rows "
        f"without one: {added!r}."
        for owner, added in systems.items()
        if added
    ]


def of_gold(recipe: Recipe, data: Dataset) -> Iterator[str]:
    """What becomes of answers that rows bring along where a stage lets the teacher write others."""
    writers = [index for index, stage in enumerate(recipe.stages) if "text" in stage.needs]
    if not writers:
        return
    stage = recipe.stages[writers[0]].name
    own = sum((parts.train + parts.validation for parts in data.of_stages.values()), ())
    trained = {(row.prompt_text, str(row.gold)) for row in own}
    rows = data.train + data.validation
    if any(s.trains and s.name not in data.of_stages for s in recipe.stages[: writers[0]]):
        rows = ()
    unused = sum(bool(row.gold) and (row.prompt_text, str(row.gold)) not in trained for row in rows)
    if unused:
        yield (
            f"{unused} of {len(rows)} training rows hold an answer that no stage trains on: after {stage} the "
            f"teacher's answers are trained on. Leave {stage} out to train on those of the rows."
        )
    measured = sum(bool(row.gold) for row in data.heldout)
    if measured and any(s.measures for s in recipe.stages[writers[0] :]):
        yield (
            f"{measured} of {len(data.heldout)} held-out rows hold an answer: texts are compared with it (vs "
            "gold) and with the teacher's (vs teacher); token by token, models are scored on the teacher's."
        )


def of_kept(recipe: Recipe, teacher: Teacher) -> Iterator[str]:
    """What is kept of answers that a teacher in this process writes, where no capture reads it."""
    keeper = ""
    for stage in recipe.stages if hasattr(teacher, "loaded") else ():
        if "text" in stage.needs and keeper:
            break
        if "text" in stage.needs:
            keeper = stage.name if getattr(stage, "keep", None) else ""
        elif stage.verb == "capture":
            keeper = ""
    if keeper:
        yield (
            f"stages.{keeper}.keep: nothing reads what is kept, because no capture stands behind {keeper}; later stages "
            "ask the teacher. Put `- capture` behind it."
        )


def of_overlap(data: Dataset) -> list[str]:
    seen = {row.prompt_text for row in data.train + data.validation}
    both = sum(row.prompt_text in seen for row in data.heldout)
    if not both:
        return []
    return [
        f"{both} of {len(data.heldout)} held-out prompts are training prompts too; figures on them "
        "measure memory. Take them out of one of the two."
    ]
