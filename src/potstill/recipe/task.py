"""What the answers have to be, and what machines cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe.specs import Conflict, Spec, Text

Kind = Literal["json", "label", "number", "text"]
# Keys that only some types of task have.
_OF_TYPE: dict[str, tuple[Kind, ...]] = {
    "schema": ("json",),
    "rationale": ("json",),
    "response_format": ("json",),
    "labels": ("label",),
    "tolerance": ("number",),
    "answer_after": ("label", "number", "text"),
}


class TaskSpec(Spec):
    """What an answer has to be: invalid ones are never trained on, and evaluations measure what is right."""

    type: Kind
    """json: an object; label: one of `labels`; number: one number; text: anything."""
    schema_file: Text | None = Field(default=None, alias="schema")
    """File with the JSON schema of an answer; without one any object is valid."""
    labels: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """The labels; capitals, quotes and a full stop do not matter."""
    gold: Text | None = None
    """Column with the right answer; without one the answer that the row brings along."""
    answer_after: Text | None = None
    """The answer stands behind the last occurrence of this text, and its rationale before it."""
    rationale: Text | None = None
    """Property of the object that holds the rationale; it is never measured."""
    target: Literal["rationale_and_answer", "answer"] = "rationale_and_answer"
    """What is trained on: the rationale with the answer, or the answer alone."""
    response_format: bool = True
    """Send the schema to a served teacher, which then writes nothing else."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """By how much a number may differ from the right one."""

    def conflicts(self) -> Iterator[Conflict]:
        for key, types in _OF_TYPE.items():
            if self.changed("schema_file" if key == "schema" else key) and self.type not in types:
                fix = f"Leave it out; it belongs to type: {' or '.join(types)}."
                yield Conflict(key, f"has no effect on a task of type {self.type}.", fix)
        if self.type == "label" and len({label.casefold() for label in self.labels}) < max(
            2, len(self.labels)
        ):
            message = "must hold two labels or more, each another word whatever its capitals."
            yield Conflict("labels", message, "Write labels: [spam, ham].")


class CostsSpec(Spec):
    """Prices of the machines that serve and train the student; what is not stated is unknown, never 0."""

    serving_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of an hour of the machine that serves the student, as fast as the one of this run."""
    training_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of an hour of the machine that this run works on."""
    currency: Text = "USD"
    """The currency of both; where it is not the teacher's, nothing is compared."""
