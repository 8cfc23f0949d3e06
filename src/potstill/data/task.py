"""What an answer has to be: read from its text, or refused with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any, Literal

from potstill.data.policies import CLOSE, OPEN, split_reasoning
from potstill.data.row import Row
from potstill.errors import DataError, RecipeError

Kind = Literal["json", "label", "number", "text"]
_SHOWN = 80  # characters of a value in a message
_FENCE = re.compile(r"\A```[\w-]*\s*\n.*\n```\Z", re.DOTALL)
_QUOTES = "\"'`*“”‘’"
_CURRENCY = "$€£¥"
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")  # the comma of 1,234,567


class NotValid(Exception):
    """Raised for a text that is no valid answer: a reason that is the same for all of its kind, and a detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Task:
    """What the recipe's `task` says, with its schema read.

    Args:
        answer_after: what precedes the answer in a text; all before it is rationale.
        rationale: the property of a JSON object that holds the rationale.
        alone: the answer is trained on without its rationale.
        constrain: the schema is sent to a served teacher.
        tolerance: by how much a number may differ from the right one.
    """

    type: Kind
    labels: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    gold: str | None = None
    answer_after: str | None = None
    rationale: str | None = None
    alone: bool = False
    constrain: bool = True
    tolerance: float = 0.0

    def read(self, text: str) -> Any:
        """The answer that a text holds: a JSON object, one of the labels, a Decimal or the text itself.

        Raises:
            NotValid: it holds none.
        """
        body = self._body(text)
        if not body:
            raise NotValid("empty answer")
        match self.type:
            case "json":
                return self._object(body)
            case "label":
                return self._label(body)
            case "number":
                return _number(body)
        return body

    def problem(self, text: str) -> str:
        """Why a text is no valid answer, "" where it is one."""
        try:
            self.read(text)
        except NotValid as error:
            return str(error)
        return ""

    def target(self, text: str) -> str:
        """What is trained on of a valid answer: its text, or the answer without its rationale in one form."""
        if not self.alone:
            return text
        answer = self.read(text)
        if self.type == "label":
            return str(answer)
        if self.rationale is None or self.type != "json":
            return self._body(text)
        return json.dumps({k: v for k, v in answer.items() if k != self.rationale}, ensure_ascii=False)

    def gold_of(self, row: Row) -> str:
        """The right answer in the row's gold column, "" where it holds none.

        Raises:
            DataError: it is no valid answer; names the row.
        """
        value = row.extra.get(self.gold or "")
        if value is None or value == "":
            return ""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if self.type == "json" and self.rationale is not None:
            return text  # a right answer need not be explained
        if problem := self.problem(text):
            raise DataError(
                f"the right answer in the column {self.gold!r} is {problem}.",
                path=row.where,
                fix="Repair the row, or task.",
            )
        return text

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The field of a request that has a server write nothing else; None where none is sent."""
        if self.type != "json" or not self.constrain:
            return None
        if self.schema is None:
            return {"type": "json_object"}
        schema = {key: value for key, value in self.schema.items() if key != "$schema"}
        about = {"name": "answer", "schema": schema, "strict": strict(schema)}
        return {"type": "json_schema", "json_schema": about}

    def ignores(self, text: str) -> str:
        """Why a text shows that a server which was sent the schema does not know it, "" where it does not: no object,
        or other properties than the schema's. What else a schema says, not every server heeds."""
        sent = self.response_format
        if not sent or not sent.get("json_schema", {}).get("strict"):
            return ""
        try:
            names = set(self._json(text.strip()))
        except NotValid as error:
            return str(error)
        wanted = set((self.schema or {}).get("properties", {}))
        return "" if names == wanted else f"it holds {', '.join(sorted(names)) or 'nothing'}"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about which texts are valid, right and trained on."""
        return {
            "type": self.type,
            "labels": self.labels,
            "schema": self.schema,
            "gold": self.gold,
            "answer_after": self.answer_after,
            "rationale": self.rationale,
            "alone": self.alone,
            "tolerance": self.tolerance,
        }

    def _body(self, text: str) -> str:
        """The answer without its rationale."""
        if OPEN in text and CLOSE not in text:
            raise NotValid("reasoning that never ends")
        _, answer = split_reasoning({"content": text})
        if self.answer_after:
            answer = answer.rpartition(self.answer_after)[2]
        return answer.strip()

    def _json(self, body: str) -> Any:
        if _FENCE.match(body):
            raise NotValid("JSON within a code fence")
        try:
            value = json.loads(body, parse_constant=_refuse, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise NotValid("no JSON", str(error)[:_SHOWN]) from None
        if not isinstance(value, dict):
            raise NotValid("no JSON object", type(value).__name__)
        return value

    def _object(self, body: str) -> Any:
        value = self._json(body)
        if self._validator is not None:
            error = next(iter(self._validator.iter_errors(value)), None)
            if error is not None:
                place = ".".join(map(str, error.absolute_path))
                raise NotValid(
                    "not what the schema says", f"{place}: {error.message}"[: 2 * _SHOWN].lstrip(": ")
                )
        return value

    @cached_property
    def _validator(self) -> Any:
        """The schema's validator. An answer that is trained on without its rationale need not hold one."""
        if self.schema is None:
            return None
        from jsonschema.validators import validator_for
        from referencing import Registry

        schema = dict(self.schema)
        if self.alone and self.rationale in schema.get("required", ()):
            schema["required"] = [name for name in schema["required"] if name != self.rationale]
        return validator_for(schema)(schema, registry=Registry())

    def _label(self, body: str) -> str:
        plain = body.strip(_QUOTES + " .\n\t").casefold()
        label = next((label for label in self.labels if label.casefold() == plain), None)
        if label is None:
            raise NotValid("none of the labels", repr(body[:_SHOWN]))
        return label


