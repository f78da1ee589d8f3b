"""Filters as SQL, and the segments that they match, kept up to date by the change log."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

import numpy as np

from indexer.errors import ChangesForgottenError
from indexer.store.change_rows import MAX_CHANGES_TO_FOLLOW, replaced_ids
from indexer.store.filters import (
    OPERATORS,
    Below,
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
from indexer.store.records import Change, Matches
from indexer.store.sqlite.changes import last_sequence, read_changes, read_token
from indexer.store.sqlite.connections import CONTAINS, IS_BELOW, IS_WITHIN, PLAIN_URI
from indexer.store.text import instant

_MATCHING: Final = (
    "SELECT segments.id FROM segments JOIN videos ON videos.number = segments.video_number WHERE "
)
_OF_VIDEOS: Final = "videos.id IN (SELECT value FROM json_each(?))"


def compile_filter(chosen: Filter) -> Condition:
    """The filter as a condition."""
    return compiled(chosen, _of_column, _of_metadata)


def _of_column(chosen: Leaf) -> Condition:
    column = f"videos.{chosen.field.column}"
    match chosen:
        case Contains(_, text):
            return Condition(f"{CONTAINS}({column}, ?)", (text,))
        case Below(_, folder):
            return Condition(f"{IS_BELOW}({column}, ?)", (folder,))
        case Exists(_, exists):
            return Condition(f"{column} IS {'NOT ' if exists else ''}NULL")
        case OneOf(_, texts, numbers):
            values = (*texts, *numbers)
            if chosen.field.column == "uri":
                column = f"{PLAIN_URI}({column})"
            if len(values) == 1:
                return Condition(f"{column} IS ?", values)
            return Condition(
                f"coalesce({column} IN (SELECT value FROM json_each(?)), 0)", (json.dumps(values),)
            )
        case Within(_, bounds):
            inside = joined([Condition(f"{column} {OPERATORS[name]} ?", (to,)) for name, to in bounds], "AND")
            return Condition(f"coalesce({inside.sql}, 0)", inside.values)


def _of_metadata(chosen: Leaf) -> Condition:
    path = _json_path(chosen.field)
    match chosen:
        case Exists(_, exists):
            return Condition(f"json_type(videos.metadata, ?) IS {'NOT NULL' if exists else 'NULL'}", (path,))
        case OneOf(_, texts, numbers, constants):
            listed = "(SELECT value FROM json_each(?))"
            parts = [
                (texts, f"(item.type = 'text' AND item.atom IN {listed})"),
                (numbers, f"(item.type IN ('integer', 'real') AND item.atom IN {listed})"),
                (constants, f"item.type IN {listed}"),
            ]
            equal = [Condition(sql, (json.dumps(values),)) for values, sql in parts if values]
            return _some_element(path, joined(equal, "OR"))
        case Contains(_, text):
            condition = Condition(f"item.type = 'text' AND {CONTAINS}(item.atom, ?)", (text,))
            return _some_element(path, condition)
        case Within(_, bounds):
            is_text = isinstance(bounds[0][1], str)
            if any(isinstance(to, str) and instant(to) is not None for _, to in bounds):
                condition = Condition(
                    f"item.type = 'text' AND {IS_WITHIN}(item.atom, ?)", (json.dumps(bounds),)
                )
                return _some_element(path, condition)
            kind = "item.type = 'text'" if is_text else "item.type IN ('integer', 'real')"
            inside = [Condition(f"item.atom {OPERATORS[name]} ?", (to,)) for name, to in bounds]
            return _some_element(path, joined([Condition(kind), *inside], "AND"))
        case Below():
            raise AssertionError("metadata has no uri")  # The parser makes none.


def _json_path(field: Field) -> str:
    return "$" + "".join(f'."{key}"' for key in field.keys)


def _some_element(path: str, condition: Condition) -> Condition:
    """`condition` on the value at `path`, or on one element of the list there."""
    # `json_each` goes through the members of an object as well, which are other fields and not meant.
    return Condition(
        "(coalesce(json_type(videos.metadata, ?), '') != 'object' AND EXISTS"
        f" (SELECT 1 FROM json_each(videos.metadata, ?) AS item WHERE {condition.sql}))",
        (path, path, *condition.values),
    )


def matching_segments(connection: sqlite3.Connection, chosen: Filter, former: Matches | None) -> Matches:
    """What the filter matches as this snapshot sees it, from what it let through before, if possible."""
    sequence = last_sequence(connection)
    token = read_token(connection, sequence)
    if former is not None and (former.sequence, former.token) == (sequence, token):
        return former
    condition = compile_filter(chosen)
    changes = None if former is None else _changes_since(connection, former)
    if former is None or changes is None:
        rows = connection.execute(_MATCHING + condition.sql, condition.values)
        ids = np.fromiter((segment_id for (segment_id,) in rows), np.int64)
        ids.sort()
        return Matches(sequence, token, ids)
    touched = json.dumps(sorted({change.video_id for change in changes if change.kind != "delete"}))
    # Segments that changed videos have now, or had when they were deleted.
    gone = [segment_id for change in changes for segment_id in change.segment_ids]
    gone += [row[0] for row in connection.execute(_MATCHING + _OF_VIDEOS, (touched,))]
    sql = f"{_MATCHING}{_OF_VIDEOS} AND {condition.sql}"
    new = [row[0] for row in connection.execute(sql, (touched, *condition.values))]
    return Matches(sequence, token, replaced_ids(former.segment_ids, gone, new))


def _changes_since(connection: sqlite3.Connection, former: Matches) -> Sequence[Change] | None:
    """What has changed since; None where that is not known, or too much."""
    try:
        changes = read_changes(connection, former.sequence, MAX_CHANGES_TO_FOLLOW + 1)
    except ChangesForgottenError:
        return None
    # Another token: the catalog came to this number by other changes, before a backup was restored.
    is_known = read_token(connection, former.sequence) == former.token
    return changes if is_known and len(changes) <= MAX_CHANGES_TO_FOLLOW else None
