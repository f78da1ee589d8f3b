"""The row of counters, and the change log: every change under an increasing number without gaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from indexer.errors import IndexDamagedError
from indexer.store.change_rows import COLUMNS, changes_after, is_whole_change, row_of_change
from indexer.store.postgres.connections import Connections, StoreConnection, Table
from indexer.store.records import Change, ChangeKind, StoreState


@dataclass(frozen=True)
class Counters:
    """The numbers given last, and the totals."""

    sequence: int
    last_video: int
    last_segment: int
    last_job: int
    num_segments: int


COUNTERS: Final = "sequence, last_video, last_segment, last_job, num_segments"
"""In the order of the fields of `Counters`."""

CHANGES: Final = Table("changes", f"{COLUMNS}, row_crc32")


def read_counters(connection: StoreConnection) -> Counters:
    """As they are; within a writing transaction of videos, as no other changes them."""
    row = connection.execute(f"SELECT {COUNTERS} FROM counters").fetchone()
    return Counters(*(row or without_counters()))


def write_change(
    connection: StoreConnection,
    kind: ChangeKind,
    video_id: str,
    segment_ids: Sequence[int],
    changed_at: float,
) -> None:
    """Log a change within the caller's transaction, and count it."""
    row = row_of_change(read_counters(connection).sequence + 1, kind, video_id, segment_ids, changed_at)
    CHANGES.insert(connection, [row])
    sign = {"add": 1, "update": 0, "delete": -1}[kind]
    connection.execute(
        "UPDATE counters SET sequence = %s, token = %s, num_videos = num_videos + %s,"
        " num_segments = num_segments + %s",
        (row[0], row[5], sign, sign * len(segment_ids)),
    )


def read_state(connections: Connections, since: int | None, limit: int) -> StoreState:
    """The last change, the totals, and the changes since, where asked, of one moment."""
    statement = "SELECT sequence, token, num_videos, num_segments FROM counters"
    if since is None:
        rows = connections.rows(statement)
        return StoreState(*(rows[0] if rows else without_counters()))
    with connections.snapshot() as connection:
        row = connection.execute(statement).fetchone() or without_counters()
        changes = () if since == row[0] else read_changes(connection, since, limit)
        sequence, token, num_videos, num_segments = row
        return StoreState(sequence, token, num_videos, num_segments, changes)


def read_changes(connection: StoreConnection, sequence: int, limit: int) -> list[Change]:
    """At most `limit` changes after `sequence`."""
    # One statement: the check and the rows are of the same moment.
    rows = connection.execute(
        f"SELECT {COLUMNS}, row_crc32 FROM changes WHERE sequence >= %s ORDER BY sequence LIMIT %s",
        (sequence, limit + 1),
    ).fetchall()
    return changes_after(sequence, rows, limit)


def read_token(connection: StoreConnection, sequence: int) -> str | None:
    """Of a change; None where the log does not hold it, "" for 0."""
    row = connection.execute("SELECT token FROM changes WHERE sequence = %s", (sequence,)).fetchone()
    if row is None:
        return "" if sequence == 0 else None
    return str(row[0])


def forget_changes(connection: StoreConnection, before_sequence: int) -> None:
    """Drop entries below this number, but for the last one."""
    connection.execute(
        "DELETE FROM changes WHERE sequence < least(%s, (SELECT sequence FROM counters))", (before_sequence,)
    )


def damaged_changes(connection: StoreConnection) -> Iterator[int]:
    """Numbers of the changes that are not what was written."""
    for row in connection.execute(f"SELECT {COLUMNS}, row_crc32 FROM changes ORDER BY sequence"):
        if not is_whole_change(row):
            yield row[0]


def without_counters() -> NoReturn:
    """Raises IndexDamagedError."""
    raise IndexDamagedError("the catalog is damaged: its row of counters is gone; restore a backup")
