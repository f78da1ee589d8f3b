"""What every module of this store works with: connections and transactions.

A connection is used by one thread at a time. Where the thread's work is cancelled
(`indexer.store.cancellation`), a statement under way is ended. A transaction that changes something first
looks whether another generation of the index has taken over (`indexer.store.sqlite.generations`).
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from indexer.errors import (
    IndexBusyError,
    IndexDamagedError,
    IndexFullError,
    IndexNotFoundError,
    IndexReadOnlyError,
    IndexStorageError,
    IndexSupersededError,
    QueryTimeoutError,
    SearchCancelledError,
)
from indexer.store.cancellation import cancellation
from indexer.store.checksums import checksum_of_row
from indexer.store.filters import is_within
from indexer.store.records import Successor
from indexer.store.sqlite.disk import is_read_only, keep_reserve, read_only_uri, release_reserve, state_of
from indexer.store.text import folded, is_below, plain_uri

CONTAINS, IS_BELOW, IS_WITHIN = "xclip_contains", "xclip_is_below", "xclip_is_within"
PLAIN_URI = "xclip_plain_uri"
_FUNCTIONS: Final[tuple[tuple[str, int, Callable[..., Any]], ...]] = (
    (CONTAINS, 2, lambda text, part: text is not None and part in folded(text)),
    (IS_BELOW, 2, lambda uri, folder: uri is not None and is_below(uri, folder)),
    (IS_WITHIN, 2, is_within),
    (PLAIN_URI, 1, lambda uri: None if uri is None else plain_uri(uri)),
)
"""What filters call on every connection: name, number of arguments, function. NULL fulfils nothing."""

SYNCHRONOUS: Final = "FULL"
"""A commit is on disk before it is acknowledged: it survives a machine that loses its power."""

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer waits for another one before it gives up."""

_SQLITE_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What a statement raises; the latter where SQLite names a damaged part of the schema that is no text."""

_DAMAGE_CODES = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    # All statements are ours and fit the schema, and what they store is checked before: a statement that does
    # not fit, a constraint that does not hold or a value that is too long mean that the file is not ours any
    # more.
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_MISMATCH,
)
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_REFUSED_CODES = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOLFS,
)
_UNWRITABLE_CODES = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_NO_SPACE_TO_READ = (sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP, sqlite3.SQLITE_IOERR_SHMOPEN)
_WAL_LIMIT_BYTES = 64 << 20
VALUES_AT_ONCE = 1_000
"""Values that one statement looks for, or rows that it gives: a few milliseconds' work."""
_STEPS_BETWEEN_CHECKS = 50_000
"""Of SQLite's virtual machine, until it asks whether to go on. On columns these take a millisecond or two; on
the largest metadata, which a step may parse, some tenths of a second. Asking takes Python's lock, for which a
busy process waits milliseconds: more often would slow down every query there."""

NUM_READERS: Final = 4
MIN_ROWS: Final = 64
"""Fewer are read sooner than threads are woken."""

Changed = TypeVar("Changed")

Rows = dict[int, Sequence[Any]]
"""Rows by the id of their segment."""

Read = Callable[[sqlite3.Connection, Sequence[int]], Rows]
"""Those of the ids that exist, as one connection sees them."""


@dataclass(frozen=True)
class Transaction:
    """A writing transaction under way. Callers hand it from method to method; only the store looks inside."""

    connection: sqlite3.Connection


