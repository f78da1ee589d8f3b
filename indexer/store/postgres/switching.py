"""The generations of an index in PostgreSQL, for the process that makes, switches and removes them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from indexer.errors import IndexBusyError, IndexNotFoundError
from indexer.store.postgres.address import PostgresAddress
from indexer.store.postgres.catalog import PostgresCatalog, index_exists
from indexer.store.postgres.connections import StoreConnection, connect, translating
from indexer.store.postgres.generations import drop_generation, list_generations, read_successors
from indexer.store.records import FIRST_GENERATION, IndexFacts, Successor

_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('xclip reindex ' || %s, 0))"


class SchemaGenerations:
    """Of the index at an address; the contract stands at
    `indexer.store.sqlite.switching.DirectoryGenerations`."""

    def __init__(self, address: str) -> None:
        self._text = address
        self._address = PostgresAddress.parse(address)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let only one process at a time make, change or remove other generations than the current one. The
        lock goes with its connection."""
        if not index_exists(self._text):
            raise IndexNotFoundError(f"there is no index in {self._address.name}")
        with contextlib.closing(connect(self._address, self._address.schema)) as connection:
            with translating(self._address.name):
                (is_ours,) = connection.execute(_LOCK, (self._address.schema,)).fetchone() or (False,)
            if not is_ours:
                raise IndexBusyError(f"another process is reindexing {self._address.name}")
            yield

    @contextlib.contextmanager
    def _connected(self) -> Iterator[StoreConnection]:
        connection = connect(self._address, self._address.schema)
        with contextlib.closing(connection), translating(self._address.name):
            yield connection

    def numbers(self) -> list[int]:
        """Of the generations that there are, ascending."""
        with self._connected() as connection:
            return list_generations(connection, self._address)

    def successors(self) -> dict[int, Successor | None]:
        """For each generation, which one takes the changes instead."""
        with self._connected() as connection:
            return read_successors(connection, self._address)

    def open_current(self) -> PostgresCatalog:
        """The current generation."""
        return PostgresCatalog.open(self._text)

    def open(self, number: int, *, although_superseded: bool = False) -> PostgresCatalog:
        """A generation, the current one or not."""
        return PostgresCatalog.open_generation(self._text, number, although_superseded=although_superseded)

    def create(self, facts: IndexFacts, *, successor_of: int) -> PostgresCatalog:
        """A new, empty generation."""
        number = max([FIRST_GENERATION, *self.numbers()]) + 1
        return PostgresCatalog.create(self._text, facts, generation=number, successor_of=successor_of)

    def remove(self, number: int) -> None:
        """Remove a generation, and what this machine has derived from it."""
        with self._connected() as connection, connection.transaction():
            drop_generation(connection, self._address, number)
        shutil.rmtree(self._address.cache_directory(number), ignore_errors=True)
