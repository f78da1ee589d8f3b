"""The job queue in PostgreSQL: workers of any machine take jobs without waiting for one another.

New jobs and answers to requests lock the row of counters, as all that must see what others have just done.
All else locks the row of one job; a worker that looks for the next one passes over those that others hold
(`FOR UPDATE SKIP LOCKED`). Leases are by the clock of the server, whatever the clocks of the workers say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from indexer.errors import (
    DuplicateIdError,
    IndexDamagedError,
    InvalidRecordError,
    JobNotFoundError,
    QueueFullError,
)
from indexer.store.checksums import checksum_of_row
from indexer.store.job import JOB_STATES, Admission, FailureReason, Job, JobState, NewJob
from indexer.store.job_rows import (
    COLUMNS,
    DAMAGED_REASON,
    FIXED_COLUMNS,
    GAVE_UP_REASON,
    MAX_ATTEMPTS,
    UNFETCHED,
    check_admittable,
    check_lease,
    is_whole_job,
    job_of,
    row_of_new_job,
)
from indexer.store.postgres.changes import read_counters
from indexer.store.postgres.connections import StoreConnection, Transaction
from indexer.store.records import check_sha256

if TYPE_CHECKING:
    from indexer.store.postgres.catalog import PostgresCatalog

_EXPIRED: Final = "state = 'running' AND lease_expires_at <= %s"


class JobQueue:
    """The jobs of an index; the contract stands at `indexer.store.sqlite.jobs.JobQueue`."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._connections = catalog.connections
        self._catalog = catalog

    # For clients

    def enqueue(self, new: NewJob) -> Job:
        """Add a job, state `queued`."""
        with self._connections.transaction() as connection:
            return _insert_job(connection, new, self._catalog.clock())

    def admit(self, new: NewJob, *, max_queued: int) -> Admission:
        """Answer a request by what is there, or else add a job."""
        check_admittable(new)
        with self._connections.transaction() as connection:
            if new.content_sha256 is None:
                # What is at the uri now need not be what was there when an older video was fetched: only an
                # open job stands for it.
                job = _find_open(connection, "uri = %s AND delete_source = 1", new.uri)
            else:
                video = self._catalog.find_by_sha256(new.content_sha256, Transaction(connection))
                if video is not None:
                    return Admission(None, video.id)
                job = _find_open(connection, "content_sha256 = %s", new.content_sha256)
            if job is not None:
                return Admission(job, job.video_id)
            if _num_queued(connection, max_queued) >= max_queued:
                raise QueueFullError(f"{max_queued} jobs wait already")
            job = _insert_job(connection, new, self._catalog.clock())
            return Admission(job, job.video_id, is_new=True)

    def has_capacity(self, max_queued: int) -> bool:
        """Whether one more job would probably be admitted."""
        with self._connections.reading() as connection:
            return _num_queued(connection, max_queued) < max_queued

    def get(self, job_id: str) -> Job:
        """The job of this id."""
        with self._connections.reading() as connection:
            return _read_job(connection, job_id)

    def list_jobs(
        self, limit: int = 100, *, state: JobState | None = None, after: int | None = None
    ) -> list[Job]:
        """At most `limit` jobs, the newest first."""
        conditions, values = ["TRUE"], list[Any]()
        if state is not None:
            conditions.append("state = %s")
            values.append(state)
        if after is not None:
            conditions.append("number < %s")
            values.append(after)
        rows = self._connections.rows(
            f"SELECT {COLUMNS} FROM jobs WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT %s",
            (*values, max(0, limit)),
        )
        return [job_of(row) for row in rows]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each of the four states."""
        found: dict[str, int] = dict(
            self._connections.rows("SELECT state, count(*) FROM jobs GROUP BY state")
        )
        return {state: found.get(state, 0) for state in JOB_STATES}

    def failure_counts(self) -> dict[FailureReason, int]:
        """How many jobs failed for each reason, of those that are not forgotten yet."""
        found: dict[str, int] = dict(
            self._connections.rows(
                "SELECT failure, count(*) FROM jobs WHERE state = 'failed' GROUP BY failure"
            )
        )
        return {reason: found.get(reason.value, 0) for reason in FailureReason}

    def ended_sources(self, paths: Sequence[Path]) -> list[Path]:
        """Those of `paths` that were uploads of jobs which have ended."""
        rows = self._connections.rows(
            "SELECT source_path FROM jobs WHERE state IN ('done', 'failed') AND delete_source = 1"
            " AND source_path = ANY(%s::text[])",
            ([str(path) for path in paths],),
        )
        return [Path(source_path) for (source_path,) in rows]

    def cancel(self, job_id: str, reason: str = "cancelled") -> Job:
        """Make a queued or running job `failed`; one that has ended stays as it is."""
        with self._connections.transaction(of_jobs=True) as connection:
            if not _read_job(connection, job_id, lock=True).ended:
                _fail(connection, job_id, reason, FailureReason.CANCELLED, self._catalog.clock())
            return _read_job(connection, job_id)

    def forget_ended(self, before: float) -> int:
        """Drop jobs that ended before this time; returns how many."""
        with self._connections.transaction(of_jobs=True) as connection:
            return connection.execute(
                "DELETE FROM jobs WHERE state IN ('done', 'failed') AND finished_at < %s", (before,)
            ).rowcount

    # For workers

    def lease(self, worker_name: str, lease_seconds: float, *, unfetched: bool = False) -> Job | None:
        """Take the next job for `lease_seconds`, or None where nothing waits."""
        if not lease_seconds > 0:
            raise InvalidRecordError("lease_seconds must be more than 0")
        now = self._catalog.clock()
        next_one = f"state = 'queued' AND {'' if unfetched else 'NOT '}{UNFETCHED}"
        # Most calls find nothing: begin no transaction for them.
        waiting = self._connections.rows(
            f"SELECT 1 FROM jobs WHERE {next_one} UNION ALL SELECT 1 FROM jobs WHERE {_EXPIRED} LIMIT 1",
            (now,),
        )
        if not waiting:
            return None
        with self._connections.transaction(of_jobs=True) as connection:
            _requeue_expired(connection, now)
            while row := connection.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE {next_one}"
                " ORDER BY attempts, number LIMIT 1 FOR UPDATE SKIP LOCKED"
            ).fetchone():
                job_id = row[1]
                if is_whole_job(row):
                    connection.execute(
                        "UPDATE jobs SET state = 'running', attempts = attempts + 1, worker_name = %s,"
                        " started_at = %s, lease_expires_at = %s WHERE id = %s",
                        (worker_name, now, now + lease_seconds, job_id),
                    )
                    return _read_job(connection, job_id)
                # It must not stand in the way of the others.
                _fail(connection, job_id, DAMAGED_REASON, FailureReason.INTERNAL, now)
        return None

    def heartbeat(self, job_id: str, lease_seconds: float, *, attempt: int | None = None) -> Job:
        """Extend the lease to `lease_seconds` from now."""
        with self._connections.transaction(of_jobs=True) as connection:
            check_lease(_read_job(connection, job_id, lock=True), attempt)
            connection.execute(
                "UPDATE jobs SET lease_expires_at = %s WHERE id = %s",
                (self._catalog.clock() + lease_seconds, job_id),
            )
            return _read_job(connection, job_id)

    def finish(
        self,
        job_id: str,
        video_id: str,
        *,
        attempt: int | None = None,
        transaction: Transaction | None = None,
    ) -> Job:
        """Make a running job `done`."""
        with self._connections.joined(transaction, of_jobs=True) as connection:
            check_lease(_read_job(connection, job_id, lock=True), attempt)
            _change_job(connection, job_id, video_id=video_id)
            connection.execute(
                "UPDATE jobs SET state = 'done', finished_at = %s, lease_expires_at = NULL WHERE id = %s",
                (self._catalog.clock(), job_id),
            )
            return _read_job(connection, job_id)

    def fail(
        self,
        job_id: str,
        reason: str,
        failure: FailureReason = FailureReason.MEDIA,
        *,
        attempt: int | None = None,
    ) -> Job:
        """Make a running job `failed`, for good."""
        with self._connections.transaction(of_jobs=True) as connection:
            check_lease(_read_job(connection, job_id, lock=True), attempt)
            _fail(connection, job_id, reason, failure, self._catalog.clock())
            return _read_job(connection, job_id)

    def release(self, job_id: str, *, attempt: int | None = None) -> Job:
        """Put a running job back as if it had not been taken."""
        with self._connections.transaction(of_jobs=True) as connection:
            check_lease(_read_job(connection, job_id, lock=True), attempt)
            _put_back(connection, job_id)
            return _read_job(connection, job_id)

    def put_back_fetched(self, job_id: str, content_sha256: str, *, attempt: int | None = None) -> Job:
        """Put a running job back as one whose file is at its `source_path` now and has these bytes."""
        with self._connections.transaction(of_jobs=True) as connection:
            check_lease(_read_job(connection, job_id, lock=True), attempt)
            _put_back(connection, job_id)
            _change_job(connection, job_id, content_sha256=check_sha256(content_sha256))
            return _read_job(connection, job_id)

    # For maintenance

    def damaged(self) -> Iterator[int]:
        """Numbers of the jobs that are not made of what was written."""
        with self._connections.snapshot() as connection:
            yield from _damaged_jobs(connection)

    def forget_damaged(self, transaction: Transaction) -> None:
        """Drop the jobs that are not made of what was written."""
        numbers = list(_damaged_jobs(transaction.connection))
        transaction.connection.execute("DELETE FROM jobs WHERE number = ANY(%s::bigint[])", (numbers,))


def _insert_job(connection: StoreConnection, new: NewJob, now: float) -> Job:
    row = row_of_new_job(new, now)
    job_id, video_id, *_ = row
    if connection.execute(
        "SELECT 1 FROM videos WHERE id = %s UNION ALL"
        " SELECT 1 FROM jobs WHERE video_id = %s AND state IN ('queued', 'running')",
        (video_id, video_id),
    ).fetchone():
        raise DuplicateIdError(video_id)
    number = read_counters(connection).last_job + 1
    connection.execute("UPDATE counters SET last_job = %s", (number,))
    connection.execute(
        f"INSERT INTO jobs (number, state, {FIXED_COLUMNS}, row_crc32)"
        " VALUES (%s, 'queued', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (number, *row),
    )
    return _read_job(connection, job_id)


def _find_open(connection: StoreConnection, condition: str, value: str | None) -> Job | None:
    """The first queued or running job of this kind, or None."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM jobs WHERE {condition} AND state IN ('queued', 'running')"
        " ORDER BY number LIMIT 1",
        (value,),
    ).fetchone()
    return None if row is None else job_of(row)


