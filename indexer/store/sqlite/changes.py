"""The change log: every change of the catalog under an increasing number, so that any process can follow."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from indexer.errors import ChangesForgottenError, IndexDamagedError
from indexer.store.records import Change, ChangeKind
from indexer.store.sqlite.connections import checksum_of_row

_COLUMNS = "sequence, kind, video_id, segment_ids, changed_at, token"


def write_change(
    connection: sqlite3.Connection,
    kind: ChangeKind,
    video_id: str,
    segment_ids: Sequence[int],
    changed_at: float,
) -> int:
    """Log a change within the caller's transaction and return its number."""
    row = (
        next_sequence(connection),
        kind,
        video_id,
        json.dumps(list(segment_ids)),
        changed_at,
        secrets.token_hex(8),
    )
    connection.execute(
        f"INSERT INTO changes ({_COLUMNS}, row_crc32) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*row, checksum_of_row(row)),
    )
    return row[0]


def next_sequence(connection: sqlite3.Connection) -> int:
    """The number that `write_change` will give next, within a writing transaction."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return 1 if row is None else int(row[0]) + 1


def last_sequence(connection: sqlite3.Connection) -> int:
    """Number of the last change; 0 before the first."""
    (sequence,) = connection.execute("SELECT max(sequence) FROM changes").fetchone()
    return int(sequence or 0)


def read_token(connection: sqlite3.Connection, sequence: int) -> str | None:
    """See `Catalog.change_token`."""
    row = connection.execute("SELECT token FROM changes WHERE sequence = ?", (sequence,)).fetchone()
    if row is None:
        return "" if sequence == 0 else None
    return str(row[0])


def read_changes(connection: sqlite3.Connection, sequence: int, limit: int) -> list[Change]:
    """See `Catalog.changes_since`."""
    # One statement: the check and the rows are of the same moment.
    rows = connection.execute(
        f"SELECT {_COLUMNS}, row_crc32 FROM changes WHERE sequence >= ? ORDER BY sequence LIMIT ?",
        (sequence, limit + 1),
    ).fetchall()
    if sequence == 0:
        known = not rows or rows[0][0] == 1
        rows = rows[:limit]
    else:
        # The change seen last must still be there: numbers have no gaps, so nothing lies between it and the
        # next.
        known = bool(rows) and rows[0][0] == sequence
        rows = rows[1:]
    if not known:
        raise ChangesForgottenError(f"the change log does not hold change {sequence}; read everything again")
    for number, row in enumerate(rows, start=sequence + 1):
        if row[0] != number:
            raise IndexDamagedError(f"the catalog is damaged: change {number} is missing; restore a backup")
    return [_change(row) for row in rows]


def damaged_changes(connection: sqlite3.Connection) -> Iterator[int]:
    """Numbers of the changes that are not what was written."""
    for *row, checksum in connection.execute(f"SELECT {_COLUMNS}, row_crc32 FROM changes ORDER BY sequence"):
        if checksum_of_row(row) != checksum:
            yield row[0]


def _change(row: Sequence[Any]) -> Change:
    """The change in the columns _COLUMNS and row_crc32."""
    *values, checksum = row
    number, kind, video_id, segment_ids, _, _ = values
    if checksum_of_row(values) != checksum:
        raise IndexDamagedError(
            f"the catalog is damaged: change {number} does not match its checksum; restore a backup"
        )
    return Change(number, kind, video_id, tuple(json.loads(segment_ids)))


def forget_changes(connection: sqlite3.Connection, before_sequence: int) -> None:
    """See `Catalog.forget_changes`."""
    connection.execute(
        "DELETE FROM changes WHERE sequence < min(?, (SELECT max(sequence) FROM changes))", (before_sequence,)
    )
