"""Which videos a search may find: conditions on what the catalog knows of them, as JSON, turned into SQL.

    filter    = {field: condition, ...}  all of them hold
              | {"and": [filter, ...]} | {"or": [filter, ...]} | {"not": filter}
    field     = "id" | "title" | "duration_seconds" | "added_at" | "content_sha256" (64 lower-case hex digits)
              | "metadata.KEY" | "metadata.KEY.KEY" ...
    condition = value                                  the same as {"eq": value}
              | {"eq": value} | {"in": [value, ...]} | {"exists": true | false}
              | {"gt" | "gte" | "lt" | "lte": bound, ...}  all of them hold

A condition on a metadata field that holds a list is true where one element fulfils it. Nothing equals, and
nothing lies within a range, where the field is absent or of another type: 3 is not "3".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from indexer.errors import InvalidQueryError

MAX_DEPTH: Final = 8
MAX_CONDITIONS: Final = 100
MAX_VALUES: Final = 1_000
MAX_TEXT_LENGTH: Final = 1_000

_COLUMNS: Final = {
    "id": str,
    "title": str,
    "duration_seconds": float,
    "added_at": float,
    "content_sha256": str,
}
_RANGES: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_KEY: Final = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
"""What SQLite's JSON paths take between quotation marks; no lone surrogate, which UTF-8 has no place for."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Filter:
    """A condition on rows of the table `videos`: SQL that is 1 or 0, never NULL, and the values it binds.

    Equal filters have equal fields.
    """

    sql: str
    values: tuple[str | int | float, ...]


def parse_filter(value: object) -> Filter:
    """The filter that this JSON value says.

    Raises InvalidQueryError, which names the place, where it says none, or more than MAX_CONDITIONS
    conditions, MAX_DEPTH levels or MAX_VALUES values of one `in`.
    """
    return _Parser().filter(value, "filter", 0)


