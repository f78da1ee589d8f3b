"""The change log: every change of the catalog under an increasing number, so that any process can follow."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from indexer.store.change_rows import COLUMNS, changes_after, is_whole_change, row_of_change
from indexer.store.records import Change, ChangeKind


def write_change(
    connection: sqlite3.Connection,
    kind: ChangeKind,
    video_id: str,
    segment_ids: Sequence[int],
    changed_at: float,
) -> int:
    """Log a change within the caller's transaction and return its number."""
    row = row_of_change(next_sequence(connection), kind, video_id, segment_ids, changed_at)
    connection.execute(f"INSERT INTO changes ({COLUMNS}, row_crc32) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    return int(row[0])


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
        f"SELECT {COLUMNS}, row_crc32 FROM changes WHERE sequence >= ? ORDER BY sequence LIMIT ?",
        (sequence, limit + 1),
    ).fetchall()
    return changes_after(sequence, rows, limit)


def damaged_changes(connection: sqlite3.Connection) -> Iterator[int]:
    """Numbers of the changes that are not what was written."""
    for row in connection.execute(f"SELECT {COLUMNS}, row_crc32 FROM changes ORDER BY sequence"):
        if not is_whole_change(row):
            yield row[0]


def forget_changes(connection: sqlite3.Connection, before_sequence: int) -> None:
    """See `Catalog.forget_changes`."""
    connection.execute(
        "DELETE FROM changes WHERE sequence < min(?, (SELECT max(sequence) FROM changes))", (before_sequence,)
    )
