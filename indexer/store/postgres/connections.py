"""What every module of this store works with: connections, transactions, and texts as PostgreSQL takes them.

Reading sees the newest commit with every statement (READ COMMITTED), and `snapshot` one moment (REPEATABLE
READ). Whoever changes videos locks the one row of `counters` first, which gives sequence numbers and ids:
they are committed in the order in which they were given, so that a follower that has read all above a number
never misses one that comes later. Changes of jobs lock the rows of their jobs alone.

PostgreSQL's texts hold no U+0000. Here U+0000 and U+0001 are stored as two characters each, U+0001 and
U+0001 or U+0002, which keeps the order by code points; all other texts are stored as they are.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar, cast

import psycopg
from psycopg import capabilities
from psycopg import errors as postgres
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.types.string import StrDumperUnknown, TextLoader
from psycopg_pool import ConnectionPool, PoolTimeout

from indexer.errors import (
    IndexBusyError,
    IndexDamagedError,
    IndexFullError,
    IndexNotFoundError,
    IndexReadOnlyError,
    IndexStorageError,
    IndexSupersededError,
    IndexUnavailableError,
    IndexVersionError,
    QueryTimeoutError,
    SearchCancelledError,
)
from indexer.store.cancellation import cancellation
from indexer.store.postgres.address import PostgresAddress
from indexer.store.postgres.generations import SUCCESSOR, named_generation, successor_of
from indexer.store.postgres.outage.availability import Availability, Sessions

MINIMUM_VERSION: Final = 150_000
"""PostgreSQL 15."""

MAX_CONNECTIONS: Final = 12
"""Of one process. A search uses one at a time; PostgreSQL's own default allows 100 of all processes."""

CONNECT_SECONDS: Final = 5
PROBE_SECONDS: Final = 2
"""The least that libpq takes for a limit."""

SILENCE_LIMIT_SECONDS: Final = 20.0
"""After which a command or a worker takes it that the database does not answer."""

CANCEL_SECONDS: Final = 1.0
LEND_SECONDS: Final = 30
"""How long a thread waits for one of the connections of its process."""

LOCK_SECONDS: Final = 30
"""How long a writer waits for another one before it gives up."""

IDLE_SECONDS: Final = 60
"""After which the server ends a writing transaction whose process does nothing (it was stopped, or its
machine is gone), so that others can write."""

MIN_ROWS_TO_COPY: Final = 16
"""Of one table. COPY takes a round trip of its own, and each row less."""

ROWS_AT_ONCE: Final = 1_000
"""Rows that one statement gives where there may be many."""

ROWS_OF_STREAM: Final = 20 if capabilities.has_stream_chunked() else 1
"""Rows of a stream that are received together, 140 kB of usual features; libpq before 17 gives one each."""

RECEIVED_BYTES: Final = 1 << 18
"""Room for what is received at once: as much as a socket holds. libpq begins with 16 kB, and being woken for
so little takes longer than copying it."""

_LIMIT_IDLING: Final = (
    f"set_config('idle_in_transaction_session_timeout', '{IDLE_SECONDS}s', true)"  # Until its end.
)

_AT_WORK: Final = "SELECT pid FROM pg_stat_activity WHERE usename = current_user AND state NOT LIKE 'idle%'"

_NOT_ANSWERING: Final = ("08", "57P")
"""How the states begin that a server ends connections with when it goes down, or cannot be reached."""

Row = tuple[Any, ...]
_Result = TypeVar("_Result")

_ESCAPED: Final = {"\0": "\x01\x01", "\x01": "\x01\x02"}
_UNESCAPED: Final = {escaped: character for character, escaped in _ESCAPED.items()}


def escaped(text: str) -> str:
    """A text as PostgreSQL takes it, see the head of this module."""
    if "\0" not in text and "\x01" not in text:
        return text
    return re.sub("[\0\x01]", lambda found: _ESCAPED[found.group()], text)


def unescaped(text: str) -> str:
    """What `escaped` was given."""
    if "\x01" not in text:
        return text
    return re.sub("\x01[\x01\x02]", lambda found: _UNESCAPED[found.group()], text)


def array_of(numbers: Iterable[int]) -> str:
    """Whole numbers as the text of an array, which psycopg makes of a list in ten times as long."""
    return f"{{{','.join(map(str, numbers))}}}"


