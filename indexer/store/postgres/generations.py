"""Which of the generations of an index in PostgreSQL is the current one.

An index that was reindexed (`indexer.maintenance.reindexing`) has several generations, each of them a schema.

    SCHEMA          generation 1, and the table current_generation, which names the current one; absent: 1
    SCHEMA_g2       generation 2, and so on

Every generation but the current one has a row that names another one and refuses changes
(`indexer.store.postgres.connections`). A switch writes the row of one, takes that of the other away and
changes the name, in one transaction. Where generation 1 is removed, its schema stays, with the name alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from indexer.errors import IndexDamagedError
from indexer.store.checksums import checksum_of_row
from indexer.store.postgres.address import PostgresAddress
from indexer.store.records import FIRST_GENERATION, Successor

Connection = psycopg.Connection[tuple[Any, ...]]

POINTER_TABLE: Final = "current_generation"

SUCCESSOR: Final = "successor_generation, successor_epoch, successor_crc32"
"""Columns of `counters`."""

_MAKE_POINTER: Final = (
    "CREATE TABLE IF NOT EXISTS {} (only_row integer PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),"
    " generation integer NOT NULL, row_crc32 bigint NOT NULL)"
)


def named_generation(connection: Connection, address: PostgresAddress) -> int:
    """The current generation of an index; the first where there is no index. Raises IndexDamagedError."""
    table = f"{address.schema}.{POINTER_TABLE}"
    (is_there,) = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone() or (False,)
    if not is_there:
        return FIRST_GENERATION
    row = connection.execute(f"SELECT generation, row_crc32 FROM {table}").fetchone()
    if row is None or checksum_of_row(row[:1]) != row[1]:
        raise IndexDamagedError(
            f"the table {table}, which names the current generation, is not what was written"
        )
    return int(row[0])


def name_generation(connection: Connection, address: PostgresAddress, generation: int) -> None:
    """Name the current generation, within the caller's transaction."""
    table = f"{address.schema}.{POINTER_TABLE}"
    connection.execute(sql.SQL(_MAKE_POINTER).format(sql.Identifier(address.schema, POINTER_TABLE)))
    connection.execute(
        f"INSERT INTO {table} (generation, row_crc32) VALUES (%s, %s) ON CONFLICT (only_row)"
        " DO UPDATE SET generation = excluded.generation, row_crc32 = excluded.row_crc32",
        (generation, checksum_of_row((generation,))),
    )


def list_generations(connection: Connection, address: PostgresAddress) -> list[int]:
    """Numbers of the generations that there are, ascending."""
    rows = connection.execute(
        "SELECT nspname::text FROM pg_catalog.pg_namespace WHERE (nspname = %s OR nspname ~ %s)"
        " AND to_regclass(nspname || '.migrations') IS NOT NULL",
        (address.schema, f"^{address.schema}_g[0-9]+$"),
    ).fetchall()
    return sorted(int(name.removeprefix(address.schema).removeprefix("_g") or 1) for (name,) in rows)


def read_successor(connection: Connection, *, schema: str | None = None) -> Successor | None:
    """None in the current generation. schema: the connection's own where None. Raises IndexDamagedError."""
    counters = "counters" if schema is None else f"{schema}.counters"
    return successor_of(connection.execute(f"SELECT {SUCCESSOR} FROM {counters}").fetchone())


def successor_of(row: Sequence[Any] | None) -> Successor | None:
    """What a row that begins with the columns SUCCESSOR names, as `read_successor`."""
    if row is None:
        raise IndexDamagedError("the catalog is damaged: its row of counters is gone; restore a backup")
    generation, epoch, checksum = row[:3]
    if generation is None:
        return None
    if checksum_of_row((generation, epoch)) != checksum:
        raise IndexDamagedError(
            "the catalog is damaged: the row that names its successor does not match its checksum;"
            " restore a backup"
        )
    return Successor(generation, epoch)


def write_successor(
    connection: Connection, successor: Successor | None, *, schema: str | None = None
) -> None:
    """Name another generation, or none, within the caller's transaction. The commit is the switch. schema: as
    for `read_successor`."""
    values: tuple[int | None, ...] = (None, None, None)
    if successor is not None:
        row = (successor.generation, successor.epoch)
        values = (*row, checksum_of_row(row))
    connection.execute(
        f"UPDATE {'counters' if schema is None else f'{schema}.counters'}"
        " SET successor_generation = %s, successor_epoch = %s, successor_crc32 = %s",
        values,
    )


def read_successors(connection: Connection, address: PostgresAddress) -> dict[int, Successor | None]:
    """For each generation of an index, which one takes the changes instead. Raises IndexDamagedError."""
    return {
        number: read_successor(connection, schema=address.schema_of(number))
        for number in list_generations(connection, address)
    }


def drop_generation(connection: Connection, address: PostgresAddress, generation: int) -> None:
    """Remove a generation from the database; what it was named in stays. Waits for those who read it."""
    if generation != FIRST_GENERATION:
        connection.execute(f"DROP SCHEMA {address.schema_of(generation)} CASCADE")
        return
    rows = connection.execute(
        "SELECT relname::text FROM pg_catalog.pg_class WHERE relnamespace = %s::regnamespace"
        " AND relkind = 'r' AND relname != %s",
        (address.schema, POINTER_TABLE),
    ).fetchall()
    tables = sql.SQL(", ").join(sql.Identifier(address.schema, name) for (name,) in rows)
    connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(tables))
