"""Ingest requests as rows of the catalog: written, found, and read with a look at their checksum.

The checksum is over what a job is made of. How far it has come changes often, and what is wrong there costs a
try at most.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from indexer.errors import DuplicateIdError, IndexDamagedError, JobNotFoundError
from indexer.store.records import check_sha256, check_text, check_video_id, metadata_to_json
from indexer.store.sqlite.row_checksums import checksum_of_row

JobState = Literal["queued", "running", "done", "failed"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)

UNFETCHED: Final = "(content_sha256 IS NULL AND delete_source = 1 AND uri IS NOT NULL)"
"""SQL: the job's file has still to be fetched; see `Job.is_unfetched`."""

COLUMNS: Final = (
    "number, id, state, video_id, content_sha256, source_path, uri, title, metadata, delete_source, reason,"
    " attempts, worker_name, lease_expires_at, created_at, started_at, finished_at, row_crc32"
)
"""Of a row that `job_of_row` takes."""

_FIXED: Final = "id, video_id, content_sha256, source_path, uri, title, metadata, delete_source, created_at"
_FIXED_PLACES: Final = [COLUMNS.split(", ").index(name) for name in _FIXED.split(", ")]


@dataclass(frozen=True)
class Job:
    """One ingest request. Times are seconds since 1970.

    number: increases with every job. video_id: the id its video will have, and from `done` on the id it has
    (another one where the same bytes were indexed already). source_path: the local file to index; never shown
    to a client.
    delete_source: whether the file is ours, to be deleted when the job has ended. reason: why it failed, for
    a person. attempts: times it was leased. started_at: of the last attempt.
    """

    number: int
    id: str
    state: JobState
    video_id: str
    content_sha256: str | None
    source_path: str
    uri: str | None
    title: str | None
    metadata: Mapping[str, Any]
    delete_source: bool
    reason: str | None
    attempts: int
    worker_name: str | None
    lease_expires_at: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def ended(self) -> bool:
        """Whether the state is `done` or `failed`."""
        return self.state in ("done", "failed")

    @property
    def is_fetched_by_us(self) -> bool:
        """Whether its file is, or was, brought here from `uri`. A file that lies at its uri is not ours, and
        one that was uploaded has no uri."""
        return self.delete_source and self.uri is not None

    @property
    def is_unfetched(self) -> bool:
        """Whether nothing is at `source_path` yet: the file has to be brought there from `uri`."""
        return self.is_fetched_by_us and self.content_sha256 is None


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a job is made of; see `Job`. video_id: None for a new one. title, metadata, uri: the video's.

    With a uri and delete_source, and without content_sha256, its file is fetched from the uri first.
    """

    source_path: str
    video_id: str | None = None
    title: str | None = None
    metadata: Mapping[str, Any] | None = None
    uri: str | None = None
    content_sha256: str | None = None
    delete_source: bool = False


def insert_job(connection: sqlite3.Connection, new: NewJob, now: float) -> Job:
    """Add a job, state `queued`, within the caller's transaction. Raises as `JobQueue.enqueue` does."""
    video_id = uuid.uuid4().hex if new.video_id is None else check_video_id(new.video_id)
    check_text("source_path", new.source_path)
    values = (
        uuid.uuid4().hex,
        video_id,
        None if new.content_sha256 is None else check_sha256(new.content_sha256),
        new.source_path,
        check_text("uri", new.uri),
        check_text("title", new.title),
        metadata_to_json(new.metadata),
        int(new.delete_source),
        float(now),
    )
    if connection.execute(
        "SELECT 1 FROM videos WHERE id = ?1 UNION ALL"
        " SELECT 1 FROM jobs WHERE video_id = ?1 AND state IN ('queued', 'running')",
        (video_id,),
    ).fetchone():
        raise DuplicateIdError(video_id)
    connection.execute(
        f"INSERT INTO jobs (state, {_FIXED}, row_crc32) VALUES ('queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, checksum_of_row(values)),
    )
    return read_job(connection, values[0])


def find_open_job(connection: sqlite3.Connection, content_sha256: str) -> Job | None:
    """A queued or running job for a file with these bytes, or None."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM jobs WHERE content_sha256 = ? AND state IN ('queued', 'running')"
        " ORDER BY number LIMIT 1",
        (content_sha256,),
    ).fetchone()
    return None if row is None else job_of_row(row)


def find_open_fetch(connection: sqlite3.Connection, uri: str) -> Job | None:
    """A queued or running job for what is to be fetched, or was, from this uri, or None."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM jobs WHERE uri = ? AND delete_source = 1 AND state IN ('queued', 'running')"
        " ORDER BY number LIMIT 1",
        (uri,),
    ).fetchone()
    return None if row is None else job_of_row(row)


def read_job(connection: sqlite3.Connection, job_id: str) -> Job:
    """The job of this id, as this connection sees it. Raises JobNotFoundError."""
    row = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise JobNotFoundError(job_id)
    return job_of_row(row)


def job_of_row(row: Sequence[Any]) -> Job:
    """The job that a row of COLUMNS holds. Raises IndexDamagedError."""
    if not is_whole(row):
        raise IndexDamagedError(
            f"the catalog is damaged: job number {row[0]} is not what was written; rebuild forgets such jobs"
        )
    values = list(row[:-1])
    values[8] = json.loads(values[8])
    values[9] = bool(values[9])
    return Job(*values)


def is_whole(row: Sequence[Any]) -> bool:
    """Whether a row of COLUMNS says what the job was made of."""
    return bool(checksum_of_row([row[place] for place in _FIXED_PLACES]) == row[-1])


def change_job(connection: sqlite3.Connection, job_id: str, **values: str) -> None:
    """Set what a job is made of, within the caller's transaction: columns named by us, never by a client.

    Raises JobNotFoundError, and IndexDamagedError, so that the new checksum covers up nothing.
    """
    read_job(connection, job_id)
    assignments = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*values.values(), job_id))
    row = connection.execute(f"SELECT {_FIXED} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    connection.execute("UPDATE jobs SET row_crc32 = ? WHERE id = ?", (checksum_of_row(row), job_id))


def damaged_jobs(connection: sqlite3.Connection) -> Iterator[int]:
    """Numbers of the jobs that are not made of what was written."""
    for row in connection.execute(f"SELECT {COLUMNS} FROM jobs ORDER BY number"):
        if not is_whole(row):
            yield row[0]
