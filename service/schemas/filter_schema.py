"""What a filter looks like, as JSON Schema. What it means and what is accepted, `indexer.filters` says.

Not sayable here, and refused all the same: more than 100 conditions or 8 levels.
"""

from __future__ import annotations

from typing import Any

from indexer.filters import MAX_TEXT_LENGTH, MAX_VALUES


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


FILTER_REFERENCE = _reference("Filter")

_KEYS = r'^metadata(\.[^."\\\x00-\x1f]+)+$'

_TEXT: dict[str, Any] = {"type": "string", "maxLength": MAX_TEXT_LENGTH, "pattern": r"^[^\x00]*$"}
_NUMBER: dict[str, Any] = {"type": "number"}
_TIME: dict[str, Any] = {
    "anyOf": [_NUMBER, {"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]
}
_NULL: dict[str, Any] = {"type": "null"}
_SCALAR: dict[str, Any] = {"anyOf": [_TEXT, _NUMBER, {"type": "boolean"}, _NULL]}


def _one(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": False,
    }


def _range(bound: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict.fromkeys(("gt", "gte", "lt", "lte"), bound),
        "minProperties": 1,
        "additionalProperties": False,
    }


def _condition(value: dict[str, Any], listed: dict[str, Any], *bounds: dict[str, Any]) -> dict[str, Any]:
    return {
        "anyOf": [
            value,
            _one("eq", value),
            _one("in", {"type": "array", "items": listed, "minItems": 1, "maxItems": MAX_VALUES}),
            _one("exists", {"type": "boolean"}),
            *map(_range, bounds),
        ]
    }


def _column(value: dict[str, Any]) -> dict[str, Any]:
    return _condition({"anyOf": [value, _NULL]}, value, value)


FILTER_SCHEMAS: dict[str, dict[str, Any]] = {
    "Filter": {
        "type": "object",
        "description": "Conditions on fields, all of which must hold; joined by and, or, not.",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            "id": _reference("TextCondition"),
            "title": _reference("TextCondition"),
            "content_sha256": _reference("TextCondition"),
            "duration_seconds": _reference("NumberCondition"),
            "added_at": _reference("TimeCondition"),
            "and": {"type": "array", "items": FILTER_REFERENCE, "minItems": 1},
            "or": {"type": "array", "items": FILTER_REFERENCE, "minItems": 1},
            "not": FILTER_REFERENCE,
        },
        "patternProperties": {_KEYS: _reference("MetadataCondition")},
    },
    "TextCondition": _column(_TEXT),
    "NumberCondition": _column(_NUMBER),
    "TimeCondition": _column(_TIME),
    "MetadataCondition": _condition(_SCALAR, _SCALAR, _NUMBER, _TEXT),
}
"""By the name of the component of the OpenAPI document."""