class _TextDumper(StrDumperUnknown):
    def dump(self, obj: str) -> Any:
        return super().dump(escaped(obj))


class _TextReader(TextLoader):
    def load(self, data: Any) -> Any:
        text = super().load(data)
        return unescaped(text) if isinstance(text, str) else text


class StoreConnection(psycopg.Connection[Row]):
    """A connection whose statements end where the thread's work is cancelled, or takes longer than it may,
    or the server does not answer any more."""

    end_at: float = math.inf
    """Of `time.monotonic`."""

    availability: Availability | None = None
    silence_limit_seconds: float = math.inf

    def wait(self, gen: Any, interval: float = 0.05, timeout: float | None = None) -> Any:
        """Wait for the server, looking now and then whether to go on waiting."""
        return super().wait(self._watched(gen), interval, timeout)

    def _watched(self, gen: Generator[Any, Any, _Result]) -> Generator[Any, Any, _Result]:
        cancelled, cancel_at = cancellation(), 0.0
        waiting_since = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    waiting_since = time.monotonic()
                else:
                    self._check_answering(waiting_since)
                is_late = time.monotonic() > self.end_at or (cancelled is not None and cancelled.is_set())
                if not ready and is_late and time.monotonic() >= cancel_at:
                    # Once more after a while: on a busy machine it may not have come through.
                    cancel_at = time.monotonic() + 2 * CANCEL_SECONDS
                    self.cancel_safe(timeout=CANCEL_SECONDS)
                wanted = gen.send(ready)
        except StopIteration as stop:
            return cast(_Result, stop.value)

    def _check_answering(self, waiting_since: float) -> None:
        if self.availability is None:
            return
        session = (self.info.host, self.info.port, self.info.backend_pid)
        try:
            self.availability.check(waiting_since, self.silence_limit_seconds, session)
        except psycopg.OperationalError:
            self.pgconn.finish()  # What comes back later would be taken for the answer to something else.
            raise


class _ProbingConnection(StoreConnection):
    """A connection that is given up after a fixed time of silence."""

    def _check_answering(self, waiting_since: float) -> None:
        if time.monotonic() - waiting_since > PROBE_SECONDS:
            self.pgconn.finish()
            raise psycopg.OperationalError("it is silent")


@dataclass(frozen=True)
class Table:
    """Where rows go.

    types: of its columns, where copied rows are sent as PostgreSQL's own binary, which spares the digits of
    long bytes; without them as text. The binary form of texts knows nothing of `escaped`.
    """

    name: str
    columns: str
    types: tuple[str, ...] = ()

    def insertion(self, num_rows: int = 1) -> str:
        """SQL that stores so many rows; its values are theirs, one after another."""
        marks = f"({', '.join(['%s'] * len(self.columns.split(', ')))})"
        return f"INSERT INTO {self.name} ({self.columns}) VALUES {', '.join([marks] * num_rows)}"

    def insert(self, connection: StoreConnection, rows: Sequence[Row]) -> None:
        """Store rows of these columns, not in pipeline mode: many are copied."""
        if not rows:
            return
        with connection.cursor() as cursor:
            if len(rows) < MIN_ROWS_TO_COPY:
                cursor.executemany(self.insertion(), rows)
                return
            form = " (FORMAT BINARY)" if self.types else ""
            with cursor.copy(f"COPY {self.name} ({self.columns}) FROM STDIN{form}") as copy:
                if self.types:
                    copy.set_types(self.types)
                for row in rows:
                    copy.write_row(row)


@dataclass(frozen=True)
class Transaction:
    """A writing transaction under way. Callers hand it from method to method; only the store looks inside."""

    connection: StoreConnection


