"""Which videos a search may find: conditions on what the store knows of them, from JSON to a tree.

    filter    = {field: condition, ...}  all of them hold
              | {"and": [filter, ...]} | {"or": [filter, ...]} | {"not": filter}
    field     = "id" | "title" | "uri" | "duration_seconds" | "added_at" | "recorded_at"
              | "missing" (true | false: whether its file was gone when it was last looked for)
              | "content_sha256" (64 lower-case hex digits) | "metadata.KEY" | "metadata.KEY.KEY" ...
    condition = value                                  the same as {"eq": value}
              | {"eq": value} | {"in": [value, ...]} | {"exists": true | false}
              | {"gt" | "gte" | "lt" | "lte": bound, ...}  all of them hold; not for "uri"
              | {"contains": text}                     for "title" and metadata: case and accents' form aside
              | {"prefix": folder}                     for "uri": that folder or file, or what is below it

A condition on a metadata field that holds a list is true where one element fulfils it. Nothing equals, and
nothing lies within a range, where the field is absent or of another type: 3 is not "3". Texts and keys are
compared in NFC. Where a bound and a text of the metadata are both dates or times as in RFC 3339, they are
compared as moments, whatever their zones; other texts by code points.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import ge, gt, le, lt
from typing import Any, Final, Literal, get_args

from indexer.errors import InvalidQueryError
from indexer.store.text import folded, instant, nfc, plain_uri

MAX_DEPTH: Final = 8
MAX_CONDITIONS: Final = 100
MAX_VALUES: Final = 1_000
MAX_TEXT_LENGTH: Final = 1_000

_COLUMNS: Final = {
    "id": str,
    "title": str,
    "uri": str,
    "duration_seconds": float,
    "added_at": float,
    "recorded_at": float,
    "content_sha256": str,
}
Comparison = Literal["gt", "gte", "lt", "lte"]
_TIMES: Final = ("added_at", "recorded_at")
MISSING: Final = "missing"
"""Of a video, whether `missing_since` is there."""

COMPARISONS: Final[tuple[Comparison, ...]] = get_args(Comparison)
_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "gt": gt,
    "gte": ge,
    "lt": lt,
    "lte": le,
}
OPERATORS: Final[Mapping[str, str]] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
"""The comparisons as databases write them."""

_KEY: Final = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
"""What JSON paths take between quotation marks; no lone surrogate, which UTF-8 has no path for."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Field:
    """What a condition is about: a column of a video's record, or with `keys` a value in its metadata."""

    column: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exists:
    """The field is there (`exists`) or absent."""

    field: Field
    exists: bool


@dataclass(frozen=True)
class OneOf:
    """The field equals one of these values.

    They stand apart by their JSON type: 1 equals True for Python, but not in JSON. constants: of null, true
    and false.
    """

    field: Field
    texts: tuple[str, ...] = ()
    numbers: tuple[int | float, ...] = ()
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Within:
    """The field fulfils all of these bounds, (comparison, value): numbers all of them, or texts."""

    field: Field
    bounds: tuple[tuple[Comparison, str | int | float], ...]


@dataclass(frozen=True)
class Contains:
    """The field is a text that contains this one, which is folded (`indexer.store.text.folded`)."""

    field: Field
    text: str


@dataclass(frozen=True)
class Below:
    """The field is a uri at or below this one, see `indexer.store.text.is_below`."""

    field: Field
    folder: str


@dataclass(frozen=True)
class Not:
    """The filter does not hold."""

    part: Filter


