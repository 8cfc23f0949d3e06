"""What all stages of a recipe have in common, and how they are loaded: one file a verb in `potstill/stages`.

A stage's file holds a subclass of `StageSpec` (its verb and options) and the function
`run(spec, state, context) -> state`. Loading one imports no torch: what a stage needs to run is imported then.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Self, TypeAlias, TypeVar, Union

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from potstill.recipe.defaults import Automatic, Default, Facts
from potstill.recipe.inputs import DataSpec
from potstill.recipe.specs import Choice, Conflict, Spec
from potstill.recipe.verbs import verbs

# No dots: an override reaches a stage by `name.key`.
StageName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", examples=["polish"])]


class StageSpec(Spec):
    """The options of a stage, and what the rest of potstill asks of it.

    A stage states by class variables what it needs, so that nobody asks for it by name.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """What it asks of the teacher: "text" (it writes), "distribution", or "live" (it can be asked about any text)."""
    trains: ClassVar[bool] = False
    """Whether it changes the student, so that what it measures later can be refused before."""
    measures: ClassVar[bool] = False
    """Whether it measures on held-out rows."""
    from_untrained: ClassVar[bool] = False
    """Whether it starts from the untrained student, whatever was trained before it."""

    verb: str
    name: StageName
    """How overrides, folders and reports call this stage; the verb when not given."""

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        """A value and a reason for every option that is `auto`."""
        return {}

    def completed(
        self, stages: Sequence[StageSpec], resolved: Mapping[str, StageSpec]
    ) -> tuple[Self, tuple[Default, ...]]:
        """The stage with what it takes over from earlier ones: `stages` as written, `resolved` by name."""
        return self, ()

    def misplaced(self, before: Sequence[StageSpec]) -> Iterator[Conflict]:
        """What is wrong with its place behind the stages `before`."""
        yield from ()

    def rows(self, data: DataSpec) -> DataSpec | None:
        """Where its own training rows are, None when it trains on the recipe's."""
        return None

    @property
    def asks(self) -> frozenset[str]:
        """`needs`, and what its options ask of the teacher besides."""
        return self.needs

    @property
    def further_columns(self) -> tuple[str, ...]:
        """The columns of the recipe's rows that it reads besides what all stages read."""
        return ()

    @property
    def room(self) -> int:
        """Most tokens that the student writes behind a prompt, where it writes the answer of every row; else 0."""
        return 0

    def notes(self) -> Iterator[str]:
        """What is allowed and worth a line in `check`."""
        yield from ()


S = TypeVar("S", bound=StageSpec)


def room_of(stages: Sequence[StageSpec], with_rows: Collection[str]) -> int:
    """What a row without an answer leaves room for, where every stage that trains on the recipe's rows writes
    the answers; 0 where one of them needs answers. Those `with_rows` of their own read others.
    """
    return min((stage.room for stage in stages if stage.trains and stage.name not in with_rows), default=0)


@cache
def stage_types() -> Mapping[str, type[StageSpec]]:
    """The options of every stage by its verb."""
    return {verb: _spec_in(importlib.import_module(f"potstill.stages.{verb}"), verb) for verb in verbs()}


def _spec_in(module: Any, verb: str) -> type[StageSpec]:
    (spec,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, StageSpec) and value.__module__ == module.__name__
    )
    assert spec.model_fields["verb"].default == verb, f"stages/{verb}.py holds another verb"
    return spec


def run_of(stage: StageSpec) -> Callable[..., Any]:
    """The function `run(spec, state, context) -> state` beside a stage's options."""
    return importlib.import_module(type(stage).__module__).run


def _read_stage(value: object) -> object:
    """`verb` or `{verb: options}` as one mapping with the key `verb`."""
    if isinstance(value, str):
        return {"verb": value}
    if isinstance(value, dict) and len(value) == 1:
        verb, options = next(iter(value.items()))
        if options is None or (isinstance(options, dict) and "verb" not in options):
            return {"verb": verb, **(options or {})}
    if isinstance(value, StageSpec):
        return value
    raise PydanticCustomError(
        "stage", "must be a verb, or one verb with its options: `- distill: {epochs: 2}`."
    )


def write_stage(stage: StageSpec, **how: Any) -> str | dict[str, Any]:
    """The stage as a recipe writes it."""
    options = stage.model_dump(mode="json", by_alias=True, exclude={"verb"}, **how)
    return {stage.verb: options} if options else stage.verb


def any_stage() -> Any:
    """The type of an entry of `stages`: one of all stages by its verb."""
    union: Any = Union[tuple(stage_types().values())]  # noqa: UP007
    return Annotated[Annotated[union, Field(discriminator="verb")], BeforeValidator(_read_stage)]


def resolve_auto(stage: S, facts: Facts) -> tuple[S, tuple[Default, ...]]:
    """Replace every `auto` of a stage, and say what each became. What the recipe says stays."""
    return replaced(stage, stage.automatic(facts))


def replaced(stage: S, chosen: Mapping[str, Automatic]) -> tuple[S, tuple[Default, ...]]:
    """Put chosen values into a stage, with a line on each."""
    changed = stage.model_copy(update={key: value for key, (value, _) in chosen.items()})
    return changed, tuple(
        Default(
            f"stages.{stage.name}.{key}", value.model_dump() if isinstance(value, Choice) else value, source
        )
        for key, (value, source) in chosen.items()
    )
