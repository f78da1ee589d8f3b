"""Which generation of an index came after this one: one row of a catalog, absent while it is the current one.

A catalog with that row takes no more changes: a process that still has it open finds the row in its next
transaction. `indexer.store.sqlite.generations` says how a switch goes.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from indexer.errors import IndexDamagedError
from indexer.store.sqlite.integrity import checksum_of_row

SCHEMA = """
CREATE TABLE succession (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    generation INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    row_crc32 INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class Successor:
    """The generation that takes the changes instead of this one.

    Attributes:
        generation: its number.
        epoch: higher with each switch of an index; 0 in a generation that has yet to become the current one.
    """

    generation: int
    epoch: int


def read_successor(connection: sqlite3.Connection) -> Successor | None:
    """None in the current generation. Raises IndexDamagedError."""
    rows = connection.execute("SELECT generation, epoch, row_crc32 FROM succession").fetchall()
    if not rows:
        return None
    generation, epoch, checksum = rows[0]
    if len(rows) > 1 or checksum_of_row((generation, epoch)) != checksum:
        raise IndexDamagedError(
            "the catalog is damaged: what it says of its successor is not what was written; restore a backup"
        )
    return Successor(generation, epoch)


def write_successor(connection: sqlite3.Connection, successor: Successor | None) -> None:
    """Replace the row, or take it away, within the caller's transaction.

    The commit is what makes another generation the current one.
    """
    connection.execute("DELETE FROM succession")
    if successor is not None:
        row = (successor.generation, successor.epoch)
        connection.execute("INSERT INTO succession VALUES (1, ?, ?, ?)", (*row, checksum_of_row(row)))
