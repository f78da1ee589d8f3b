"""The job queue, in the catalog's database, so that a video and the end of its job are one transaction.

States: queued -> running -> done | failed. A worker holds a running job by a lease; a lease that expires (the
worker died or hangs) puts the job back into the queue, and after three tries it fails.

A job whose file has still to be fetched from its uri runs twice: first to fetch it, then, queued again, as if
the file had been uploaded. `lease` gives the two kinds to different workers.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from indexer.store.records import check_sha256
from indexer.store.sqlite.connections import Transaction

if TYPE_CHECKING:
    from indexer.store.sqlite.catalog import Catalog


class JobQueue:
    """The jobs of a catalog. Any number of processes and threads may add, take and watch jobs.

    The catalog's clock decides about leases; all processes of an index run on one machine.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._connections = catalog.connections
        self._clock = catalog.clock
        self._catalog = catalog

    # For clients

    def enqueue(self, new: NewJob) -> Job:
        """Add a job, state `queued`.

        Raises:
            DuplicateIdError: a queued or running job or a video has its id.
            InvalidRecordError: a value cannot be stored.
        """
        with self._connections.transaction() as connection:
            return _insert_job(connection, new, self._clock())

    def admit(self, new: NewJob, *, max_queued: int) -> Admission:
        """Answer a request by what is there, or else add a job.

        In this order: the video with the same bytes, the open job for the same bytes, a new job. All is one
        transaction: two requests at the same moment make one job.

        Args:
            new: with its content_sha256; or one to be fetched, where the open job for the same uri stands for
                that of the same bytes.
            max_queued: no job is added while this many are queued.

        Raises:
            QueueFullError: `max_queued` jobs are queued.
            DuplicateIdError, InvalidRecordError: as `enqueue` does.
        """
        check_admittable(new)
        with self._catalog.transaction() as transaction:
            connection = transaction.connection
            if new.content_sha256 is None:
                # What is at the uri now need not be what was there when an older video was fetched: only an
                # open job stands for it.
                job = _find_open(connection, "uri = ? AND delete_source = 1", new.uri)
            else:
                video = self._catalog.find_by_sha256(new.content_sha256, transaction)
                if video is not None:
                    return Admission(None, video.id)
                job = _find_open(connection, "content_sha256 = ?", new.content_sha256)
            if job is not None:
                return Admission(job, job.video_id)
            if _num_queued(connection, max_queued) >= max_queued:
                raise QueueFullError(f"{max_queued} jobs wait already")
            job = _insert_job(connection, new, self._clock())
            return Admission(job, job.video_id, is_new=True)

    def has_capacity(self, max_queued: int) -> bool:
        """Whether one more job would probably be admitted: to ask before a large body is read. `admit`
        decides."""
        with self._connections.reading() as connection:
            return _num_queued(connection, max_queued) < max_queued

    def get(self, job_id: str) -> Job:
        """The job of this id. Raises JobNotFoundError."""
        with self._connections.reading() as connection:
            return _read_job(connection, job_id)

    def list_jobs(
        self, limit: int = 100, *, state: JobState | None = None, after: int | None = None
    ) -> list[Job]:
        """At most `limit` jobs, the newest first; `after`: `number` of the last job of the page before."""
        conditions, values = ["TRUE"], list[Any]()
        if state is not None:
            conditions.append("state = ?")
            values.append(state)
        if after is not None:
            conditions.append("number < ?")
            values.append(after)
        with self._connections.reading() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?",
                (*values, max(0, limit)),
            ).fetchall()
        return [job_of(row) for row in rows]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each of the four states."""
        with self._connections.reading() as connection:
            found = dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in JOB_STATES}

    def failure_counts(self) -> dict[FailureReason, int]:
        """How many jobs failed for each reason, of those that are not forgotten yet."""
        with self._connections.reading() as connection:
            found = dict(
                connection.execute(
                    "SELECT failure, count(*) FROM jobs WHERE state = 'failed' GROUP BY failure"
                )
            )
        return {reason: found.get(reason, 0) for reason in FailureReason}

    def ended_sources(self, paths: Sequence[Path]) -> list[Path]:
        """Those of `paths` that were uploads of jobs which have ended: they are not needed any more."""
        with self._connections.reading() as connection:
            rows = connection.execute(
                "SELECT source_path FROM jobs WHERE state IN ('done', 'failed') AND delete_source"
                " AND source_path IN (SELECT value FROM json_each(?))",
                (json.dumps([str(path) for path in paths]),),
            )
            return [Path(source_path) for (source_path,) in rows]

    def cancel(self, job_id: str, reason: str = "cancelled") -> Job:
        """Make a queued or running job `failed`; one that has ended stays as it is. Raises JobNotFoundError.

        The worker of a running job gets LeaseLostError from its next heartbeat or when it finishes.
        """

        def change() -> Job:
            with self._connections.transaction() as connection:
                if not _read_job(connection, job_id).ended:
                    _fail(connection, job_id, reason, FailureReason.CANCELLED, self._clock())
                return _read_job(connection, job_id)

        return self._connections.even_if_full(change)

    def forget_ended(self, before: float) -> int:
        """Drop jobs that ended before this time (seconds since 1970); returns how many."""
        with self._connections.transaction() as connection:
            return connection.execute(
                "DELETE FROM jobs WHERE state IN ('done', 'failed') AND finished_at < ?", (before,)
            ).rowcount

    # For workers

    def lease(self, worker_name: str, lease_seconds: float, *, unfetched: bool = False) -> Job | None:
        """Take the next job for `lease_seconds`, or None where nothing waits.

        Jobs with the fewest attempts go first, then the oldest: one that kills its workers does not block the
        rest. Jobs whose lease has expired are put back first, or fail after MAX_ATTEMPTS attempts.

        Args:
            worker_name: of the process, with its host.
            lease_seconds: more than 0.
            unfetched: take one whose file has still to be fetched, or else one whose file is there.
        """
        if not lease_seconds > 0:
            raise InvalidRecordError("lease_seconds must be more than 0")
        now = self._clock()
        of_this_kind = UNFETCHED if unfetched else f"NOT {UNFETCHED}"
        # Most calls find nothing: do not take the write lock for them.
        with self._connections.reading() as connection:
            waiting = connection.execute(
                f"SELECT 1 FROM jobs WHERE state = 'queued' AND {of_this_kind} UNION ALL"
                " SELECT 1 FROM jobs WHERE state = 'running' AND lease_expires_at <= ? LIMIT 1",
                (now,),
            ).fetchone()
        if waiting is None:
            return None
        with self._connections.transaction() as connection:
            _requeue_expired(connection, now)
            while row := connection.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND {of_this_kind}"
                " ORDER BY attempts, number LIMIT 1"
            ).fetchone():
                job_id = row[1]
                if is_whole_job(row):
                    connection.execute(
                        "UPDATE jobs SET state = 'running', attempts = attempts + 1, worker_name = ?,"
                        " started_at = ?, lease_expires_at = ? WHERE id = ?",
                        (worker_name, now, now + lease_seconds, job_id),
                    )
                    return _read_job(connection, job_id)
                # It must not stand in the way of the others.
                _fail(connection, job_id, DAMAGED_REASON, FailureReason.INTERNAL, now)
        return None

    def heartbeat(self, job_id: str, lease_seconds: float, *, attempt: int | None = None) -> Job:
        """Extend the lease to `lease_seconds` from now.

        Args:
            job_id: a running job.
            lease_seconds: from now.
            attempt: here and below, the `attempts` of the job as it was leased; with it a worker that was
                thought dead cannot touch a job that another one has leased.

        Raises:
            JobNotFoundError: there is no such job.
            LeaseLostError: it is not running, or another worker has it.
        """
        with self._connections.transaction() as connection:
            _require_running(connection, job_id, attempt)
            connection.execute(
                "UPDATE jobs SET lease_expires_at = ? WHERE id = ?", (self._clock() + lease_seconds, job_id)
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
        """Make a running job `done`.

        Args:
            job_id: a running job.
            video_id: the id that the video has, possibly an older one of the same bytes.
            attempt: as for `heartbeat`.
            transaction: of the change that ends the job, so that video and job are stored together or not at
                all.

        Raises:
            JobNotFoundError, LeaseLostError: as `heartbeat` does.
        """
        with self._connections.joined(transaction) as connection:
            _require_running(connection, job_id, attempt)
            _change_job(connection, job_id, video_id=video_id)
            connection.execute(
                "UPDATE jobs SET state = 'done', finished_at = ?, lease_expires_at = NULL WHERE id = ?",
                (self._clock(), job_id),
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
        """Make a running job `failed`, for good.

        Args:
            job_id: a running job.
            reason: a sentence for the client that says why.
            failure: the same in one of few classes.
            attempt: as for `heartbeat`.

        Raises:
            JobNotFoundError, LeaseLostError: as `heartbeat` does.
        """
        with self._connections.transaction() as connection:
            _require_running(connection, job_id, attempt)
            _fail(connection, job_id, reason, failure, self._clock())
            return _read_job(connection, job_id)

    def release(self, job_id: str, *, attempt: int | None = None) -> Job:
        """Put a running job back as if it had not been taken (the worker is stopping); raises as `heartbeat`
        does."""
        with self._connections.transaction() as connection:
            _require_running(connection, job_id, attempt)
            _put_back(connection, job_id)
            return _read_job(connection, job_id)

    def put_back_fetched(self, job_id: str, content_sha256: str, *, attempt: int | None = None) -> Job:
        """Put a running job back as one whose file is at its `source_path` now and has these bytes; raises as
        `heartbeat` does."""
        with self._connections.transaction() as connection:
            _require_running(connection, job_id, attempt)
            _put_back(connection, job_id)
            _change_job(connection, job_id, content_sha256=check_sha256(content_sha256))
            return _read_job(connection, job_id)

    # For maintenance

    def waiting_sources(self) -> list[Path]:
        """Files of the jobs that have not ended, of those whose file is there."""
        with self._connections.reading() as connection:
            rows = connection.execute(
                f"SELECT source_path FROM jobs WHERE state IN ('queued', 'running') AND NOT {UNFETCHED}"
            )
            return [Path(source_path) for (source_path,) in rows]

    def move_sources(self, former: Path, folder: Path) -> None:
        """Say of all files below `former` that they lie below `folder`. A damaged job stays as it is."""
        with self._connections.transaction() as connection:
            rows = connection.execute("SELECT id, source_path FROM jobs").fetchall()
            for job_id, text in rows:
                path = Path(text)
                try:
                    if path.is_relative_to(former):
                        moved = folder / path.relative_to(former)
                        _change_job(connection, job_id, source_path=str(moved))
                except IndexDamagedError:
                    continue

    def replace_all(self, source: Transaction, transaction: Transaction) -> int:
        """Replace all jobs by those of another catalog, rows as they are; returns how many.

        Running jobs are queued: their workers can no longer end them. The attempt counts, so that what such a
        worker still does is not taken for what the next one does.

        Args:
            source: of the other catalog, so that no job comes meanwhile.
            transaction: of this queue's catalog.
        """
        into, out_of = transaction.connection, source.connection
        marks = ", ".join("?" * len(COLUMNS.split(", ")))
        into.execute("DELETE FROM jobs")
        into.executemany(
            f"INSERT INTO jobs ({COLUMNS}) VALUES ({marks})",
            out_of.execute(f"SELECT {COLUMNS} FROM jobs"),
        )
        into.execute(
            "UPDATE jobs SET state = 'queued', worker_name = NULL, started_at = NULL, lease_expires_at = NULL"
            " WHERE state = 'running'"
        )
        # So that no number is given twice though the jobs that had the last ones are forgotten.
        into.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
        into.executemany(
            "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
            out_of.execute("SELECT name, seq FROM sqlite_sequence WHERE name = 'jobs'"),
        )
        (num_jobs,) = into.execute("SELECT count(*) FROM jobs").fetchone()
        return int(num_jobs)

    def damaged(self, transaction: Transaction | None = None) -> Iterator[int]:
        """Numbers of the jobs that are not made of what was written."""
        if transaction is not None:
            yield from _damaged_jobs(transaction.connection)
            return
        with self._connections.snapshot() as connection:
            yield from _damaged_jobs(connection)

    def forget_damaged(self, transaction: Transaction) -> None:
        """Drop the jobs that are not made of what was written."""
        for number in list(_damaged_jobs(transaction.connection)):
            transaction.connection.execute("DELETE FROM jobs WHERE number = ?", (number,))


def _insert_job(connection: sqlite3.Connection, new: NewJob, now: float) -> Job:
    row = row_of_new_job(new, now)
    job_id, video_id, *_ = row
    if connection.execute(
        "SELECT 1 FROM videos WHERE id = ?1 UNION ALL"
        " SELECT 1 FROM jobs WHERE video_id = ?1 AND state IN ('queued', 'running')",
        (video_id,),
    ).fetchone():
        raise DuplicateIdError(video_id)
    connection.execute(
        f"INSERT INTO jobs (state, {FIXED_COLUMNS}, row_crc32)"
        " VALUES ('queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    )
    return _read_job(connection, job_id)


def _find_open(connection: sqlite3.Connection, condition: str, value: str | None) -> Job | None:
    """The first queued or running job of this kind, or None."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM jobs WHERE {condition} AND state IN ('queued', 'running')"
        " ORDER BY number LIMIT 1",
        (value,),
    ).fetchone()
    return None if row is None else job_of(row)