@dataclass(frozen=True)
class And:
    """All of the filters hold; there is at least one."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    """One of the filters holds; there is at least one."""

    parts: tuple[Filter, ...]


Leaf = Exists | OneOf | Within | Contains | Below
Filter = Leaf | Not | And | Or
"""A condition on videos. Hashable: equal filters let the same videos through. Each store compiles it."""


@dataclass(frozen=True)
class Condition:
    """A filter as SQL on rows of the table `videos`, in a store's own dialect: true or false, never NULL.

    values: those that the statement binds, in the order of their marks.
    """

    sql: str
    values: tuple[Any, ...] = ()


def compiled(
    chosen: Filter,
    of_column: Callable[[Leaf], Condition],
    of_metadata: Callable[[Leaf], Condition],
) -> Condition:
    """A filter as a condition.

    Args:
        chosen: the filter.
        of_column, of_metadata: what a store makes of a condition on a column of a video's record, and of one
            on its metadata.
    """
    match chosen:
        case And(parts):
            return joined([compiled(part, of_column, of_metadata) for part in parts], "AND")
        case Or(parts):
            return joined([compiled(part, of_column, of_metadata) for part in parts], "OR")
        case Not(part):
            negated = compiled(part, of_column, of_metadata)
            return Condition(f"NOT {negated.sql}", negated.values)
        case Exists() | OneOf() | Within() | Contains() | Below():
            return of_metadata(chosen) if chosen.field.keys else of_column(chosen)


def joined(parts: Sequence[Condition], word: Literal["AND", "OR"]) -> Condition:
    """All of the conditions (AND), or one of them (OR). There is at least one."""
    values = tuple(value for part in parts for value in part.values)
    return Condition(f"({f' {word} '.join(part.sql for part in parts)})", values)


def parse_filter(value: object) -> Filter:
    """The filter that a JSON value says.

    Args:
        value: see the head of this module.

    Raises:
        InvalidQueryError: it says none, or has more than MAX_CONDITIONS conditions, MAX_DEPTH levels or
            MAX_VALUES values of one `in`; the message says where and never repeats a value.

    Example:
        >>> parse_filter({"metadata.year": {"gte": 2020}})
        Within(field=Field(column='metadata', keys=('year',)), bounds=(('gte', 2020),))
    """
    return _Parser().filter(value, "filter", 0)


def is_within(text: str, bounds_json: str) -> bool:
    """Whether a text of the metadata fulfils all bounds: as a moment where it and the bound are such.

    Args:
        text: of the metadata.
        bounds_json: of a `Within` with texts, as JSON: a text that is bound to an SQL statement once.
    """
    moment = instant(text)
    for compare, bound, moment_of_bound in _parsed_bounds(bounds_json):
        if moment is None or moment_of_bound is None:
            if not compare(text, bound):
                return False
        elif not compare(moment, moment_of_bound):
            return False
    return True


@lru_cache(maxsize=1_000)
def _parsed_bounds(bounds_json: str) -> list[tuple[Callable[[Any, Any], bool], str, timedelta | None]]:
    return [(_COMPARE[name], bound, instant(bound)) for name, bound in json.loads(bounds_json)]


class _Parser:
    def __init__(self) -> None:
        self._num_conditions = 0

    def filter(self, value: object, path: str, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise InvalidQueryError(f"{path} is more than {MAX_DEPTH} levels deep")
        if not isinstance(value, dict) or not value:
            raise InvalidQueryError(
                f'{path} must be an object that is not empty, such as {{"title": {{"exists": true}}}}'
            )
        parts = [
            self._part(name, inner, f"{path}.{_shown(name, number)}", depth)
            for number, (name, inner) in enumerate(value.items(), start=1)
        ]
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _part(self, name: str, value: object, path: str, depth: int) -> Filter:
        if name in ("and", "or"):
            if not isinstance(value, list) or not value:
                raise InvalidQueryError(f"{path} must be a list of filters that is not empty")
            inner = [self.filter(one, f"{path}[{number}]", depth + 1) for number, one in enumerate(value)]
            return And(tuple(inner)) if name == "and" else Or(tuple(inner))
        if name == "not":
            return Not(self.filter(value, path, depth + 1))
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise InvalidQueryError(f"the filter has more than {MAX_CONDITIONS} conditions")
        if name == MISSING:
            condition = _condition(value, path)
            if condition.keys() != {"eq"}:
                raise InvalidQueryError(f"{path} must be compared with true or false")
            return Exists(Field("missing_since"), _truth(condition["eq"], path))
        if name in _COLUMNS:
            return _column_condition(Field(name), _condition(value, path), path)
        if name.startswith("metadata."):
            field = Field("metadata", _keys(name, path))
            return _metadata_condition(field, _condition(value, path), path)
        raise InvalidQueryError(
            f"{path}: there is no such field; a field is {', '.join((*_COLUMNS, MISSING))} or metadata.KEY, "
            "and filters are joined by and, or, not"
        )


def _shown(name: str, number: int) -> str:
    """A member of an object in an error message: by its name only where the name is ours, for a message never
    repeats the input."""
    if name in ("and", "or", "not", MISSING, *_COLUMNS):
        return name
    return "metadata.(key)" if name.startswith("metadata.") else f"(field {number})"


def _condition(value: object, path: str) -> dict[str, Any]:
    """A condition in its long form, with operators that exist and may stand together."""
    if isinstance(value, list):
        raise InvalidQueryError(f'{path} is a list: say {{"in": [...]}} for any of several values')
    if not isinstance(value, dict):
        return {"eq": value}
    allowed = ("eq", "in", "exists", "contains", "prefix", *COMPARISONS)
    for name in value:
        if name not in allowed:
            raise InvalidQueryError(
                f"{path} has a comparison that does not exist; there are {', '.join(allowed)}"
            )
    if not value or (len(value) > 1 and not value.keys() <= set(COMPARISONS)):
        raise InvalidQueryError(f"{path} must be one comparison, or bounds of one range")
    return value


def _keys(name: str, path: str) -> tuple[str, ...]:
    keys = tuple(name.split(".")[1:])
    if not all(_KEY.fullmatch(key) for key in keys):
        raise InvalidQueryError(
            f"{path}: a key of metadata is not empty and holds no quotation mark or backslash"
        )
    return tuple(map(nfc, keys))


def _column_condition(field: Field, condition: dict[str, Any], path: str) -> Filter:
    ((operator, operand), *_) = condition.items()
    if operator == "exists":
        return Exists(field, _truth(operand, path))
    if operator == "eq" and operand is None:
        return Exists(field, exists=False)
    if operator == "contains" and field.column == "title":
        return _contains(field, operand, path)
    if operator == "prefix" and field.column == "uri":
        return Below(field, plain_uri(_some_text(operand, f"{path}.prefix")))
    if operator in ("contains", "prefix") or (field.column == "uri" and operator in COMPARISONS):
        raise InvalidQueryError(
            f"{path} cannot be compared so: contains is for title and metadata, prefix for uri, a range not"
            " for uri"
        )
    if operator in ("eq", "in"):
        wanted = [operand] if operator == "eq" else _values(operand, path)
        values = [_column_value(field.column, one, path) for one in wanted]
        if field.column == "id":  # An index of an earlier version may hold one that is not in NFC.
            values += [one for one in wanted if isinstance(one, str) and one not in values]
        if field.column == "uri":
            values = [plain_uri(one) for one in values if isinstance(one, str)]
        return OneOf(
            field,
            texts=tuple(value for value in values if isinstance(value, str)),
            numbers=tuple(value for value in values if not isinstance(value, str)),
        )
    return Within(
        field, tuple((name, _column_value(field.column, bound, path)) for name, bound in _bounds(condition))
    )


def _column_value(column: str, value: object, path: str) -> str | float:
    if column in _TIMES and isinstance(value, str):
        return _seconds_of(value, path)
    if _COLUMNS[column] is str:
        if not isinstance(value, str):
            raise InvalidQueryError(f"{path} must be compared with text")
        return _text(value, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        or_date = " or a date and time as in 2026-01-31T12:00:00Z" if column in _TIMES else ""
        raise InvalidQueryError(f"{path} must be compared with a number{or_date}")
    return float(_number(value, path))


def _seconds_of(text: str, path: str) -> float:
    """Seconds since 1970 of an ISO 8601 date or date and time; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidQueryError(f"{path} must be a date and time as in 2026-01-31T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _metadata_condition(field: Field, condition: dict[str, Any], path: str) -> Filter:
    ((operator, operand), *_) = condition.items()
    if operator == "exists":
        return Exists(field, _truth(operand, path))
    if operator == "contains":
        return _contains(field, operand, path)
    if operator == "prefix":
        raise InvalidQueryError(f"{path} cannot be compared so: prefix is for uri")
    if operator in ("eq", "in"):
        return _one_of(field, [operand] if operator == "eq" else _values(operand, path), path)
    if len({isinstance(bound, str) for bound in condition.values()}) > 1:
        raise InvalidQueryError(f"{path}: the bounds of a range must be all numbers or all text")
    bounds = []
    for name, bound in _bounds(condition):
        value = _scalar(bound, path)
        if value is None or isinstance(value, bool):
            raise InvalidQueryError(f"{path}: the bounds of a range must be numbers or text")
        bounds.append((name, value))
    return Within(field, tuple(bounds))


def _contains(field: Field, value: object, path: str) -> Contains:
    return Contains(field, folded(_some_text(value, f"{path}.contains")))


def _some_text(value: object, path: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidQueryError(f"{path} must be a non-empty text")
    return _text(value, path)


def _bounds(condition: dict[str, Any]) -> list[tuple[Comparison, object]]:
    return [(name, condition[name]) for name in COMPARISONS if name in condition]


def _one_of(field: Field, values: Iterable[object], path: str) -> OneOf:
    texts: list[str] = []
    numbers: list[int | float] = []
    constants: list[str] = []
    for value in values:
        match _scalar(value, path):
            case None:
                constants.append("null")
            case bool() as truth:
                constants.append("true" if truth else "false")
            case str() as text:
                texts.append(text)
            case int() | float() as number:
                numbers.append(number)
    return OneOf(field, tuple(texts), tuple(numbers), tuple(constants))


def _values(value: object, path: str) -> list[object]:
    if not isinstance(value, list) or not value or len(value) > MAX_VALUES:
        raise InvalidQueryError(f"{path}.in must be a list of 1 to {MAX_VALUES} values")
    return value


def _scalar(value: object, path: str) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int | float):
        return _number(value, path)
    raise InvalidQueryError(f"{path} must be compared with text, numbers, true, false or null")


def _text(value: str, path: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidQueryError(f"{path} is not valid Unicode (it holds a lone surrogate)") from None
    if "\0" in value:  # SQLite's JSON functions end a text there.
        raise InvalidQueryError(f"{path} holds a zero character (U+0000)")
    if len(value) > MAX_TEXT_LENGTH:
        raise InvalidQueryError(f"{path} is longer than {MAX_TEXT_LENGTH} characters")
    return nfc(value)


def _number(value: int | float, path: str) -> int | float:
    # SQLite keeps whole numbers of 64 bits and takes longer ones for floating-point numbers.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if not math.isfinite(value):
        raise InvalidQueryError(f"{path} must be compared with finite numbers")
    return value


def _truth(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidQueryError(f"{path}.exists must be true or false")
    return value