class Connections:
    """Connections to one generation of an index. What PostgreSQL raises becomes an error of
    `indexer.errors`.

    silence_limit_seconds: how long the server may be silent before IndexUnavailableError.
    """

    def __init__(
        self, address: PostgresAddress, generation: int, *, although_superseded: bool = False
    ) -> None:
        """Connect once. although_superseded: whether `transaction` changes a generation that another one has
        superseded. Raises IndexStorageError, IndexVersionError."""
        self._address = address
        self._generation = generation
        self.schema = address.schema_of(generation)
        self.where = f"schema {self.schema} of {address.conninfo}"
        self._although_superseded = although_superseded
        self._process_id = os.getpid()
        self._closed = False
        self.silence_limit_seconds = SILENCE_LIMIT_SECONDS
        # The first one by hand: a pool says only that it waited too long.
        with contextlib.closing(connect(address, self.schema)) as connection:
            self.is_read_only, server_time = connection.execute(
                "SELECT pg_is_in_recovery(), extract(epoch FROM clock_timestamp())::float8"
            ).fetchone() or (True, 0.0)
        self.clock_offset: float = server_time - time.monotonic()
        self._pool: ConnectionPool[StoreConnection] = ConnectionPool(
            address.conninfo,
            connection_class=StoreConnection,
            kwargs=_arguments(self.schema),
            configure=_configure,
            check=_check_alive,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            reconnect_timeout=1.0,  # Soon given up, so that the next one who asks begins a new attempt.
            num_workers=2,
            open=True,
        )
        self.availability = Availability(lambda: _probe(address), address.name)

    @contextlib.contextmanager
    def reading(self, limit_seconds: float = math.inf) -> Iterator[StoreConnection]:
        """A connection on which every statement sees the newest commit.

        Args:
            limit_seconds: how long the server may work inside the block.

        Raises:
            SearchCancelledError: the work was cancelled.
            QueryTimeoutError: it took longer.
        """
        if self._closed:
            raise RuntimeError("this catalog is closed")
        if self._process_id != os.getpid():  # After a fork: its connections are the parent's.
            raise RuntimeError("this catalog was opened by another process; open it again in this one")
        try:
            with self._lent() as connection:
                connection.end_at = time.monotonic() + limit_seconds
                try:
                    yield connection
                finally:
                    connection.end_at = math.inf
        except postgres.QueryCanceled as error:
            cancelled = cancellation()
            if cancelled is not None and cancelled.is_set():
                raise SearchCancelledError("the search was cancelled") from None
            if limit_seconds < math.inf:
                raise QueryTimeoutError(
                    f"finding what the filter matches takes longer than {limit_seconds:g} seconds"
                ) from None
            raise translated(error, self.where) from error
        except (postgres.UndefinedTable, postgres.InvalidSchemaName) as error:
            raise self._find_successor() or translated(error, self.where) from error
        except (psycopg.Error, PoolTimeout) as error:
            raise translated(error, self.where) from error

    def _find_successor(self) -> IndexSupersededError | None:
        """Where this generation was removed, because another one is the current one."""
        with contextlib.closing(connect(self._address, self.schema)) as connection:
            current = named_generation(connection, self._address)
        return None if current == self._generation else IndexSupersededError(current)

    @contextlib.contextmanager
    def _lent(self) -> Iterator[StoreConnection]:
        asked_at, limit = time.monotonic(), self.silence_limit_seconds
        while True:
            self.availability.raise_if_away()
            try:
                connection = self._pool.getconn(timeout=min(LEND_SECONDS, limit / 3))
                break
            except PoolTimeout:
                self.availability.check(asked_at, limit)
                if time.monotonic() - asked_at > LEND_SECONDS:
                    raise
        connection.availability, connection.silence_limit_seconds = self.availability, limit
        try:
            yield connection
        finally:
            if connection.closed:
                self.availability.ask()
            self._pool.putconn(connection)

    @contextlib.contextmanager
    def snapshot(self, limit_seconds: float = math.inf) -> Iterator[StoreConnection]:
        """A connection on which all statements see the same moment; otherwise as `reading`."""
        with self.reading(limit_seconds) as connection:
            try:
                with connection.pipeline():  # So that BEGIN goes with the first statement.
                    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    yield connection
            finally:
                _roll_back(connection)

    @contextlib.contextmanager
    def transaction(
        self,
        *,
        although_superseded: bool = False,
        of_jobs: bool = False,
        first: Callable[[StoreConnection], None] | None = None,
        is_pipeline: bool = False,
    ) -> Iterator[StoreConnection]:
        """A writing transaction: committed, and on disk, at the end of the block; undone on any exception.

        Args:
            although_superseded: whether it changes a generation that another one has superseded.
            of_jobs: whether it changes rows of jobs alone, next to other writers.
            first: executes what goes to the server together with the lock.
            is_pipeline: whether the last of what the block executes goes together with the commit. It cannot
                use `rowcount` and COPY then, and what the server refuses may be raised at its end.

        Raises:
            IndexSupersededError: another generation of the index is the current one.
            IndexReadOnlyError: the server takes no changes.
            IndexUnavailableError: it does not answer; where that was the answer to the commit, the change may
                have been made.
        """
        if self.is_read_only:
            raise _read_only(self.where)
        # Both locks keep off the one that another generation is made current with, FOR UPDATE.
        lock = "FOR KEY SHARE" if of_jobs else "FOR NO KEY UPDATE"
        is_committing = False
        with self.reading() as connection:
            try:
                with contextlib.ExitStack() as pipeline:
                    pipeline.enter_context(connection.pipeline())
                    connection.execute("BEGIN")
                    locked = connection.execute(f"SELECT {SUCCESSOR}, {_LIMIT_IDLING} FROM counters {lock}")
                    if first is not None:
                        first(connection)
                    successor = successor_of(locked.fetchone())
                    if successor and not (although_superseded or self._although_superseded):
                        raise IndexSupersededError(successor.generation)
                    if not is_pipeline:
                        pipeline.close()
                    yield connection
                    is_committing = True
                    connection.execute("COMMIT")
            except psycopg.OperationalError as error:
                if not (is_committing and _is_unanswered(connection)):
                    raise
                raise IndexUnavailableError(
                    f"the database does not answer or refuses, {self.where}: {_first_line(error)}; it is not"
                    " known whether the change was made; make it again: the same content is the same video"
                ) from error
            finally:
                _roll_back(connection)

    @contextlib.contextmanager
    def joined(
        self,
        transaction: Transaction | None,
        *,
        of_jobs: bool = False,
        first: Callable[[StoreConnection], None] | None = None,
        is_pipeline: bool = False,
    ) -> Iterator[StoreConnection]:
        """The connection of this transaction, which its owner ends, or a transaction for the block alone."""
        if transaction is not None:
            if first is not None:
                first(transaction.connection)
            yield transaction.connection
            return
        with self.transaction(of_jobs=of_jobs, first=first, is_pipeline=is_pipeline) as connection:
            yield connection

    def rows(self, statement: str, values: Sequence[Any] = (), *, binary: bool = False) -> list[Row]:
        """The rows that one statement gives now. binary: whether they hold bytes or many numbers."""
        with self.reading() as connection:
            return connection.execute(statement, values, binary=binary).fetchall()

    @contextlib.contextmanager
    def streaming(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Iterator[Row]]:
        """The rows that one statement gives now, which may hold long bytes, while the server still sends the
        rest: so nobody waits for the other, and little memory is used again and again."""
        with self.reading() as connection, connection.cursor(binary=True) as cursor:
            if connection.pgconn.pipeline_status != PipelineStatus.OFF:  # Which knows no parts of an answer.
                yield iter(cursor.execute(statement, values))
                return
            # Closed also where not all were taken, so that the connection is of use again.
            stream = cast(Generator[Row], cursor.stream(statement, values, size=ROWS_OF_STREAM))
            with contextlib.closing(stream) as rows:
                yield rows

    def close(self) -> None:
        """Close what is idle now, and what is lent out when it comes back."""
        if not self._closed:
            self._closed = True
            self.availability.close()
            if self._process_id == os.getpid():
                self._pool.close()


