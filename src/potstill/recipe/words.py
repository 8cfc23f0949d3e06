"""What a value of a recipe may be, in words: read from its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from potstill.recipe.specs import LARGEST

REFERENCE = "#/$defs/"
# What stands for a part of the schema that has a page of its own.
SHAPES = {
    "Schedule": "a schedule such as {linear: {from: 4, to: 1}}",
    "DivergenceChoice": "a name among divergences",
    "EngineChoice": "a name among engines",
    "FilterChoice": "a name among filters",
    "MetricChoice": "a name among metrics",
    "StrategyChoice": "a name among strategies",
    "TrackerChoice": "a name among trackers",
    "TokenWeightChoice": "a name among token_weights",
    "TeacherChoice": "package.module:function",
    "StudentChoice": "package.module:function",
    "VerifierChoice": "a name among verifiers",
}
_KINDS = {"boolean": "true or false", "null": "null", "string": "text", "object": "a mapping"}


def one(noun: str) -> str:
    """A noun behind its article."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def words(schema: Mapping[str, Any]) -> str:
    """What fits a schema, alternatives joined by "or"."""
    return " or ".join(dict.fromkeys(_alternatives(schema)))


def _alternatives(schema: Mapping[str, Any]) -> Iterator[str]:
    for one in schema.get("anyOf", schema.get("oneOf", ())):
        yield from _alternatives(one)
    if "$ref" in schema:
        yield SHAPES.get(schema["$ref"].removeprefix(REFERENCE), "a mapping")
    elif "enum" in schema or "const" in schema:
        yield from map(str, schema.get("enum") or [schema["const"]])
    elif schema.get("type") in ("integer", "number"):
        yield ("a whole number" if schema["type"] == "integer" else "a number") + _range(schema)
    elif schema.get("type") == "array":
        yield _list(schema)
    elif "examples" in schema:
        yield f"text such as {' or '.join(schema['examples'])}"
    elif "type" in schema:
        yield _KINDS[schema["type"]]


def _list(schema: Mapping[str, Any]) -> str:
    parts = schema.get("prefixItems")
    if parts:
        return f"a list of {len(parts)}, each {words(parts[0])}"
    return f"a list, each {words(schema['items'])}"


def _range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    parts = [
        "" if low is None else f" from {low:,}",
        "" if above is None else f" above {above:,}",
        "" if high is None or high == LARGEST else f" to {high:,}",
        "" if below is None else f" below {below:,}",
    ]
    return "".join(parts)