def _read_job(connection: StoreConnection, job_id: str, *, lock: bool = False) -> Job:
    """lock: keep others from changing it until the transaction ends."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM jobs WHERE id = %s{' FOR UPDATE' if lock else ''}", (job_id,)
    ).fetchone()
    if row is None:
        raise JobNotFoundError(job_id)
    return job_of(row)


def _change_job(connection: StoreConnection, job_id: str, **values: str) -> None:
    """Set what a job is made of: columns named by us, never by a client. It was read before, so that its new
    checksum covers up nothing."""
    assignments = ", ".join(f"{name} = %s" for name in values)
    row = connection.execute(
        f"UPDATE jobs SET {assignments} WHERE id = %s RETURNING {FIXED_COLUMNS}", (*values.values(), job_id)
    ).fetchone()
    if row is None:
        raise IndexDamagedError(f"the catalog is damaged: the job {job_id} is not found again")
    connection.execute("UPDATE jobs SET row_crc32 = %s WHERE id = %s", (checksum_of_row(row), job_id))


def _put_back(connection: StoreConnection, job_id: str) -> None:
    connection.execute(
        "UPDATE jobs SET state = 'queued', attempts = attempts - 1, worker_name = NULL,"
        " started_at = NULL, lease_expires_at = NULL WHERE id = %s",
        (job_id,),
    )


def _fail(connection: StoreConnection, job_id: str, reason: str, failure: FailureReason, now: float) -> None:
    connection.execute(
        "UPDATE jobs SET state = 'failed', reason = %s, failure = %s, finished_at = %s,"
        " lease_expires_at = NULL WHERE id = %s",
        (reason, failure.value, now, job_id),
    )


def _requeue_expired(connection: StoreConnection, now: float) -> None:
    """Put jobs back whose lease has expired, or let them fail; those that another one holds are its own."""
    held_by_none = f"number IN (SELECT number FROM jobs WHERE {_EXPIRED} FOR UPDATE SKIP LOCKED)"
    connection.execute(
        "UPDATE jobs SET state = 'failed', reason = %s, failure = %s, finished_at = %s,"
        f" lease_expires_at = NULL WHERE attempts >= %s AND {held_by_none}",
        (GAVE_UP_REASON, FailureReason.GAVE_UP.value, now, MAX_ATTEMPTS, now),
    )
    connection.execute(
        f"UPDATE jobs SET state = 'queued', worker_name = NULL, lease_expires_at = NULL WHERE {held_by_none}",
        (now,),
    )


def _num_queued(connection: StoreConnection, enough: int) -> int:
    """Jobs that are queued, counted up to `enough`."""
    row = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' LIMIT %s) AS found", (enough,)
    ).fetchone()
    return 0 if row is None else int(row[0])


def _damaged_jobs(connection: StoreConnection) -> Iterator[int]:
    for row in connection.execute(f"SELECT {COLUMNS} FROM jobs ORDER BY number"):
        if not is_whole_job(row):
            yield row[0]