class _Parser:
    def __init__(self) -> None:
        self._num_conditions = 0

    def filter(self, value: object, place: str, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise InvalidQueryError(f"{place} is more than {MAX_DEPTH} levels deep")
        if not isinstance(value, dict) or not value:
            raise InvalidQueryError(
                f'{place} must be an object that is not empty, such as {{"title": {{"exists": true}}}}'
            )
        parts = [
            self._part(name, inner, f"{place}.{_shown(name, number)}", depth)
            for number, (name, inner) in enumerate(value.items(), start=1)
        ]
        return _joined(parts, " AND ")

    def _part(self, name: str, value: object, place: str, depth: int) -> Filter:
        if name in ("and", "or"):
            if not isinstance(value, list) or not value:
                raise InvalidQueryError(f"{place} must be a list of filters that is not empty")
            inner = [self.filter(one, f"{place}[{number}]", depth + 1) for number, one in enumerate(value)]
            return _joined(inner, f" {name.upper()} ")
        if name == "not":
            negated = self.filter(value, place, depth + 1)
            return Filter(f"NOT {negated.sql}", negated.values)
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise InvalidQueryError(f"the filter has more than {MAX_CONDITIONS} conditions")
        if name in _COLUMNS:
            return _column_condition(name, _condition(value, place), place)
        if name.startswith("metadata."):
            return _metadata_condition(_json_path(name, place), _condition(value, place), place)
        raise InvalidQueryError(
            f"{place}: there is no such field; a field is {', '.join(_COLUMNS)} or metadata.KEY, "
            "and filters are joined by and, or, not"
        )


def _shown(name: str, number: int) -> str:
    """A member of an object in an error message: by its name only where the name is ours, for a message never
    repeats what came in."""
    if name in ("and", "or", "not", *_COLUMNS):
        return name
    return "metadata.(key)" if name.startswith("metadata.") else f"(field {number})"


def _joined(parts: Sequence[Filter], word: str) -> Filter:
    return Filter(
        f"({word.join(part.sql for part in parts)})", tuple(value for part in parts for value in part.values)
    )


def _condition(value: object, place: str) -> dict[str, Any]:
    """A condition in its long form, with operators that exist and may stand together."""
    if isinstance(value, list):
        raise InvalidQueryError(f'{place} is a list: say {{"in": [...]}} for any of several values')
    if not isinstance(value, dict):
        return {"eq": value}
    allowed = ("eq", "in", "exists", *_RANGES)
    for name in value:
        if name not in allowed:
            raise InvalidQueryError(
                f"{place} has a comparison that does not exist; there are {', '.join(allowed)}"
            )
    if not value or (len(value) > 1 and not value.keys() <= _RANGES.keys()):
        raise InvalidQueryError(f"{place} must be one comparison, or bounds of one range")
    return value


def _json_path(name: str, place: str) -> str:
    keys = name.split(".")[1:]
    if not all(_KEY.fullmatch(key) for key in keys):
        raise InvalidQueryError(
            f"{place}: a key of metadata is not empty and holds no quotation mark or backslash"
        )
    return "$" + "".join(f'."{key}"' for key in keys)


def _column_condition(column: str, condition: dict[str, Any], place: str) -> Filter:
    ((operator, operand), *_) = condition.items()
    if operator == "exists":
        return Filter(f"videos.{column} IS {'NOT ' if _truth(operand, place) else ''}NULL", ())
    if operator == "eq":
        if operand is None:
            return Filter(f"videos.{column} IS NULL", ())
        return Filter(f"videos.{column} IS ?", (_column_value(column, operand, place),))
    if operator == "in":
        wanted = [_column_value(column, one, place) for one in _values(operand, place)]
        return Filter(
            f"coalesce(videos.{column} IN (SELECT value FROM json_each(?)), 0)", (json.dumps(wanted),)
        )
    bounds = [
        Filter(f"videos.{column} {_RANGES[name]} ?", (_column_value(column, bound, place),))
        for name, bound in condition.items()
    ]
    inside = _joined(bounds, " AND ")
    return Filter(f"coalesce({inside.sql}, 0)", inside.values)


def _column_value(column: str, value: object, place: str) -> str | float:
    if column == "added_at" and isinstance(value, str):
        return _seconds_of(value, place)
    if _COLUMNS[column] is str:
        if not isinstance(value, str):
            raise InvalidQueryError(f"{place} must be compared with text")
        return _text(value, place)
    if isinstance(value, bool) or not isinstance(value, int | float):
        or_date = " or a date and time as in 2026-01-31T12:00:00Z" if column == "added_at" else ""
        raise InvalidQueryError(f"{place} must be compared with a number{or_date}")
    return float(_number(value, place))


def _seconds_of(text: str, place: str) -> float:
    """Seconds since 1970 of an ISO 8601 date or date and time; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidQueryError(f"{place} must be a date and time as in 2026-01-31T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _metadata_condition(path: str, condition: dict[str, Any], place: str) -> Filter:
    ((operator, operand), *_) = condition.items()
    if operator == "exists":
        wanted = "NOT NULL" if _truth(operand, place) else "NULL"
        return Filter(f"json_type(videos.metadata, ?) IS {wanted}", (path,))
    if operator in ("eq", "in"):
        wanted_values = [operand] if operator == "eq" else _values(operand, place)
        return _some_element(path, _equal_to_one_of(wanted_values, place))
    texts = {isinstance(bound, str) for bound in condition.values()}
    if len(texts) > 1:
        raise InvalidQueryError(f"{place}: the bounds of a range must be all numbers or all text")
    bounds = []
    for name, bound in condition.items():
        value = _scalar(bound, place)
        if value is None or isinstance(value, bool):
            raise InvalidQueryError(f"{place}: the bounds of a range must be numbers or text")
        bounds.append(Filter(f"item.atom {_RANGES[name]} ?", (value,)))
    kind = "item.type = 'text'" if texts == {True} else "item.type IN ('integer', 'real')"
    return _some_element(path, _joined([Filter(kind, ()), *bounds], " AND "))


def _some_element(path: str, condition: Filter) -> Filter:
    """`condition` on the value at `path`, or on one element of the list there.

    `json_each` goes through the members of an object as well, which are other fields and not meant.
    """
    return Filter(
        "(coalesce(json_type(videos.metadata, ?), '') != 'object' AND EXISTS"
        f" (SELECT 1 FROM json_each(videos.metadata, ?) AS item WHERE {condition.sql}))",
        (path, path, *condition.values),
    )


def _equal_to_one_of(values: Iterable[object], place: str) -> Filter:
    texts: list[str] = []
    numbers: list[int | float] = []
    types: list[str] = []
    for value in values:
        match _scalar(value, place):
            case None:
                types.append("null")
            case bool() as truth:
                types.append("true" if truth else "false")
            case str() as text:
                texts.append(text)
            case int() | float() as number:
                numbers.append(number)
    parts = []
    if texts:
        parts.append(
            Filter(
                "(item.type = 'text' AND item.atom IN (SELECT value FROM json_each(?)))", (json.dumps(texts),)
            )
        )
    if numbers:
        parts.append(
            Filter(
                "(item.type IN ('integer', 'real') AND item.atom IN (SELECT value FROM json_each(?)))",
                (json.dumps(numbers),),
            )
        )
    if types:
        parts.append(Filter("item.type IN (SELECT value FROM json_each(?))", (json.dumps(types),)))
    return _joined(parts, " OR ")


def _values(value: object, place: str) -> list[object]:
    if not isinstance(value, list) or not value or len(value) > MAX_VALUES:
        raise InvalidQueryError(f"{place}.in must be a list of 1 to {MAX_VALUES} values")
    return value


def _scalar(value: object, place: str) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, int | float):
        return _number(value, place)
    raise InvalidQueryError(f"{place} must be compared with text, numbers, true, false or null")


def _text(value: str, place: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidQueryError(f"{place} is not valid Unicode (it holds a lone surrogate)") from None
    if "\0" in value:  # SQLite's JSON functions end a text there.
        raise InvalidQueryError(f"{place} holds a zero character (U+0000)")
    if len(value) > MAX_TEXT_LENGTH:
        raise InvalidQueryError(f"{place} is longer than {MAX_TEXT_LENGTH} characters")
    return value


def _number(value: int | float, place: str) -> int | float:
    # SQLite keeps whole numbers of 64 bits and takes longer ones for floating-point numbers.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if not math.isfinite(value):
        raise InvalidQueryError(f"{place} must be compared with finite numbers")
    return value


def _truth(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidQueryError(f"{place}.exists must be true or false")
    return value
