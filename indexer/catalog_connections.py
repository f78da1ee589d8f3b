"""Connections to one SQLite file for many threads: each is used by one thread at a time."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from indexer.errors import IndexBusyError, IndexDamagedError, IndexNotFoundError

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer waits for another one before it gives up."""

_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_WAL_LIMIT_BYTES = 64 << 20


class ConnectionPool:
    """Connections that are lent to a thread for one piece of work and then kept for the next.

    A pool, not one connection per thread: threads of a server come and go, and a connection that outlives its
    thread would never be closed. Everything raised for a damaged file is an IndexDamagedError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._process_id = os.getpid()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection on which every statement sees the newest commit."""
        connection = self._take()
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error
        finally:
            self._give_back(connection)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection on which all statements see the same state."""
        with self.reading() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.rollback()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A writing transaction: committed, and on disk, at the end of the block; undone on any exception."""
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.rollback()
                raise

    def close(self) -> None:
        """Close what is idle now, and what is lent out when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise RuntimeError("this catalog is closed")
            if self._process_id != os.getpid():
                # After a fork: SQLite connections must not be used, nor closed, in the child.
                raise RuntimeError("this catalog was opened by another process; open it again in this one")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: never make an empty database where the file is gone.
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        try:
            connection = sqlite3.connect(
                uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            if self._path.exists():
                raise
            raise IndexNotFoundError(f"the catalog {self._path} does not exist") from error
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        except sqlite3.DatabaseError as error:
            connection.close()
            raise self._translated(error) from error
        return connection

    def _translated(self, error: sqlite3.DatabaseError) -> Exception:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _DAMAGE_CODES:
            return IndexDamagedError(f"the catalog {self._path} is damaged: {error}")
        if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return IndexBusyError(
                f"another process has been writing to {self._path} for {BUSY_TIMEOUT_SECONDS:.0f} seconds;"
                " nothing was changed; try again"
            )
        return error
