"""The three inputs of a recipe: teacher, student and data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from potstill.recipe import plugins
from potstill.recipe.asked import Prompt, StudentChoice, TeacherChoice
from potstill.recipe.specs import (
    LARGEST,
    Auto,
    Choice,
    Conflict,
    Count,
    Files,
    Format,
    Int,
    Seed,
    Spec,
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

    def model_conflicts(self, model: str) -> Iterator[Conflict]:
        """What cannot be loaded of a model of this name."""
        local, revision = model.startswith(("/", "./", "../", "~")), self.revision or "open"
        if self.trust_remote_code and not local and not _COMMIT.fullmatch(revision):
            yield Conflict(
                "trust_remote_code",
                f"runs the model's own code, so the revision must be a full commit, not {revision}.",
                "Write revision: with the 40 hexadecimal digits of a commit you have read.",
            )
        if model.startswith("package:") and not _PACKAGED.fullmatch(model):
            message = f"{model!r} does not name a file inside a package."
            yield Conflict("model", message, "Write package:PACKAGE/FILE.gguf.")


class ModelSpec(Loading):
    """A model to load."""

    model: Text
    """Hub id, local folder, *.gguf file, or package:PACKAGE/FILE.gguf inside an installed package."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the loaded weights; a student is trained in float32."""
    cache: Auto | None = None
    """auto writes the signals of training rows to disk in the first epoch and reads them in the others; null asks
    the teacher in every epoch."""
    terms: str = ""
    """Under which terms its text is used, where its licence does not say it all; it is written down beside the text."""
    prompt: Prompt | None = None
    """Jinja file that writes what this model is asked, in place of the row's own words."""

    def conflicts(self) -> Iterator[Conflict]:
        return self.model_conflicts(self.model)

    @property
    def plugin(self) -> tuple[str, dict[str, Any]]:
        """The plug-in that it names, and its options."""
        return "local", self.model_dump(exclude={"prompt"})


class Cut(Spec):
    """Which of the teacher's layers the student keeps."""

    keep_layers: Count | None = None
    """How many layers; may be left out when `by` lists them."""
    by: (
        Literal["block_influence", "uniform"] | Annotated[tuple[Int, ...], Field(strict=False, min_length=1)]
    ) = "block_influence"
    """How they are chosen, or their indices, counted from 0."""

    def conflicts(self) -> Iterator[Conflict]:
        if isinstance(self.by, str):
            if self.keep_layers is None:
                yield Conflict("keep_layers", "is missing.", "Say how many layers the student keeps.")
            return
        if list(self.by) != sorted(set(self.by)):
            yield Conflict("by", "layers must stand once each, in rising order.", "Sort the list.")
        if self.keep_layers not in (None, len(self.by)):
            message = f"says {self.keep_layers}, and by lists {len(self.by)} layers."
            yield Conflict("keep_layers", message, "Leave keep_layers out.")


class StudentSpec(Loading):
    """The student: a model of its own, or one cut from the teacher."""

    model: Text | None = None
    """Hub id, local folder, *.gguf file, or package:PACKAGE/FILE.gguf, as for the teacher."""
    from_teacher: Cut | None = None
    """Cut the student from the teacher."""
    prompt: Prompt | None = None
    """Jinja file that writes what this model is asked, in training and measured alike."""

    def conflicts(self) -> Iterator[Conflict]:
        if (self.model is None) == (self.from_teacher is None):
            yield Conflict("", "needs exactly one of model and from_teacher.", "Keep one of the two.")
        elif self.from_teacher and (self.revision or self.trust_remote_code):
            key = "revision" if self.revision else "trust_remote_code"
            yield Conflict(key, "has no effect beside from_teacher.", "Write it under teacher.")
        elif self.model is not None:
            yield from self.model_conflicts(self.model)

    @property
    def plugin(self) -> tuple[str, dict[str, Any]]:
        """The plug-in that it names, and its options."""
        if self.from_teacher is not None:
            return "depth", self.from_teacher.model_dump()
        return "model", self.model_dump(exclude={"from_teacher", "prompt"})


# Tags of the two ways to write a teacher or student. They are no keys, so that no error names them as its place.
_MODEL, _PLUGIN = Tag("a model"), Tag("a plug-in")


def _tag(value: object) -> str:
    """Which of the two a value is: a plug-in stands there by its name, or as `{name: options}`."""
    single = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else None
    name = single[0] if single else value
    plugin = isinstance(value, Choice) or (isinstance(name, str) and plugins.is_outside(name))
    if single and isinstance(single[1], Mapping):
        plugin = plugin or name in (*plugins.plugins("teachers"), *plugins.plugins("students"))
    return (_PLUGIN if plugin else _MODEL).tag


