"""What every part of a recipe is made of: checked numbers and texts, schedules, plug-in names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from potstill.recipe import plugins


class Conflict(NamedTuple):
    """Values that cannot stand together: at which key, what is wrong, and the way out."""

    key: str
    message: str
    fix: str
    value: object = None


class Spec(BaseModel):
    """Frozen, no unknown keys, no text where a number belongs, no NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Values that are fine alone and contradict each other."""
        yield from ()

    def changed(self, key: str) -> bool:
        """Whether a value is not the default."""
        default = type(self).model_fields[key].get_default(call_default_factory=True)
        return bool(getattr(self, key) != default)

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        conflicts = tuple(self.conflicts())
        if conflicts:
            text = " ".join(f"{key}: {message} {fix}" for key, message, fix, _ in conflicts)
            raise PydanticCustomError("conflicts", "{text}", {"text": text, "conflicts": conflicts})
        return self


def whole(value: object) -> object:
    """1e5 is a whole number, however it is spelled."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Auto: TypeAlias = Literal["auto"]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
LARGEST = 2**63 - 1  # of whole numbers; libraries hold them in 64 bits
Int: TypeAlias = Annotated[int, Field(ge=0, le=LARGEST), BeforeValidator(whole)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(whole)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=LARGEST), BeforeValidator(whole)]
Duration: TypeAlias = Annotated[
    str,
    Field(min_length=2, pattern=r"^(\d{1,4}h)?(\d{1,4}m)?(\d{1,4}s)?$", examples=["90s", "1h30m"]),
]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Files: TypeAlias = Annotated[
    tuple[Text, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(_listed, json_schema_input_type=Text | Annotated[list[Text], Field(min_length=1)]),
]
Format: TypeAlias = Literal["auto", "messages", "prompt", "question", "text", "sharegpt", "alpaca"]


def seconds_of(duration: str) -> int:
    """The seconds of a duration as recipes write it: `90s`, `5m`, `1h30m`."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


class Span(Spec):
    """Two ends of a schedule."""

    start: float = Field(alias="from")
    """The value at the first step."""
    end: float = Field(alias="to")
    """The value at the last step."""


class Schedule(Spec):
    """A value that moves over the stage: `{linear: {from: 4, to: 1}}` or `{cosine: ...}`."""

    linear: Span | None = None
    cosine: Span | None = None

    @property
    def span(self) -> Span:
        """The two ends, whatever the shape."""
        span = self.linear or self.cosine
        assert span is not None
        return span

    def conflicts(self) -> Iterator[Conflict]:
        if (self.linear is None) == (self.cosine is None):
            yield Conflict("", "a schedule is either linear or cosine.", "Write one of the two.")


def value_at(value: Any, fraction: float) -> Any:
    """The value, of a schedule when `fraction` of the stage is done, 0 at the first step and 1 at the last."""
    if not isinstance(value, Schedule):
        return value
    left = 1 - fraction if value.linear else (1 + math.cos(math.pi * fraction)) / 2
    return value.span.start * left + value.span.end * (1 - left)


def ends(value: Any) -> tuple[Any, Any]:
    """The values at the first and the last step."""
    return (value.span.start, value.span.end) if isinstance(value, Schedule) else (value, value)


class Choice(Spec):
    """A plug-in by name, or `{name: {option: value}}`; its options are checked against its signature."""

    family: ClassVar[str]
    name: Text
    options: dict[str, Any] = Field(default_factory=dict)

    def __init_subclass__(cls, family: str, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.family = family

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1:
            ((name, options),) = value.items()
            if options is None or isinstance(options, dict):
                return {"name": name, "options": options or {}}
        if isinstance(value, Choice) or (isinstance(value, dict) and "name" in value):
            return value
        raise PydanticCustomError(
            "plugin", "must be a name, or one name with its options in a mapping: {name: {option: value}}."
        )

    @model_serializer
    def _write(self) -> str | dict[str, Any]:
        return {self.name: self.options} if self.options else self.name

    def conflicts(self) -> Iterator[Conflict]:
        for problem in plugins.check_options(self.family, self.name, self.options, ""):
            yield Conflict(problem.path.lstrip("."), problem.message, problem.fix, problem.value)

    @property
    def plugin(self) -> tuple[str, dict[str, Any]]:
        """The plug-in that it names, and its options."""
        return self.name, self.options

    def constant(self, name: str) -> Any:
        """What the plug-in's file states under an upper-case name, None where it states nothing."""
        return plugins.find(self.family, self.name).constants.get(name)

    def option_named(self, constant: str) -> Any:
        """The value of the option whose name the plug-in states under `constant`, None where it states none."""
        signature = plugins.find(self.family, self.name)
        defaults = {option.name: option.default for option in signature.options}
        name = signature.constants.get(constant)
        return None if name is None else self.options.get(name, defaults.get(name))

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: Any, _handler: Any) -> dict[str, Any]:
        return plugins.schema(cls.family)


class DivergenceChoice(Choice, family="divergences"):
    """A divergence, with the options of its paper."""


class TokenWeightChoice(Choice, family="token_weights"):
    """What makes some tokens weigh more than others."""


class StrategyChoice(Choice, family="strategies"):
    """Who writes the text that is trained on: the data, or the student itself."""

    @property
    def student_writes(self) -> bool:
        """Whether the student may write any of it."""
        return bool(self.option_named("STUDENT_WRITES") or self.option_named("STUDENT_WRITES_MORE"))

    @property
    def teacher_share(self) -> float:
        """The teacher's share in the mixture that the student's text is drawn from: its option of this name."""
        return float(self.option("teacher_share") or 0.0)

    @property
    def proposes(self) -> bool:
        """Whether the teacher replaces tokens that it finds unlikely, so that no mixture wrote the text."""
        return bool(self.option("proposals"))

    def option(self, name: str) -> Any:
        """The value of an option by its name, its default where it is left out; None where there is none."""
        defaults = {option.name: option.default for option in plugins.find(self.family, self.name).options}
        return self.options.get(name, defaults.get(name))


class FilterChoice(Choice, family="filters"):
    """What an answer must not be, to be trained on."""


class VerifierChoice(Choice, family="verifiers"):
    """Who says whether an answer is right."""


class EngineChoice(Choice, family="generate"):
    """What runs the teacher when it writes text."""


class MetricChoice(Choice, family="evaluate"):
    """A quantity that is measured on held-out rows."""


class TrackerChoice(Choice, family="trackers"):
    """Where steps, validations and figures are sent beside the run's own files."""
