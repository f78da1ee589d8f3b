"""Taking an ingest request in: once for the same bytes, once for the same key, and only while there is room.

Whether there is something to do, and the job that does it, are one transaction: two requests at the same
moment make one job, and a crash in between leaves neither a job without its key nor a key without its job.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from indexer.catalog_videos import read_by_sha256
from indexer.errors import IndexerError, InvalidRecordError
from indexer.job_rows import Job, NewJob, find_open_fetch, find_open_job, insert_job, read_job

if TYPE_CHECKING:
    from indexer.catalog import Catalog


class QueueFullError(IndexerError):
    """As many jobs wait as may wait; nothing was added."""


class KeyReusedError(IndexerError):
    """The idempotency key was used for another request; nothing was added."""


@dataclass(frozen=True)
class IdempotencyKey:
    """A name that a client gives to a request, so that sending it again is recognised.

    request_sha256: over all that makes the request what it is. keep_seconds: how long it is remembered.
    """

    key: str
    request_sha256: str
    keep_seconds: float


@dataclass(frozen=True)
class Admission:
    """What became of a request.

    job: its job, as it is now; None where the bytes were in the index already. video_id: of its video.
    is_new: whether the job was made for this very request, so that the file it names now belongs to the job.
    """

    job: Job | None
    video_id: str
    is_new: bool = False


def admit(
    catalog: Catalog, new: NewJob, *, max_queued: int, idempotency_key: IdempotencyKey | None = None
) -> Admission:
    """Answer a request by what is there, or else add a job.

    In this order: what the key was answered before, the video with the same bytes, the open job for the same
    bytes, a new job. new: with its content_sha256; or one to be fetched, where the open job for the same uri
    stands for that of the same bytes. max_queued: no job is added while so many are queued.
    Raises KeyReusedError, QueueFullError, DuplicateIdError, InvalidRecordError.
    """
    if new.content_sha256 is None and not (new.delete_source and new.uri is not None):
        raise InvalidRecordError("a request is admitted by its bytes, or by the uri they are fetched from")
    now = catalog.clock()
    with catalog.connections.transaction() as connection:
        if idempotency_key is not None:
            _forget_expired(connection, now)
            known = _find(connection, idempotency_key)
            if known is not None:
                return known
        admission = _admit(connection, new, max_queued, now)
        if idempotency_key is not None:
            connection.execute(
                "INSERT INTO idempotency_keys VALUES (?, ?, ?, ?, ?)",
                (
                    idempotency_key.key,
                    idempotency_key.request_sha256,
                    None if admission.job is None else admission.job.id,
                    admission.video_id,
                    now + idempotency_key.keep_seconds,
                ),
            )
    return admission


def may_admit(catalog: Catalog, *, max_queued: int, key: str | None = None) -> bool:
    """Whether a request would probably be answered: there is room, or the key is known. Changes nothing.

    For a look before a large body is read; `admit` decides.
    """
    with catalog.connections.reading() as connection:
        if _num_queued(connection, max_queued) < max_queued:
            return True
        return (
            connection.execute(
                "SELECT 1 FROM idempotency_keys WHERE key = ? AND expires_at > ?", (key, catalog.clock())
            ).fetchone()
            is not None
        )


def forget_expired_keys(catalog: Catalog) -> int:
    """Drop the keys that were kept long enough; returns how many."""
    with catalog.connections.transaction() as connection:
        return _forget_expired(connection, catalog.clock())


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


def _find(connection: sqlite3.Connection, idempotency_key: IdempotencyKey) -> Admission | None:
    row = connection.execute(
        "SELECT request_sha256, job_id, video_id FROM idempotency_keys WHERE key = ?", (idempotency_key.key,)
    ).fetchone()
    if row is None:
        return None
    request_sha256, job_id, video_id = row
    if request_sha256 != idempotency_key.request_sha256:
        raise KeyReusedError("this key was used for another request")
    if job_id is None:
        return Admission(None, video_id)
    # A job that found its bytes indexed meanwhile has the id that they have: that is where the video is.
    job = read_job(connection, job_id)
    return Admission(job, job.video_id)


def _forget_expired(connection: sqlite3.Connection, now: float) -> int:
    return connection.execute("DELETE FROM idempotency_keys WHERE expires_at <= ?", (now,)).rowcount


def _num_queued(connection: sqlite3.Connection, enough: int) -> int:
    """Jobs that are queued, counted up to `enough`."""
    (number,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' LIMIT ?)", (enough,)
    ).fetchone()
    return int(number)