class PinnedConnections(Connections):
    """Instead of a pool: one connection in one reading transaction, so that all reading through it is of one
    moment. For one thread."""

    def __init__(self, origin: Connections, connection: StoreConnection) -> None:
        self.__dict__.update(vars(origin))
        self._pinned = connection

    @contextlib.contextmanager
    def reading(self, limit_seconds: float = math.inf) -> Iterator[StoreConnection]:
        """The connection. Limits are set, and errors translated, by the pool that it came from."""
        yield self._pinned

    snapshot = reading

    def transaction(self, **_: object) -> NoReturn:
        """Raises RuntimeError: a snapshot is only read."""
        raise RuntimeError("a snapshot of a catalog cannot be changed")

    def close(self) -> None:
        """Nothing: the pool that it came from closes it."""


@contextlib.contextmanager
def translating(where: str) -> Iterator[None]:
    """What PostgreSQL raises in the block becomes an error of ours. where: names the index in messages."""
    try:
        yield
    except psycopg.Error as error:
        raise translated(error, where) from error


def connect(address: PostgresAddress, schema: str) -> StoreConnection:
    """One connection outside of any pool. Raises IndexStorageError, IndexNotFoundError, IndexVersionError."""
    with translating(f"schema {schema} of {address.conninfo}"):
        connection = StoreConnection.connect(address.conninfo, **_arguments(schema))
        try:
            _configure(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _arguments(schema: str) -> dict[str, Any]:
    return {
        "autocommit": True,
        "connect_timeout": CONNECT_SECONDS,
        "application_name": "xclip-search",
        # Where what is sent is not even received: the operating system gives the connection up.
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "client_encoding": "utf8",
        # The schema alone: what else is on the path must not be found by our names.
        "options": f"-c search_path={schema} -c lock_timeout={LOCK_SECONDS}s -c jit=off",
    }


def _configure(connection: StoreConnection) -> None:
    connection.adapters.register_dumper(str, _TextDumper)
    connection.adapters.register_loader("text", _TextReader)
    if connection.info.server_version < MINIMUM_VERSION:
        raise IndexVersionError("PostgreSQL 15 or later is needed")
    if connection.info.parameter_status("server_encoding") != "UTF8":
        raise IndexVersionError("the database must be of encoding UTF8: CREATE DATABASE ... ENCODING 'UTF8'")
    # What is acknowledged is on disk. Stronger settings of the server (remote_apply) stay.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') = 'off'"
    )
    # libpq makes room for this answer, and keeps it.
    connection.execute(f"SELECT repeat(' ', {RECEIVED_BYTES // 2})")


