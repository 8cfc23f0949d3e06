"""What a model is asked in place of a row's own words, also where a plug-in names the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, model_serializer, model_validator

from potstill.recipe import plugins
from potstill.recipe.specs import Choice, Conflict, Spec, Text


class PromptSpec(Spec):
    """Jinja files that write what a model is asked; a file alone writes the last turn of the user."""

    user: Text | None = None
    """File that writes the last turn of the user; it is given `prompt`, `system`, `messages` and the row's columns."""
    system: Text | None = None
    """File that writes the system prompt, in place of the row's own."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.user is None and self.system is None:
            yield Conflict("", "names no file.", "Write prompt: short.j2.")


def _alone(value: Any) -> Any:
    return {"user": value} if isinstance(value, str) else value


Prompt: TypeAlias = Annotated[PromptSpec, BeforeValidator(_alone, json_schema_input_type=Text | PromptSpec)]


class Prompted(Choice, family=""):
    """A plug-in that may be asked in other words than the row's: `prompt` stands beside its own options."""

    prompt: Prompt | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_prompt(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) == 1:
            ((name, options),) = value.items()
            if isinstance(options, dict) and "prompt" in options:
                own = {key: option for key, option in options.items() if key != "prompt"}
                return {"name": name, "options": own, "prompt": options["prompt"]}
        return value

    @model_serializer
    def _write(self) -> str | dict[str, Any]:
        prompt = {} if self.prompt is None else {"prompt": self.prompt.model_dump(exclude_none=True)}
        options = self.options | prompt
        return {self.name: options} if options else self.name

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: Any, _handler: Any) -> dict[str, Any]:
        keys = {"user": {"type": "string"}, "system": {"type": "string"}}
        files = {"type": "object", "properties": keys, "additionalProperties": False}
        prompt = {"anyOf": [{"type": "string"}, files, {"type": "null"}]}
        return plugins.schema(cls.family, beside={"prompt": prompt})


class TeacherChoice(Prompted, family="teachers"):
    """A teacher of another kind than a model whose weights are loaded here."""


class StudentChoice(Prompted, family="students"):
    """A student of another kind than a model or a cut of the teacher."""
