"""Integrity checks of a catalog that the checksums of its rows do not cover.

SQLite's trees and indexes have no checksum. A flipped bit in one can hide a row, and searches would lack a
video without notice. So a catalog is checked when it is opened: its counters whatever its size, up to
CHECKED_SIZE_BYTES the tables that searches ask, with their indexes, up to WHOLE_SIZE_BYTES every page.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from indexer.errors import IndexDamagedError
from indexer.store.records import Damage

WHOLE_SIZE_BYTES: Final = 256 << 20
CHECKED_SIZE_BYTES: Final = 2 << 30
"""Of the catalog's file; about 100,000 videos of 12 frames x 512, which take 0.3 s of a processor. Larger
ones are checked by `verify` alone: opening must not take seconds."""

_SEARCHED: Final = ("videos", "segments", "changes", "totals", "facts", "succession")
"""Frame features are not among them: one that is not found is missed where it is wanted."""

_LAST_NUMBER: Final = "(SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = '{}')"
_LAST_CHANGE, _LAST_SEGMENT = _LAST_NUMBER.format("changes"), _LAST_NUMBER.format("segments")
_QUICK: Final = {
    "SELECT 'the last change is not ' || written FROM (SELECT coalesce(max(sequence), 0) AS found,"
    f" {_LAST_CHANGE} AS written FROM changes) WHERE found != written": "change log",
    f"SELECT 'the next segment gets a number that is taken' WHERE (SELECT max(id) FROM segments)"
    f" > {_LAST_SEGMENT}": "catalog",
    "SELECT 'it says of itself that it is shrunk by SQLite' FROM pragma_auto_vacuum"
    " WHERE auto_vacuum != 0": "catalog",
}
_TOTALS: Final = (
    "SELECT 'it counts ' || num_videos || ' videos and ' || num_segments || ' segments, but holds '"
    " || (SELECT count(*) FROM videos) || ' and ' || (SELECT count(*) FROM segments) FROM totals"
    " WHERE num_videos != (SELECT count(*) FROM videos)"
    " OR num_segments != (SELECT count(*) FROM segments)"
)
_GIVEN_BEFORE: Final = (
    "SELECT 'the next segment gets a number that was given before' WHERE (SELECT max(value) FROM changes,"
    f" json_each(CASE WHEN json_valid(segment_ids) THEN segment_ids ELSE '[]' END)) > {_LAST_SEGMENT}"
)
_WITHOUT_ROW: Final = "SELECT 'it has no totals' WHERE (SELECT count(*) FROM totals) != 1"

_STRUCTURE: Final = {**_QUICK, _TOTALS: "totals", _WITHOUT_ROW: "totals", _GIVEN_BEFORE: "catalog"}
"""Statements that give a row for each thing that is wrong, and the part that it is wrong in."""

_INCONSISTENT: Final = {
    "SELECT 'video ' || id || ' has no segment' FROM videos"
    " WHERE NOT EXISTS (SELECT 1 FROM segments WHERE video_number = number)": "catalog",
    "SELECT 'segment ' || id || ' has no frame features' FROM segments"
    " WHERE NOT EXISTS (SELECT 1 FROM segment_frames WHERE segment_id = id)": "catalog",
    "SELECT 'a row of ' || \"table\" || ' belongs to nothing' FROM pragma_foreign_key_check": "catalog",
    **_STRUCTURE,
    "SELECT 'change ' || (sequence - 1) || ' is missing' FROM changes AS later"
    " WHERE sequence > (SELECT min(sequence) FROM changes)"
    " AND NOT EXISTS (SELECT 1 FROM changes WHERE sequence = later.sequence - 1)": "change log",
    "SELECT 'video ' || id || ' was added by a change that is not there' FROM videos"
    " WHERE sequence > (SELECT coalesce(max(sequence), 0) FROM changes)": "change log",
}
"""Those that take longer, for `inconsistencies` alone."""


def check_structure(connection: sqlite3.Connection, path: Path) -> None:
    """Raise IndexDamagedError where rows of this catalog may not be found. All is read in one snapshot."""
    checked: tuple[str, ...] = ()
    if is_checked(path):
        checked = ("1",) if path.stat().st_size <= WHOLE_SIZE_BYTES else _SEARCHED
    for what in checked:
        (problem,) = connection.execute(f"PRAGMA integrity_check({what})").fetchone()
        if problem != "ok":
            raise _damaged(path, problem)
    for statement in _STRUCTURE if checked else _QUICK:
        if wrong := connection.execute(statement).fetchone():
            raise _damaged(path, wrong[0])


def is_checked(path: Path) -> bool:
    """Whether this catalog is small enough for all to be checked that a search depends on."""
    return path.stat().st_size <= CHECKED_SIZE_BYTES


def _damaged(path: Path, problem: str) -> IndexDamagedError:
    return IndexDamagedError(
        f"the catalog {path} is damaged: {problem}; rebuild repairs SQLite's own indexes and the totals,"
        " anything else needs a backup"
    )


def inconsistencies(connection: sqlite3.Connection) -> Iterator[Damage]:
    """Whatever contradicts something else in this catalog, and SQLite's own check of all its pages."""
    for (problem,) in connection.execute("PRAGMA integrity_check"):
        if problem != "ok":
            yield Damage("catalog", problem)
    for statement, part in _INCONSISTENT.items():
        for (problem,) in connection.execute(statement):
            yield Damage(part, problem)