def _probe(address: PostgresAddress) -> Sessions:
    options: dict[str, Any] = {"connect_timeout": PROBE_SECONDS, "autocommit": True}
    connection = _ProbingConnection.connect(address.conninfo, **options)
    with contextlib.closing(connection):
        rows = connection.execute(_AT_WORK).fetchall()
        return Sessions(connection.info.host, connection.info.port, frozenset(row[0] for row in rows))


def _check_alive(connection: StoreConnection) -> None:
    """Raise OperationalError where the server has ended an idle connection; without asking it."""
    if connection.closed or select.select([connection.fileno()], [], [], 0)[0]:
        connection.close()
        raise psycopg.OperationalError("the server has closed the connection")


def _is_unanswered(connection: StoreConnection) -> bool:
    """Whether the answer to the last statement will not be read. libpq need not have noticed yet that a
    connection is broken: then it takes the statement for one that is being executed."""
    return connection.closed or connection.info.transaction_status == TransactionStatus.ACTIVE


def _roll_back(connection: StoreConnection) -> None:
    if _is_unanswered(connection):
        connection.close()
    elif connection.info.transaction_status != TransactionStatus.IDLE:
        connection.execute("ROLLBACK")


def translated(error: Exception, where: str) -> Exception:
    """What PostgreSQL says about an index, as one of our errors. where: names the index in messages."""
    said = _first_line(error)
    if isinstance(error, postgres.LockNotAvailable | postgres.DeadlockDetected):
        return IndexBusyError(
            f"another process has been writing to {where} for {LOCK_SECONDS} seconds; nothing was changed;"
            " try again"
        )
    if isinstance(error, postgres.DiskFull):
        return IndexFullError(f"the disk of the database is full: {where} cannot grow; nothing was changed")
    if isinstance(error, postgres.ReadOnlySqlTransaction):
        return _read_only(where)
    if isinstance(error, postgres.InvalidCatalogName):
        return IndexNotFoundError(f"there is no index in {where}: {said}")
    if isinstance(error, PoolTimeout):
        return IndexBusyError(f"all connections of this process to {where} are in use; try again")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and (
        error.sqlstate is None or error.sqlstate.startswith(_NOT_ANSWERING)
    ):
        return IndexUnavailableError(f"the database does not answer or refuses, {where}: {said}")
    if isinstance(error, psycopg.OperationalError | postgres.InsufficientPrivilege):
        return IndexStorageError(f"the database refuses, {where}: {said}")
    if isinstance(error, psycopg.Error):
        # All statements are ours and fit the schema, and what they store is checked before.
        return IndexDamagedError(f"the catalog in {where} is damaged: {said}")
    return error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _read_only(where: str) -> IndexReadOnlyError:
    return IndexReadOnlyError(
        f"{where} is a replica, or takes no changes for another reason: it can be searched, not changed"
    )