def _read_job(connection: sqlite3.Connection, job_id: str) -> Job:
    row = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise JobNotFoundError(job_id)
    return job_of(row)


def _change_job(connection: sqlite3.Connection, job_id: str, **values: str) -> None:
    """Set what a job is made of: columns named by us, never by a client."""
    _read_job(connection, job_id)  # Raises where it is damaged: the new checksum must not cover that up.
    assignments = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*values.values(), job_id))
    row = connection.execute(f"SELECT {FIXED_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    connection.execute("UPDATE jobs SET row_crc32 = ? WHERE id = ?", (checksum_of_row(row), job_id))


def _put_back(connection: sqlite3.Connection, job_id: str) -> None:
    connection.execute(
        "UPDATE jobs SET state = 'queued', attempts = attempts - 1, worker_name = NULL,"
        " started_at = NULL, lease_expires_at = NULL WHERE id = ?",
        (job_id,),
    )


def _fail(
    connection: sqlite3.Connection, job_id: str, reason: str, failure: FailureReason, now: float
) -> None:
    connection.execute(
        "UPDATE jobs SET state = 'failed', reason = ?, failure = ?, finished_at = ?, lease_expires_at = NULL"
        " WHERE id = ?",
        (reason, failure, now, job_id),
    )


def _requeue_expired(connection: sqlite3.Connection, now: float) -> int:
    failed = connection.execute(
        "UPDATE jobs SET state = 'failed', reason = ?, failure = ?, finished_at = ?, lease_expires_at = NULL"
        " WHERE state = 'running' AND lease_expires_at <= ? AND attempts >= ?",
        (GAVE_UP_REASON, FailureReason.GAVE_UP, now, now, MAX_ATTEMPTS),
    ).rowcount
    queued = connection.execute(
        "UPDATE jobs SET state = 'queued', worker_name = NULL, lease_expires_at = NULL"
        " WHERE state = 'running' AND lease_expires_at <= ?",
        (now,),
    ).rowcount
    return failed + queued


def _require_running(connection: sqlite3.Connection, job_id: str, attempt: int | None) -> None:
    check_lease(_read_job(connection, job_id), attempt)


def _num_queued(connection: sqlite3.Connection, enough: int) -> int:
    """Jobs that are queued, counted up to `enough`."""
    (number,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' LIMIT ?)", (enough,)
    ).fetchone()
    return int(number)


def _damaged_jobs(connection: sqlite3.Connection) -> Iterator[int]:
    for row in connection.execute(f"SELECT {COLUMNS} FROM jobs ORDER BY number"):
        if not is_whole_job(row):
            yield row[0]
