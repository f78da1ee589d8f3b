"""Ingest requests and their life, in the catalog's database: whoever may add a video may also own a job.

States: queued -> running -> done | failed. A worker holds a running job by a lease; a lease that expires (the
worker died or hangs) puts the job back into the queue, and after three tries it fails.

A job whose file has still to be fetched from its uri runs twice: first to fetch it, then, queued again, as if
the file had been uploaded. `lease` gives the two kinds to different workers.

How many jobs failed, and why: for whoever watches over an index.

Taking an ingest request in: once for the same bytes, and only while there is room. Whether there is something
to do, and the job that does it, are one transaction: two requests at the same moment make one job.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.errors import IndexerError, InvalidRecordError, LeaseLostError
from indexer.store.job import (
    COLUMNS,
    JOB_STATES,
    UNFETCHED,
    Job,
    JobState,
    NewJob,
    change_job,
    find_open_fetch,
    find_open_job,
    insert_job,
    is_whole,
    job_of_row,
    read_job,
)
from indexer.store.records import check_sha256
from indexer.store.sqlite.connections import Transaction
from indexer.store.sqlite.video_rows import read_by_sha256

if TYPE_CHECKING:
    from indexer.store.sqlite.catalog import Catalog

__all__ = [
    "JOB_STATES",
    "UNFETCHED",
    "Job",
    "JobQueue",
    "JobState",
    "NewJob",
    "find_open_fetch",
    "find_open_job",
    "insert_job",
    "read_job",
]

MAX_ATTEMPTS = 3
GAVE_UP_REASON = f"processing was started {MAX_ATTEMPTS} times and never came to an end"

DAMAGED_REASON = "the request is not what was written any more; send it again"


class JobQueue:
    """The jobs of a catalog. Any number of processes and threads may add, take and watch jobs.

    The catalog's clock decides about leases; all processes of an index run on one machine.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._connections = catalog.connections
        self._clock = catalog.clock

    # Whoever asks

    def enqueue(
        self,
        video_id: str | None,
        source_path: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        uri: str | None = None,
        content_sha256: str | None = None,
        delete_source: bool = False,
    ) -> Job:
        """Add a job, state `queued`.

        video_id: the id that the video shall have, None for a new one.
        Raises DuplicateIdError where a queued or running job or a video has this id, InvalidRecordError.
        """
        new = NewJob(
            source_path=source_path,
            video_id=video_id,
            title=title,
            metadata=metadata,
            uri=uri,
            content_sha256=content_sha256,
            delete_source=delete_source,
        )
        with self._connections.transaction() as connection:
            return insert_job(connection, new, self._clock())

    def get(self, job_id: str) -> Job:
        """The job of this id. Raises JobNotFoundError."""
        with self._connections.reading() as connection:
            return read_job(connection, job_id)

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
        return [job_of_row(row) for row in rows]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each of the four states."""
        with self._connections.reading() as connection:
            found = dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in JOB_STATES}

    def find_open(self, content_sha256: str) -> Job | None:
        """A queued or running job for a file with these bytes, or None."""
        with self._connections.reading() as connection:
            return find_open_job(connection, content_sha256)

    def ended_sources(self, paths: Sequence[Path]) -> list[Path]:
        """Those of `paths` that were uploads of jobs which have ended: nobody needs them any more."""
        with self._connections.reading() as connection:
            rows = connection.execute(
                "SELECT source_path FROM jobs WHERE state IN ('done', 'failed') AND delete_source"
                " AND source_path IN (SELECT value FROM json_each(?))",
                (json.dumps([str(path) for path in paths]),),
            )
            return [Path(source_path) for (source_path,) in rows]

    def cancel(self, job_id: str, reason: str = "cancelled") -> Job:
        """Make a queued or running job `failed`; one that has ended stays as it is. Raises JobNotFoundError.

        The worker of a running job learns of it by LeaseLostError from its next heartbeat or when it
        finishes.
        """
        with self._connections.transaction() as connection:
            if not read_job(connection, job_id).ended:
                _end(connection, job_id, "failed", self._clock(), reason=reason)
            return read_job(connection, job_id)

    def forget_ended(self, before: float) -> int:
        """Drop jobs that ended before this time (seconds since 1970); returns how many."""
        with self._connections.transaction() as connection:
            return connection.execute(
                "DELETE FROM jobs WHERE state IN ('done', 'failed') AND finished_at < ?", (before,)
            ).rowcount

    # Whoever works

    def lease(self, worker_name: str, lease_seconds: float, *, unfetched: bool = False) -> Job | None:
        """Take the next job for `lease_seconds`, or None where nothing waits.

        unfetched: take one whose file has still to be fetched, or else one whose file is there.

        Jobs with the fewest attempts go first, then the oldest: one that kills its workers does not block the
        rest. Jobs whose lease has expired are put back first, or fail after MAX_ATTEMPTS attempts.
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
                if is_whole(row):
                    connection.execute(
                        "UPDATE jobs SET state = 'running', attempts = attempts + 1, worker_name = ?,"
                        " started_at = ?, lease_expires_at = ? WHERE id = ?",
                        (worker_name, now, now + lease_seconds, job_id),
                    )
                    return read_job(connection, job_id)
                # It must not stand in the way of the others.
                _end(connection, job_id, "failed", now, reason=DAMAGED_REASON)
        return None

    def heartbeat(self, job_id: str, lease_seconds: float, *, attempt: int | None = None) -> Job:
        """Extend the lease to `lease_seconds` from now.

        attempt, here and below: the `attempts` of the job as it was leased; with it a worker that was thought
        dead cannot touch a job that another one has taken over.
        Raises JobNotFoundError, LeaseLostError.
        """
        with self._connections.transaction() as connection:
            _require_running(connection, job_id, attempt)
            connection.execute(
                "UPDATE jobs SET lease_expires_at = ? WHERE id = ?", (self._clock() + lease_seconds, job_id)
            )
            return read_job(connection, job_id)

    def finish(
        self,
        job_id: str,
        video_id: str,
        *,
        attempt: int | None = None,
        transaction: Transaction | None = None,
    ) -> Job:
        """Make a running job `done`.

        video_id: the id that the video has, possibly an older one of the same bytes. transaction: of the
        change that ends the job, so that video and job are stored together or not at all.
        Raises JobNotFoundError, LeaseLostError.
        """
        with self._connections.joined(transaction) as connection:
            _require_running(connection, job_id, attempt)
            _end(connection, job_id, "done", self._clock(), video_id=video_id)
            return read_job(connection, job_id)

    def fail(self, job_id: str, reason: str, *, attempt: int | None = None) -> Job:
        """Make a running job `failed`, for good: `reason` tells a person why. Raises JobNotFoundError,
        LeaseLostError."""
        with self._connections.transaction() as connection:
            _require_running(connection, job_id, attempt)
            _end(connection, job_id, "failed", self._clock(), reason=reason)
            return read_job(connection, job_id)

    def release(self, job_id: str, *, attempt: int | None = None) -> Job:
        """Put a running job back as if it had not been taken (the worker is stopping).

        Raises JobNotFoundError, LeaseLostError.
        """
        with self._connections.transaction() as connection:
            _require_running(connection, job_id, attempt)
            _put_back(connection, job_id)
            return read_job(connection, job_id)

    def put_back_fetched(self, job_id: str, content_sha256: str, *, attempt: int | None = None) -> Job:
        """Put a running job back as one whose file is at its `source_path` now and has these bytes.

        Raises JobNotFoundError, LeaseLostError, InvalidRecordError.
        """
        with self._connections.transaction() as connection:
            _require_running(connection, job_id, attempt)
            _put_back(connection, job_id)
            change_job(connection, job_id, content_sha256=check_sha256(content_sha256))
            return read_job(connection, job_id)

    def requeue_expired(self) -> int:
        """Put jobs with an expired lease back, or fail them after MAX_ATTEMPTS; returns how many changed.

        `lease` does this too; this is for an index whose only worker has died.
        """
        with self._connections.transaction() as connection:
            return _requeue_expired(connection, self._clock())