def read_schema(text: str) -> dict[str, Any]:
    """The JSON schema in a file's text.

    Raises:
        RecipeError: it is no JSON, no schema, or refers to what stands elsewhere.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    fix = "Write a JSON schema of an object: https://json-schema.org."
    try:
        schema = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"holds no JSON: {error}.", path="task.schema", fix=fix) from None
    if not isinstance(schema, dict):
        raise RecipeError("holds no schema of an object.", path="task.schema", fix=fix)
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        place = ".".join(map(str, error.absolute_path))
        raise RecipeError(
            f"is no JSON schema: {place}: {error.message}.", path="task.schema", fix=fix
        ) from None
    elsewhere = [ref for ref in _references(schema) if not ref.startswith("#")]
    if elsewhere:
        raise RecipeError(
            f"refers to {elsewhere[0]}, which is not read.",
            path="task.schema",
            fix="Write what it refers to into $defs, and refer to #/$defs/NAME.",
        )
    if schema.get("type", "object") != "object":
        message = f"describes {schema['type']!r}, and an answer is an object."
        raise RecipeError(message, path="task.schema", fix="Put it into an object with one property.")
    return schema


def strict(schema: Any) -> bool:
    """Whether every object in a schema allows its properties alone and requires all of them, which is what
    providers ask of a schema that they follow to the letter."""
    if isinstance(schema, list):
        return all(map(strict, schema))
    if not isinstance(schema, dict):
        return True
    if "properties" in schema or schema.get("type") == "object":
        names = set(schema.get("properties", {}))
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != names:
            return False
    return all(map(strict, schema.values()))


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [ref for item in schema for ref in _references(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    return own + [ref for item in schema.values() for ref in _references(item)]


def _number(body: str) -> Decimal:
    plain = body.strip(_QUOTES + " \n\t").rstrip(".").strip(_CURRENCY + "% ")
    sign, plain = ("-", plain[1:].lstrip(_CURRENCY)) if plain[:1] in "-−" else ("", plain)
    try:
        number = Decimal(sign + _GROUPED.sub("", plain))
    except InvalidOperation:
        raise NotValid("no number", repr(body[:_SHOWN])) from None
    if not number.is_finite() or "_" in plain:
        raise NotValid("no number", repr(body[:_SHOWN]))
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice")
    return result
