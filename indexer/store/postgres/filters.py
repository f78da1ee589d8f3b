"""Filters as SQL, what is stored of a video for them, and the segments that they match.

PostgreSQL knows neither `folded` nor moments, and its jsonb refuses U+0000 and holds numbers that SQLite, and
JSON in Python, do not tell apart. So each value of the metadata is stored in the forms that are compared:

    text     {"s": itself, "f": folded, where that differs, "m": microseconds since 1970, where it is a date}
    number   {"n": its exact value}
    true, false, null    {"c": "true"} and so on
    list     {"l": [...]}
    object   {"o": {...}}

A number is the one that a double or a 64-bit integer holds, so that 1 equals 1.0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ChangesForgottenError
from indexer.store.change_rows import MAX_CHANGES_TO_FOLLOW, replaced_ids
from indexer.store.filters import (
    OPERATORS,
    Below,
    Comparison,
    Condition,
    Contains,
    Exists,
    Field,
    Filter,
    Leaf,
    OneOf,
    Within,
    compiled,
    joined,
)
from indexer.store.postgres.changes import read_changes, read_token
from indexer.store.postgres.connections import Connections, StoreConnection, escaped
from indexer.store.records import Change, Matches
from indexer.store.text import folded, instant, plain_uri

FILTERED_COLUMNS: Final = "folded_title, plain_uri, asked_metadata"
"""Of a video, what is stored for filters alone."""

_MATCHING: Final = (
    "SELECT string_agg(int8send(segments.id), ''::bytea) FROM segments"
    " JOIN videos ON videos.number = segments.video_number WHERE "
)
"""Ids as bytes, which numpy reads: a list of a million of them would take a second."""

_OF_VIDEOS: Final = "videos.id = ANY(%s::text[])"
_BEYOND_DOUBLES: Final = 10**309
_MICROSECOND: Final = timedelta(microseconds=1)


# What is stored


def filtered_values(title: str | None, uri: str | None, metadata: str) -> tuple[Any, ...]:
    """FILTERED_COLUMNS of a video. metadata: JSON."""
    return (
        None if title is None else folded(title).encode(),
        None if uri is None else plain_uri(uri).encode(),
        json.dumps(_asked(json.loads(metadata)), separators=(",", ":"), ensure_ascii=False),
    )


def _asked(value: Any) -> dict[str, Any]:
    match value:
        case dict():
            return {"o": {escaped(key): _asked(inner) for key, inner in value.items()}}
        case list():
            return {"l": [_asked(inner) for inner in value]}
        case str():
            forms: dict[str, Any] = {"s": escaped(value)}
            if (as_folded := folded(value)) != value:
                forms["f"] = escaped(as_folded)
            if (moment := instant(value)) is not None:
                forms["m"] = moment // _MICROSECOND
            return forms
        case bool() | None:
            return {"c": json.dumps(value)}
        case _:
            return {"n": _exact(value)}


def _exact(number: int | float) -> int | float:
    """A number by the value that is compared; a float only where it is no whole number."""
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        try:
            number = float(number)
        except OverflowError:  # Larger than all that a filter can ask.
            return _BEYOND_DOUBLES if number > 0 else -_BEYOND_DOUBLES
    return int(number) if number == int(number) else number


# What is asked


def compile_filter(chosen: Filter) -> Condition:
    """The filter as a condition."""
    return compiled(chosen, _of_column, _of_metadata)


def _known(condition: Condition) -> Condition:
    """False where it would be NULL."""
    return Condition(f"coalesce({condition.sql}, false)", condition.values)


def _of_column(chosen: Leaf) -> Condition:
    column = f"videos.{chosen.field.column}"
    match chosen:
        case Contains(_, text):  # Of titles alone.
            return _known(Condition("position(%b::bytea IN videos.folded_title) > 0", (text.encode(),)))
        case Below(_, folder):
            # What ends with a slash is a folder; else it may be a file, or a folder that ends with one.
            below = (folder if folder.endswith("/") else f"{folder}/").encode()
            inside = "(videos.plain_uri >= %b::bytea AND videos.plain_uri < %b::bytea)"
            after = below[:-1] + b"0"  # Follows the slash.
            return _known(
                Condition(f"({inside} OR videos.plain_uri = %b::bytea)", (below, after, folder.encode()))
            )
        case Exists(_, exists):
            return Condition(f"({column} IS {'NOT ' if exists else ''}NULL)")
        case OneOf(Field("uri"), texts):
            wanted = [text.encode() for text in texts]
            return _known(Condition("videos.plain_uri = ANY(%s::bytea[])", (wanted,)))
        case OneOf(_, texts, numbers):
            # A column holds texts or numbers, and is asked for such alone.
            kind = "text" if texts else "float8"
            return _known(Condition(f"{column} = ANY(%s::{kind}[])", (list(texts or map(float, numbers)),)))
        case Within(_, bounds):
            return _known(joined([_compared(column, name, to) for name, to in bounds], "AND"))


def _compared(what: str, name: Comparison, to: str | int | float) -> Condition:
    if isinstance(to, str):
        return Condition(f'{what} {OPERATORS[name]} %s::text COLLATE "C"', (to,))
    return Condition(f"{what} {OPERATORS[name]} %s::float8", (float(to),))


def _of_metadata(chosen: Leaf) -> Condition:
    match chosen:
        case Exists(field, exists):
            place = _place(field)
            return Condition(f"({place.sql} IS {'NOT ' if exists else ''}NULL)", place.values)
        case OneOf(field, texts, numbers, constants):
            exact = [str(_exact(number)) for number in numbers]
            parts = [
                (list(texts), "item.value ->> 's' = ANY(%s::text[])"),
                (exact, "(item.value ->> 'n')::numeric = ANY(%s::text[]::numeric[])"),
                (list(constants), "item.value ->> 'c' = ANY(%s::text[])"),
            ]
            equal = [Condition(sql, (values,)) for values, sql in parts if values]
            return _some_element(field, joined(equal, "OR"))
        case Contains(field, text):
            text_of_item = "coalesce(item.value ->> 'f', item.value ->> 's')"
            return _some_element(field, Condition(f"strpos({text_of_item}, %s::text) > 0", (text,)))
        case Within(field, bounds):
            return _some_element(field, joined([_within(name, to) for name, to in bounds], "AND"))
        case Below():
            raise AssertionError("metadata has no uri")  # The parser makes none.


def _within(name: Comparison, to: str | int | float) -> Condition:
    """One bound on a value of the metadata."""
    if not isinstance(to, str):
        sql = f"(item.value ->> 'n')::numeric {OPERATORS[name]} %s::text::numeric"
        return Condition(sql, (str(_exact(to)),))
    as_text = _compared("(item.value ->> 's')", name, to)
    if (moment := instant(to)) is None:
        return as_text
    return Condition(
        f"CASE WHEN item.value ? 'm' THEN (item.value ->> 'm')::bigint {OPERATORS[name]} %s::bigint"
        f" ELSE {as_text.sql} END",
        (moment // _MICROSECOND, *as_text.values),
    )


def _place(field: Field) -> Condition:
    """The value at the keys of a field; NULL where there is none. Texts are no positions in lists."""
    return Condition(f"(videos.asked_metadata{''' -> 'o' -> %s::text''' * len(field.keys)})", field.keys)


def _some_element(field: Field, condition: Condition) -> Condition:
    """`condition` on the value of the field, or on one element of the list there."""
    place = _place(field)
    return Condition(
        f"EXISTS (SELECT 1 FROM (SELECT {place.sql} AS value) AS found, jsonb_array_elements("
        "CASE WHEN found.value ? 'l' THEN found.value -> 'l' ELSE jsonb_build_array(found.value) END"
        f") AS item (value) WHERE {condition.sql})",
        (*place.values, *condition.values),
    )


def matching_segments(
    connections: Connections, chosen: Filter, former: Matches | None, limit_seconds: float
) -> Matches:
    """What the filter matches at one moment, from what it let through before, if possible."""
    condition = compile_filter(chosen)
    state = "SELECT sequence, token FROM counters"
    if former is None:
        statement = f"SELECT counters.*, ({_MATCHING}{condition.sql}) FROM ({state}) AS counters"
        with connections.reading(limit_seconds) as connection:
            return _all_matching(connection, statement, condition)
    if connections.rows(state) == [(former.sequence, former.token)]:  # One round trip, as most often.
        return former
    with connections.snapshot(limit_seconds) as connection:
        sequence, token = connection.execute(state).fetchone() or (0, "")
        changes = _changes_since(connection, former)
        if changes is None:
            statement = f"SELECT counters.*, ({_MATCHING}{condition.sql}) FROM ({state}) AS counters"
            return _all_matching(connection, statement, condition)
        touched = sorted({change.video_id for change in changes if change.kind != "delete"})
        # Segments that changed videos have now, or had when they were deleted.
        gone = [segment_id for change in changes for segment_id in change.segment_ids]
        row = connection.execute(
            f"SELECT ({_MATCHING}{_OF_VIDEOS}), ({_MATCHING}{_OF_VIDEOS} AND {condition.sql})",
            (touched, touched, *condition.values),
            binary=True,
        ).fetchone()
        now, new = map(_ids, row or (None, None))
        return Matches(
            sequence, token, replaced_ids(former.segment_ids, [*gone, *now.tolist()], new.tolist())
        )


def _all_matching(connection: StoreConnection, statement: str, condition: Condition) -> Matches:
    row = connection.execute(statement, condition.values, binary=True).fetchone()
    sequence, token, ids = row or (0, "", None)
    return Matches(sequence, token, np.sort(_ids(ids)))


def _ids(sent: bytes | None) -> NDArray[np.int64]:
    return np.frombuffer(sent or b"", ">i8").astype(np.int64)


def _changes_since(connection: StoreConnection, former: Matches) -> Sequence[Change] | None:
    """What has changed since; None where that is not known, or too much."""
    try:
        changes = read_changes(connection, former.sequence, MAX_CHANGES_TO_FOLLOW + 1)
    except ChangesForgottenError:
        return None
    # Another token: the catalog came to this number by other changes, before a backup was restored.
    is_known = read_token(connection, former.sequence) == former.token
    return changes if is_known and len(changes) <= MAX_CHANGES_TO_FOLLOW else None