def _put_back(connection: sqlite3.Connection, job_id: str) -> None:
    connection.execute(
        "UPDATE jobs SET state = 'queued', attempts = attempts - 1, worker_name = NULL,"
        " started_at = NULL, lease_expires_at = NULL WHERE id = ?",
        (job_id,),
    )


def _end(
    connection: sqlite3.Connection,
    job_id: str,
    state: JobState,
    now: float,
    *,
    video_id: str | None = None,
    reason: str | None = None,
) -> None:
    if video_id is not None:
        change_job(connection, job_id, video_id=video_id)
    connection.execute(
        "UPDATE jobs SET state = ?, reason = ?, finished_at = ?, lease_expires_at = NULL WHERE id = ?",
        (state, reason, now, job_id),
    )


def _requeue_expired(connection: sqlite3.Connection, now: float) -> int:
    failed = connection.execute(
        "UPDATE jobs SET state = 'failed', reason = ?, finished_at = ?, lease_expires_at = NULL"
        " WHERE state = 'running' AND lease_expires_at <= ? AND attempts >= ?",
        (GAVE_UP_REASON, now, now, MAX_ATTEMPTS),
    ).rowcount
    queued = connection.execute(
        "UPDATE jobs SET state = 'queued', worker_name = NULL, lease_expires_at = NULL"
        " WHERE state = 'running' AND lease_expires_at <= ?",
        (now,),
    ).rowcount
    return failed + queued


