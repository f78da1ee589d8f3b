"""Is the structure of a catalog sound? What checksums over rows cannot tell: that a row is not found at all.

SQLite's trees and indexes have no checksum. A flipped bit in one can hide a row, and then a search would lack
a video without anybody noticing. So a catalog is checked when it is opened: its counters whatever its size,
up to CHECKED_SIZE_BYTES the tables that searches ask, with their indexes, up to WHOLE_SIZE_BYTES every page.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from indexer.errors import IndexDamagedError

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

STRUCTURE: Final = {**_QUICK, _TOTALS: "totals", _WITHOUT_ROW: "totals", _GIVEN_BEFORE: "catalog"}
"""Statements that give a row for each thing that is wrong, and the part that it is wrong in."""


def check_structure(connection: sqlite3.Connection, path: Path) -> None:
    """Raise IndexDamagedError where rows of this catalog may not be found. All is read in one snapshot."""
    checked: tuple[str, ...] = ()
    if is_checked(path):
        checked = ("1",) if path.stat().st_size <= WHOLE_SIZE_BYTES else _SEARCHED
    for what in checked:
        (problem,) = connection.execute(f"PRAGMA integrity_check({what})").fetchone()
        if problem != "ok":
            raise _damaged(path, problem)
    for statement in STRUCTURE if checked else _QUICK:
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