def _by_options(value: object) -> object:
    """Read `{option: value, …}` as the teacher whose required options these are; a model stays as it is."""
    if not isinstance(value, Mapping) or _tag(value) == _PLUGIN.tag:
        return value
    name = plugins.requiring("teachers", value)
    if name is None:  # one whose key is there, and another is missing: its own error says which
        meant = {
            plugin
            for key, plugins_of_it in plugins.requirements("teachers").items()
            if key in value and key not in ModelSpec.model_fields
            for plugin in plugins_of_it
        }
        name = meant.pop() if len(meant) == 1 else None
    return value if name in (None, "local") else {name: value}


_EITHER = Discriminator(_tag)
TeacherInput: TypeAlias = Annotated[
    Annotated[Annotated[ModelSpec, _MODEL] | Annotated[TeacherChoice, _PLUGIN], _EITHER],
    BeforeValidator(_by_options),
]


class TeacherHolder(Spec):
    """A teacher by itself, as the members of an ensemble are written."""

    teacher: TeacherInput


StudentInput: TypeAlias = Annotated[
    Annotated[StudentSpec, _MODEL] | Annotated[StudentChoice, _PLUGIN], _EITHER
]


class Template(Spec):
    """The chat template, when it is not the tokenizer's own."""

    file: Text | None = None
    """A Jinja file."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables handed to the template, such as enable_thinking."""


class MixPart(Spec):
    """A source of training rows, and its share."""

    source: Text
    """teacher_generated for the teacher's answers to the rows of `train`; else a file, folder or hub data set."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Of all that is trained on."""
    format: Format = "auto"
    """How a row of a file is written."""
    columns: dict[str, Text] = Field(default_factory=dict)
    """Own column name of a file: the name that the format wants, or `unused`."""
    terms: str = ""
    """Under which terms a file is used; it stands in the summary and the report."""


class DataSpec(Spec):
    """The rows to train on and the rows to measure on."""

    train: Files
    """Files, folders, FOLDER:SPLIT or hub data sets: one or several."""
    heldout: Files | None = None
    """Rows to measure on; without it they are split off by prompt before anything is generated."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] | Auto = "auto"
    """Share of prompts to split off; auto is 10 %, between 60 and 500 rows, and a third at most."""
    format: Format = "auto"
    """How a row is written."""
    columns: dict[str, Text] = Field(default_factory=dict)
    """Own column name: the name that the format wants, or `unused` for a column that is left out."""
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
    max_length: Annotated[int, Field(ge=2, le=LARGEST), BeforeValidator(whole)] | Auto = "auto"
    """Most tokens in a row, prompt and answer together."""
    limit: Count | None = None
    """Use only so many rows of `train`; what is split off to choose and measure by comes out of them."""
    mix: Annotated[tuple[MixPart, ...], Field(strict=False)] | None = None
    """What every stage trains on that brings no rows of its own: sources and their shares; null is all rows of `train`,
    with the teacher's answers once they are written."""
    mix_by: Literal["rows", "tokens"] = "rows"
    """What shares are counted in: rows, exactly, or scored tokens, to one row."""
    mix_total: Count | None = None
    """Rows or tokens in all; null is as many as the shares allow."""
    terms: str = ""
    """Under which terms the rows of `train` are used; it stands in the summary and the report."""
    seed: Seed = 0
    """Splits rows, draws the teacher's answers and resamples prompts; the recipe's own `seed` trains, so that
    a study over seeds keeps its data and its yardstick."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.heldout is not None and self.heldout_fraction != "auto":
            message = "has no effect beside heldout, which names the rows already."
            yield Conflict("heldout_fraction", message, "Remove one of the two.")
        if self.mix is None:
            for key in ("mix_by", "mix_total"):
                if self.changed(key):
                    yield Conflict(key, "has no effect without mix.", "Name sources and shares in mix.")
            return
        total = sum(Fraction(repr(part.share)) for part in self.mix)
        if total != 1:
            shares = " + ".join(f"{part.share:g}" for part in self.mix) or "nothing"
            yield Conflict("mix", f"shares are {shares} = {float(total):g}, not 1.", "Let them add up to 1.")
        sources = [part.source for part in self.mix]
        if twice := sorted({source for source in sources if sources.count(source) > 1}):
            yield Conflict("mix", f"{twice[0]} is named twice.", "Add its shares up.")
