"""The recipe: a frozen value that is read once, checked whole, and hashed."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, field_serializer

from potstill.errors import RecipeError, RecipeErrors
from potstill.recipe import yaml
from potstill.recipe.devices import DevicesSpec
from potstill.recipe.inputs import DataSpec, StudentInput, TeacherInput
from potstill.recipe.methods import method_for, stages_of
from potstill.recipe.options import one_key
from potstill.recipe.overrides import apply
from potstill.recipe.problems import describe
from potstill.recipe.specs import Conflict, Seed, Spec, Text, TrackerChoice
from potstill.recipe.stages import StageSpec, any_stage, stage_types, write_stage
from potstill.recipe.task import CostsSpec, TaskSpec
from potstill.recipe.words import one

if TYPE_CHECKING:
    Stage: TypeAlias = StageSpec
else:
    Stage = any_stage()

_HALF = re.compile("[\ud800-\udfff]")  # one half of a surrogate pair, which UTF-8 cannot hold
FolderName: TypeAlias = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", examples=["pilot"])
]
Trackers: TypeAlias = Annotated[
    tuple[TrackerChoice, ...],
    Field(strict=False),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str | dict) else value,
        json_schema_input_type=TrackerChoice | list[TrackerChoice],
    ),
]


class Recipe(Spec):
    """Who teaches whom, on what, in which stages."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    name: FolderName = "recipe"
    """Names the run folders; the recipe's file name when not given."""
    seed: Seed = 0
    """Every draw in training follows from it; data.seed splits rows and writes answers. Below 2^63."""
    teacher: TeacherInput
    student: StudentInput
    data: DataSpec
    task: TaskSpec | None = None
    """What the answers have to be, where they have to be something."""
    costs: CostsSpec = CostsSpec()
    """Prices, for what the report says of costs; no part of a result."""
    method: (
        Literal[
            "kd",
            "seqkd",
            "sft",
            "gkd",
            "minillm",
            "distillm",
            "distillm2",
            "opd",
            "speculative_kd",
            "self_distill",
        ]
        | None
    ) = None
    """A published method by name, in place of stages."""
    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = ()
    """What to do, in order; without stages and method: generate, distill, evaluate; finetune in place of distill where
    the teacher gives text alone."""
    devices: DevicesSpec = DevicesSpec()
    """How many processes work, and what each holds; no part of a result."""
    trackers: Trackers = ()
    """Who receives steps, validations and final figures beside the run's own files; none by default."""
    runs: Text = "runs"
    """Folder for run folders, relative to the working directory."""

    @field_serializer("stages")
    def _write_stages(self, stages: tuple[Stage, ...]) -> list[Any]:
        return [write_stage(stage) for stage in stages]

    def conflicts(self) -> Iterator[Conflict]:
        if self.method and self.stages:
            message = "stages are given too, and both say what to do."
            yield Conflict("method", message, "Remove one of the two.")
        if "://" in self.runs:
            yield Conflict(
                "runs",
                "must be a folder: a run appends to files, locks and syncs them, which stores behind URLs do not.",
                "Name a folder, and copy what a capture left to the URL: teacher: {cache: URL} reads it there.",
            )
        counts = Counter(stage.name for stage in self.stages)
        for name in sorted(name for name in counts if counts[name] > 1):
            fix = f"Give each a name of its own, as in `- {name}: {{name: polish}}`."
            yield Conflict("stages", f"{counts[name]} stages are called {name}.", fix)
        names = [tracker.name for tracker in self.trackers]
        if len(set(names)) < len(names):
            yield Conflict("trackers", "names a tracker twice.", "Name each once.")
        longest = self.data.max_length
        for index, stage in enumerate(self.stages):
            if stage.name in Recipe.model_fields or stage.name in set(stage_types()) - {stage.verb}:
                message = f"{one(stage.verb)} stage cannot be called {stage.name}."
                yield Conflict("stages", message, "Choose another name.")
            yield from stage.misplaced(self.stages[:index])
            tokens = getattr(stage, "max_new_tokens", "auto")
            if isinstance(longest, int) and isinstance(tokens, int) and tokens >= longest:
                message = (
                    f"{longest} leaves no room for a prompt beside {stage.name}.max_new_tokens {tokens}."
                )
                yield Conflict("data.max_length", message, "Raise max_length, or lower max_new_tokens.")

    def hash(self) -> str:
        """SHA-256 of the content; `runs`, `devices`, `trackers`, `costs`, comments, key order and spelled-out defaults do not matter."""
        content = self.model_dump(
            mode="json", by_alias=True, exclude={"runs", "devices", "trackers", "costs"}
        )
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe in a file, with `key.path=value` overrides.

    Raises:
        RecipeErrors: lists everything wrong at once.
        RecipeError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason, fix = "it is not UTF-8 text", "Save it as UTF-8, or name another file."
        if isinstance(error, OSError):
            reason, fix = error.strerror or str(error), "Check the path."
        message = f"the recipe cannot be read: {reason}."
        raise RecipeError(message, fix=fix, path=str(path)) from error
    raw = yaml.load_yaml(text, str(path))
    if raw.get("name") is None:
        raw["name"] = name_of(path)
    return parse_recipe(apply(raw, overrides, tuple(Recipe.model_fields)))


def name_of(path: Path) -> str:
    """What a recipe is called that does not say so: its file's name, as far as it can name a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:100] or "recipe"


def parse_recipe(raw: Mapping[str, Any]) -> Recipe:
    """Check a recipe as YAML gives it. Raises RecipeErrors with every problem."""
    if broken := [text for text in _texts(raw) if _HALF.search(text)]:
        raise RecipeErrors(
            [RecipeError(f"{text!r} holds half a character.", fix="Write it in UTF-8.") for text in broken]
        )
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeErrors(describe(error, raw, Recipe)) from None


def _texts(raw: Any) -> list[str]:
    """Every text in a recipe, its keys too."""
    texts, left = list[str](), [raw]
    while left:
        value = left.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            left += value
    return texts


def expand(recipe: Recipe) -> Recipe:
    """Write out the stages of the recipe's method; a recipe with stages is returned as it is."""
    if recipe.stages:
        return recipe
    stages = TypeAdapter(tuple[Stage, ...]).validate_python(
        tuple(stages_of(recipe.method or method_for(recipe.teacher)))
    )
    return recipe.model_copy(update={"stages": stages, "method": None})


def dump_yaml(recipe: Recipe) -> str:
    """The recipe as YAML without what is default anyway; reads back to an equal recipe."""
    content = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"stages"})
    content = {"version": recipe.version, "name": recipe.name, "seed": recipe.seed} | content
    if recipe.stages:
        content["stages"] = [write_stage(stage, exclude_defaults=True) for stage in recipe.stages]
    return yaml.to_yaml(content)


def resolve_path(base: Path, text: str) -> Path:
    """Where a path in a recipe points: from `base`, the recipe's folder, unless it exists only in the working
    directory."""
    path = Path(text).expanduser()
    beside = base / path
    return path.absolute() if not beside.exists() and path.exists() else beside


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, plug-ins and their options included."""
    schema = Recipe.model_json_schema()
    items = schema["properties"]["stages"]["items"]
    verbs = items["discriminator"]["mapping"]
    for reference in verbs.values():
        del schema["$defs"][reference.rpartition("/")[2]]["properties"]["verb"]
    with_options = {verb: {"anyOf": [{"$ref": place}, {"type": "null"}]} for verb, place in verbs.items()}
    schema["properties"]["stages"]["items"] = {"anyOf": [{"enum": list(verbs)}, one_key(with_options)]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
