"""The three inputs of a recipe: teacher, student and data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from potstill.recipe import plugins
from potstill.recipe.specs import (
    Auto,
    Choice,
    Conflict,
    Count,
    Files,
    Format,
    Int,
    Spec,
    StudentChoice,
    TeacherChoice,
    Text,
    whole,
)

_PACKAGED = re.compile(r"package:[\w.-]+/.+\.gguf")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Loading(Spec):
    """How a model is loaded."""

    revision: Text | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that the model brings along; needs a pinned commit."""


class ModelSpec(Loading):
    """A model to load."""

    model: Text
    """Hub id, local folder, *.gguf file, or package:PACKAGE/FILE.gguf inside an installed package."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the loaded weights; a student is trained in float32."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from _model_conflicts(self.model, self.revision, self.trust_remote_code)

    @property
    def plugin(self) -> tuple[str, dict[str, Any]]:
        """The plug-in that it names, and its options."""
        return "local", self.model_dump()


class Cut(Spec):
    """Which of the teacher's layers the student keeps."""

    keep_layers: Count | None = None
    """How many layers; may be left out when `by` lists them."""
    by: (
        Literal["block_influence", "uniform"] | Annotated[tuple[Int, ...], Field(strict=False, min_length=1)]
    ) = "block_influence"
    """How they are chosen, or their indices, counted from 0."""

    @property
    def count(self) -> int:
        """How many layers are kept."""
        return self.keep_layers or len(self.by)

    def conflicts(self) -> Iterator[Conflict]:
        if isinstance(self.by, str):
            if self.keep_layers is None:
                yield Conflict("keep_layers", "is missing.", "Say how many layers the student keeps.")
            return
        if list(self.by) != sorted(set(self.by)):
            yield Conflict("by", "layers must stand once each, in rising order.", "Sort the list.")
        if self.keep_layers not in (None, len(self.by)):
            yield Conflict(
                "keep_layers",
                f"says {self.keep_layers}, and by lists {len(self.by)} layers.",
                "Leave keep_layers out.",
            )


class StudentSpec(Loading):
    """The student: a model of its own, or one cut from the teacher."""

    @property
    def plugin(self) -> tuple[str, dict[str, Any]]:
        """The plug-in that it names, and its options."""
        if self.from_teacher is not None:
            return "depth", self.from_teacher.model_dump()
        return "model", self.model_dump(exclude={"from_teacher"})

    model: Text | None = None
    """As for the teacher."""
    from_teacher: Cut | None = None
    """Cut the student from the teacher."""

    def conflicts(self) -> Iterator[Conflict]:
        if (self.model is None) == (self.from_teacher is None):
            yield Conflict("", "needs exactly one of model and from_teacher.", "Keep one of the two.")
        elif self.from_teacher and (self.revision or self.trust_remote_code):
            key = "revision" if self.revision else "trust_remote_code"
            yield Conflict(key, "has no effect beside from_teacher.", "Write it under teacher.")
        elif self.model is not None:
            yield from _model_conflicts(self.model, self.revision, self.trust_remote_code)


def _model_conflicts(model: str, revision: str | None, trusted: bool) -> Iterator[Conflict]:
    local = model.startswith(("/", "./", "../", "~"))
    if trusted and not local and not _COMMIT.fullmatch(revision or ""):
        yield Conflict(
            "trust_remote_code",
            f"runs the model's own code, so the revision must be a full commit, not {revision or 'open'}.",
            "Write revision: with the 40 hexadecimal digits of a commit you have read.",
        )
    if model.startswith("package:") and not _PACKAGED.fullmatch(model):
        yield Conflict(
            "model",
            f"{model!r} does not name a file inside a package.",
            "Write package:PACKAGE/FILE.gguf.",
        )


def _is_plugin(value: object) -> str:
    """Whether a teacher or student is written as a plug-in: by its name, or as `{name: options}`."""
    named = isinstance(value, Choice) or (isinstance(value, str) and plugins.is_outside(value))
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, options),) = value.items()
        inside = isinstance(options, Mapping) and {*plugins.plugins("teachers"), *plugins.plugins("students")}
        named = plugins.is_outside(str(name)) or bool(inside and name in inside)
    return "a plug-in" if named else "a model"


def _by_options(value: object) -> object:
    """Read `{option: value, …}` as the teacher whose required options these are; a model stays as it is."""
    name = plugins.requiring("teachers", value) if isinstance(value, Mapping) else None
    return value if name in (None, "local") else {name: value}


# The tags cannot be keys of a recipe, so that no error names them as its place.
TeacherInput: TypeAlias = Annotated[
    Annotated[
        Annotated[ModelSpec, Tag("a model")] | Annotated[TeacherChoice, Tag("a plug-in")],
        Discriminator(_is_plugin),
    ],
    BeforeValidator(_by_options),
]
StudentInput: TypeAlias = Annotated[
    Annotated[StudentSpec, Tag("a model")] | Annotated[StudentChoice, Tag("a plug-in")],
    Discriminator(_is_plugin),
]


class Template(Spec):
    """The chat template, when it is not the tokenizer's own."""

    file: Text | None = None
    """A Jinja file."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables handed to the template, such as enable_thinking."""


class DataSpec(Spec):
    """The rows to train on and the rows to measure on."""

    train: Files
    """One file or several."""
    heldout: Files | None = None
    """Rows to measure on; without it they are split off by prompt before anything is generated."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] | Auto = "auto"
    """Share of prompts to split off; auto is 10 %, between 60 and 500 rows."""
    format: Format = "auto"
    """How a row is written."""
    columns: dict[str, Text] = Field(default_factory=dict)
    """Own column name: the name that the format wants."""
    weight: Text | None = None
    """Column whose number weighs every token of its row; a step divides by the weights' sum."""
    template: Template | None = None
    """The chat template, when it is not the tokenizer's own."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a row that cannot be used; skipped rows are counted."""
    system: Literal["keep", "merge", "drop"] = "keep"
    """System prompts: keep them, merge them into the first user turn, or drop them."""
    reasoning: Literal["keep", "strip", "separate"] = "keep"
    """Reasoning before an answer."""
    max_length: Annotated[int, Field(ge=2), BeforeValidator(whole)] | Auto = "auto"
    """Most tokens in a row, prompt and answer together."""
    limit: Count | None = None
    """Use only so many rows of `train`; what is split off to choose and measure by comes out of them."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.heldout is not None and self.heldout_fraction != "auto":
            yield Conflict(
                "heldout_fraction",
                "has no effect beside heldout, which names the rows already.",
                "Remove one of the two.",
            )