def _require_running(connection: sqlite3.Connection, job_id: str, attempt: int | None) -> None:
    job = read_job(connection, job_id)
    if job.state != "running":
        raise LeaseLostError(f"the job {job_id} is not running any more, it is {job.state}")
    if attempt is not None and attempt != job.attempts:
        raise LeaseLostError(f"the job {job_id} was taken over by another worker")


@dataclass(frozen=True)
class FailedJobs:
    """Jobs that failed for one reason. is_unfetched: their file never came here."""

    reason: str
    is_unfetched: bool
    count: int


def count_failed_jobs(catalog: Catalog) -> list[FailedJobs]:
    """All failed jobs that are not forgotten yet, by reason."""
    with catalog.connections.reading() as connection:
        rows = connection.execute(
            f"SELECT coalesce(reason, ''), {UNFETCHED}, count(*) FROM jobs"
            " WHERE state = 'failed' GROUP BY 1, 2"
        ).fetchall()
    return [FailedJobs(reason, bool(unfetched), count) for reason, unfetched, count in rows]


class QueueFullError(IndexerError):
    """As many jobs wait as may wait; nothing was added."""


@dataclass(frozen=True)
class Admission:
    """What became of a request.

    job: its job, as it is now; None where the bytes were in the index already. video_id: of its video.
    is_new: whether the job was made for this very request, so that the file it names now belongs to the job.
    """

    job: Job | None
    video_id: str
    is_new: bool = False


def admit(catalog: Catalog, new: NewJob, *, max_queued: int) -> Admission:
    """Answer a request by what is there, or else add a job.

    In this order: the video with the same bytes, the open job for the same bytes, a new job. new: with its
    content_sha256; or one to be fetched, where the open job for the same uri stands for that of the same
    bytes. max_queued: no job is added while so many are queued.
    Raises QueueFullError, DuplicateIdError, InvalidRecordError.
    """
    if new.content_sha256 is None and not (new.delete_source and new.uri is not None):
        raise InvalidRecordError("a request is admitted by its bytes, or by the uri they are fetched from")
    with catalog.connections.transaction() as connection:
        return _admit(connection, new, max_queued, catalog.clock())


def may_admit(catalog: Catalog, *, max_queued: int) -> bool:
    """Whether there is probably room for one more job. Changes nothing.

    For a look before a large body is read; `admit` decides.
    """
    with catalog.connections.reading() as connection:
        return _num_queued(connection, max_queued) < max_queued


def _admit(connection: sqlite3.Connection, new: NewJob, max_queued: int, now: float) -> Admission:
    if new.content_sha256 is None:
        # What is there now need not be what was there when an older video was fetched: only who waits knows.
        job = find_open_fetch(connection, new.uri or "")
    else:
        video = read_by_sha256(connection, new.content_sha256)
        if video is not None:
            return Admission(None, video.id)
        job = find_open_job(connection, new.content_sha256)
    if job is not None:
        return Admission(job, job.video_id)
    if _num_queued(connection, max_queued) >= max_queued:
        raise QueueFullError(f"{max_queued} jobs wait already")
    job = insert_job(connection, new, now)
    return Admission(job, job.video_id, is_new=True)


def _num_queued(connection: sqlite3.Connection, enough: int) -> int:
    """Jobs that are queued, counted up to `enough`."""
    (number,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' LIMIT ?)", (enough,)
    ).fetchone()
    return int(number)


def copy_jobs(source: sqlite3.Connection, target: sqlite3.Connection) -> int:
    """Replace the jobs of one catalog by those of another, within transactions of both; returns how many.

    Running jobs are queued there: their workers can no longer end them. The attempt counts, so that what such
    a worker still does is told apart from what the next one does.
    """
    target.execute("DELETE FROM jobs")
    # By name: an older catalog may have its columns in another order.
    names = ", ".join(name for (name,) in source.execute("SELECT name FROM pragma_table_info('jobs')"))
    marks = ", ".join("?" * len(names.split(", ")))
    target.executemany(
        f"INSERT INTO jobs ({names}) VALUES ({marks})", source.execute(f"SELECT {names} FROM jobs")
    )
    target.execute(
        "UPDATE jobs SET state = 'queued', worker_name = NULL, started_at = NULL, lease_expires_at = NULL"
        " WHERE state = 'running'"
    )
    # So that no number is given twice though the jobs that had the last ones are forgotten.
    target.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
    target.executemany(
        "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
        source.execute("SELECT name, seq FROM sqlite_sequence WHERE name = 'jobs'"),
    )
    (num_jobs,) = target.execute("SELECT count(*) FROM jobs").fetchone()
    return int(num_jobs)
