"""The teachers of an ensemble: each with its name, weight, temperature and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import RecipeError, VocabularyError
from potstill.models.vocabulary import overlap
from potstill.teachers._context import TeacherContext

WHOLE = frozenset({"dense", "topk"})  # signals that can be averaged
KEYS = ("name", "weight", "temperature", "rows")  # of a member, beside those of its teacher


@dataclass(frozen=True)
class Member:
    """One teacher of several. `rows`: the values for which it is asked; None where no other one is."""

    name: str
    teacher: Any
    weight: float = 1.0
    temperature: float = 1.0
    rows: frozenset[str] | None = None

    @property
    def identity(self) -> list[Any]:
        """What decides about its part in the ensemble."""
        rows = None if self.rows is None else sorted(self.rows)
        return [self.teacher.fingerprint, self.weight, self.temperature, rows]


def member_of(value: Mapping[str, Any], number: int, context: TeacherContext, route: str | None) -> Member:
    """Build one teacher of a list from what the recipe says of it.

    Raises:
        RecipeError: it gives no distribution, or one of its keys cannot be as it is.
    """
    path = f"teacher.ensemble.{number}"
    own = {key: value[key] for key in KEYS if key in value}
    assert context.member is not None
    teacher = context.member({key: item for key, item in value.items() if key not in own}, path)
    for key in ("weight", "temperature"):
        item = own.get(key, 1.0)
        if isinstance(item, bool) or not isinstance(item, int | float) or not 0 < item < float("inf"):
            fix = "Take the teacher out of the list." if key == "weight" and item == 0 else ""
            raise RecipeError(f"must be a number above 0, not {item!r}.", path=f"{path}.{key}", fix=fix)
    if getattr(teacher, "remembers", False):
        raise RecipeError(
            "has no effect in an ensemble.",
            path=f"{path}.cache",
            fix="Leave it out, put a capture stage before the training, or name a capture of it: {cache: FOLDER}.",
        )
    if not getattr(teacher, "batchwise", True):
        raise RecipeError(
            "is read block by block, and an ensemble asks batch by batch.",
            path=path,
            fix="Capture it in a recipe of its own, and name that here: {cache: FOLDER}.",
        )
    if hasattr(teacher, "members"):
        raise RecipeError("is an ensemble itself.", path=path, fix="List its teachers here.")
    if not teacher.provides - {"text"} or teacher.reads is None:
        raise RecipeError(
            "gives text alone, and an ensemble is made of distributions.",
            path=path,
            fix="Take it out, or train on its text without the others.",
        )
    rows = own.get("rows")
    if rows is not None and route is None:
        raise RecipeError("has no effect without teacher.route.", path=f"{path}.rows", fix="Name the column.")
    listed = rows if isinstance(rows, list | tuple) else [rows]
    name = own.get("name", teacher.name)
    if not isinstance(name, str) or not name:
        raise RecipeError(f"must be text, not {name!r}.", path=f"{path}.name")
    return Member(
        name,
        teacher,
        float(own.get("weight", 1.0)),
        float(own.get("temperature", 1.0)),
        None if rows is None else frozenset(map(str, listed)),
    )


def require_one_vocabulary(members: Sequence[Member]) -> None:
    """Refuse teachers that do not mean the same token by each id.

    Raises:
        VocabularyError: names two teachers and the first id on which they differ.
    """
    first, *others = members
    for other in others:
        result = overlap(first.teacher.reads.vocabulary, other.teacher.reads.vocabulary)
        if not result.whole:
            what = result.example or (
                f"{result.teacher_only} ids of {first.name} alone, {result.student_only} of {other.name} alone"
            )
            what = what.replace("the teacher", first.name).replace("the student", other.name)
            raise VocabularyError(
                f"the teachers {first.name} and {other.name} do not have one vocabulary: {what}.",
                fix="Average teachers of one tokenizer, or let each write text and train on that.",
            )


def require_weighable(members: Sequence[Member], weigh: str) -> None:
    """Refuse weights by token of teachers that give drawn ids: most tokens are not among them.

    Raises:
        RecipeError: names the first such teacher.
    """
    drawn = [member.name for member in members if not member.teacher.provides & WHOLE]
    if weigh != "fixed" and drawn:
        raise RecipeError(
            f"cannot be {weigh}: the teacher {drawn[0]} gives ids that were drawn, not what it says of every token.",
            path="teacher.weigh",
            fix="Set weigh: fixed, or capture its hidden states or likeliest ids (signal: hidden or topk).",
        )


def kind_of(members: Sequence[Member], combine: str) -> str:
    """The kind of signal that all of them give together.

    Raises:
        RecipeError: one gives drawn ids, whose average cannot be told from them.
    """
    for number, member in enumerate(members):
        if not member.teacher.provides & WHOLE:
            if "vector" in member.teacher.provides:
                raise RecipeError(
                    "gives the mean of a student's head (kl_vector), which no other teacher can join.",
                    path=f"teacher.ensemble.{number}",
                    fix="Capture it with signal: hidden or topk.",
                )
            if combine == "losses":
                return "sampled"
            raise RecipeError(
                "gives ids that were drawn, which cannot be averaged with what others say.",
                path=f"teacher.ensemble.{number}",
                fix="Set combine: losses, whose gradient is that of the averaged probabilities for forward KL.",
            )
    return "dense" if all("dense" in member.teacher.provides for member in members) else "topk"