class ConnectionPool:
    """Connections that are lent to a thread for one piece of work and then kept for the next.

    A pool, not one connection per thread: threads of a server come and go, and a connection that outlives its
    thread would never be closed. What SQLite raises becomes an error of `indexer.errors`: IndexDamagedError,
    IndexBusyError, IndexFullError or IndexStorageError.
    """

    def __init__(self, path: Path, *, although_superseded: bool = False) -> None:
        """Open nothing yet.

        Args:
            path: the database.
            although_superseded: whether `transaction` changes a catalog that another generation has
                superseded; for the process that brings it up to date.
        """
        self._path = path
        self._although_superseded = although_superseded
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._readers: ThreadPoolExecutor | None = None
        self._closed = False
        self._process_id = os.getpid()
        self.is_read_only = is_read_only(path)
        self._state = state_of(path) if self.is_read_only else ()

    @contextlib.contextmanager
    def reading(self, limit_seconds: float = math.inf) -> Iterator[sqlite3.Connection]:
        """A connection on which every statement sees the newest commit.

        A statement under way ends where the thread's work is cancelled.

        Args:
            limit_seconds: how long SQLite may work inside the block.

        Raises:
            SearchCancelledError: the work was cancelled.
            QueryTimeoutError: it took longer.
        """
        connection = self._take()
        end, cancelled = time.monotonic() + limit_seconds, cancellation()

        def must_stop() -> bool:
            return (cancelled is not None and cancelled.is_set()) or time.monotonic() > end

        if cancelled is not None or limit_seconds < math.inf:
            connection.set_progress_handler(must_stop, _STEPS_BETWEEN_CHECKS)
        try:
            yield connection
        except _SQLITE_ERRORS as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
                raise translated(error, self._path) from error
            if cancelled is not None and cancelled.is_set():
                raise SearchCancelledError("the search was cancelled") from None
            raise QueryTimeoutError(
                f"finding what the filter matches takes longer than {limit_seconds:g} seconds"
            ) from None
        finally:
            connection.set_progress_handler(None, 0)
            self._give_back(connection)

    @contextlib.contextmanager
    def snapshot(self, limit_seconds: float = math.inf) -> Iterator[sqlite3.Connection]:
        """A connection on which all statements see the same state; otherwise as `reading`."""
        with self.reading(limit_seconds) as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.rollback()

    @contextlib.contextmanager
    def transaction(self, *, although_superseded: bool = False) -> Iterator[sqlite3.Connection]:
        """A writing transaction: committed, and on disk, at the end of the block; undone on any exception.

        Raises:
            IndexSupersededError: another generation of the index is the current one.
            IndexReadOnlyError: it lies where nothing can be written.
        """
        if self.is_read_only:
            raise _read_only(self._path)
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                may_be = although_superseded or self._although_superseded
                if not may_be and (successor := read_successor(connection)):
                    raise IndexSupersededError(successor.generation)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.rollback()
                raise

    @contextlib.contextmanager
    def joined(self, transaction: Transaction | None) -> Iterator[sqlite3.Connection]:
        """The connection of this transaction, which its owner ends, or a transaction for the block alone."""
        if transaction is not None:
            yield transaction.connection
            return
        with self.transaction() as connection:
            yield connection

    def even_if_full(self, change: Callable[[], Changed]) -> Changed:
        """What `change`, a transaction of its own that makes space, gives. On a full disk it is tried again
        with the space that was kept for it."""
        try:
            return change()
        except IndexFullError:
            if not release_reserve(self._path):
                raise
        try:
            return change()
        finally:
            keep_reserve(self._path)

    def rows_of(self, statement: str, values: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """The rows that `statement` gives for these values, which it reads from `json_each(?)`; each block of
        them with a connection of its own, none of which is held between the blocks."""
        for first in range(0, len(values), VALUES_AT_ONCE):
            with self.reading() as connection:
                block = json.dumps(list(values[first : first + VALUES_AT_ONCE]))
                rows = connection.execute(statement, (block,)).fetchall()
            yield from rows

    def read_rows(self, read: Read, ids: Sequence[int]) -> Rows:
        """What `read` gives for all of the ids; many are read over several connections in parallel.

        What the operating system does not hold of a catalog comes from the disk, page after page, each waited
        for; a disk answers several readers in about the time of one. A video that is deleted meanwhile may
        be returned in part.
        """
        if len(ids) < MIN_ROWS:
            return self._read(read, ids)
        in_order = sorted(set(ids))  # Neighbours share pages.
        size = -(-len(in_order) // NUM_READERS)
        first, *others = (in_order[start : start + size] for start in range(0, len(in_order), size))
        read_by_others = [self._submit(read, part) for part in others]
        found = self._read(read, first)
        for part in read_by_others:
            found.update(part.result())
        return found

    def close(self) -> None:
        """Close what is idle now, and what is lent out when it comes back; let the reading threads end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            readers, self._readers = self._readers, None
        for connection in idle:
            connection.close()
        if readers is not None:
            readers.shutdown()

    def _submit(self, read: Read, ids: Sequence[int]) -> Future[Rows]:
        with self._lock:
            if self._closed:
                raise RuntimeError("this catalog is closed")
            if self._readers is None:
                self._readers = ThreadPoolExecutor(NUM_READERS - 1, thread_name_prefix="catalog-reading")
            # In this thread's context, where it stands that the work was cancelled.
            return self._readers.submit(contextvars.copy_context().run, self._read, read, ids)

    def _read(self, read: Read, ids: Sequence[int]) -> Rows:
        with self.reading() as connection:
            return read(connection, ids)

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise RuntimeError("this catalog is closed")
            if self._process_id != os.getpid():
                # After a fork: SQLite connections must not be used, nor closed, in the child.
                raise RuntimeError("this catalog was opened by another process; open it again in this one")
            if self.is_read_only and (state := state_of(self._path)) != self._state:
                self._state, outdated, self._idle = state, self._idle, []
                for connection in outdated:
                    connection.close()
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
        if self.is_read_only:
            uri = read_only_uri(self._path)
        try:
            connection = sqlite3.connect(
                uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            if self._path.exists():
                raise translated(error, self._path) from error
            raise IndexNotFoundError(f"the catalog {self._path} does not exist") from error
        try:
            self._make_shared_memory(connection)
            for name, num_arguments, function in _FUNCTIONS:
                connection.create_function(name, num_arguments, function, deterministic=True)
            connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")  # Damaged pages are noticed when they are read.
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        except _SQLITE_ERRORS as error:
            connection.close()
            raise translated(error, self._path) from error
        return connection

    def _make_shared_memory(self, connection: sqlite3.Connection) -> None:
        """The first connection of all makes the file that SQLite shares between processes, 32 KiB, to read
        too: on a full disk with the space that was kept."""
        try:
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in _NO_SPACE_TO_READ or not release_reserve(self._path):
                raise
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
            keep_reserve(self._path)


class PinnedConnection(ConnectionPool):
    """Instead of a pool: one connection in one reading transaction, so that all reading through it is of
    one moment. For one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path)
        self._pinned = connection

    @contextlib.contextmanager
    def reading(self, limit_seconds: float = math.inf) -> Iterator[sqlite3.Connection]:
        """The connection. Limits are set, and SQLite's errors translated, by the pool that it came from."""
        yield self._pinned

    snapshot = reading

    def transaction(self, *, although_superseded: bool = False) -> NoReturn:
        """Raises RuntimeError: a snapshot is only read."""
        raise RuntimeError("a snapshot of a catalog cannot be changed")

    def read_rows(self, read: Read, ids: Sequence[int]) -> Rows:
        """What `read` gives for all of the ids."""
        return read(self._pinned, ids)


def translated(error: sqlite3.DatabaseError | UnicodeDecodeError, path: Path) -> Exception:
    """What SQLite says about the database in `path`, as one of our errors; misuse stays as it is."""
    if isinstance(error, UnicodeDecodeError):
        said = error.object.decode("utf-8", "backslashreplace")
        return IndexDamagedError(f"the catalog {path} is damaged: {said}")
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Python itself says so little only of a text that is not UTF-8.
        is_damage = isinstance(error, sqlite3.OperationalError)
        return IndexDamagedError(f"the catalog {path} is damaged: {error}") if is_damage else error
    kind = code & 0xFF  # The rest are sub-kinds.
    if kind in _DAMAGE_CODES:
        return IndexDamagedError(f"the catalog {path} is damaged: {error}")
    if kind in _BUSY_CODES:
        return IndexBusyError(
            f"another process has been writing to {path} for {BUSY_TIMEOUT_SECONDS:.0f} seconds;"
            " nothing was changed; try again"
        )
    if kind == sqlite3.SQLITE_FULL:
        return IndexFullError(f"the disk is full: {path} cannot grow; nothing was changed")
    if kind in _UNWRITABLE_CODES and is_read_only(path):
        return _read_only(path)
    if kind in _REFUSED_CODES:
        advice = (
            "; readers write too, to files next to it: its folder must be one that this user may write to"
        )
        return IndexStorageError(
            f"the disk refused a read or a write of {path}: {error} ({error.sqlite_errorname})"
            f"{advice if kind in _UNWRITABLE_CODES else ''}"
        )
    return error


def _read_only(path: Path) -> IndexReadOnlyError:
    return IndexReadOnlyError(
        f"{path} lies on a read-only file system: it can be searched, not changed. Where it was not closed"
        f" (there is a {path.name}-wal) or is of an older format, open it once where it can be written to, as"
        " with xclip-search info"
    )


# The generation that came after this one


def read_successor(connection: sqlite3.Connection) -> Successor | None:
    """None in the current generation. Raises IndexDamagedError."""
    rows = connection.execute("SELECT generation, epoch, row_crc32 FROM succession").fetchall()
    if not rows:
        return None
    generation, epoch, checksum = rows[0]
    if len(rows) > 1 or checksum_of_row((generation, epoch)) != checksum:
        raise IndexDamagedError(
            "the catalog is damaged: the row that names its successor does not match its checksum;"
            " restore a backup"
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
