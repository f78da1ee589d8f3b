"""Jobs between records and rows, the same in every store.

The checksum of a row is over what the job is made of. How far it has come changes often, and what is wrong
there costs a try at most.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Final

from indexer.errors import IndexDamagedError, InvalidRecordError, LeaseLostError
from indexer.store.checksums import checksum_of_row
from indexer.store.job import FailureReason, Job, NewJob
from indexer.store.records import check_sha256, check_text, check_video_id, metadata_to_json

MAX_ATTEMPTS: Final = 3
GAVE_UP_REASON: Final = f"processing was started {MAX_ATTEMPTS} times and never came to an end"
DAMAGED_REASON: Final = "the stored request is damaged; send it again"

COLUMNS: Final = (
    "number, id, state, video_id, content_sha256, source_path, uri, title, metadata, delete_source, reason,"
    " failure, attempts, worker_name, lease_expires_at, created_at, started_at, finished_at, row_crc32"
)
"""In the order of the fields of `Job`."""

FIXED_COLUMNS: Final = (
    "id, video_id, content_sha256, source_path, uri, title, metadata, delete_source, created_at"
)
"""What a job is made of, in the order of its checksum."""

_FIXED_POSITIONS: Final = [COLUMNS.split(", ").index(name) for name in FIXED_COLUMNS.split(", ")]


UNFETCHED: Final = "(content_sha256 IS NULL AND delete_source = 1 AND uri IS NOT NULL)"
"""The job's file has still to be fetched, in the SQL of every store; see `Job.is_unfetched`."""


def row_of_new_job(new: NewJob, now: float) -> tuple[Any, ...]:
    """FIXED_COLUMNS and row_crc32 of a job made now. Raises InvalidRecordError."""
    row = (
        uuid.uuid4().hex,
        uuid.uuid4().hex if new.video_id is None else check_video_id(new.video_id),
        None if new.content_sha256 is None else check_sha256(new.content_sha256),
        check_text("source_path", new.source_path),
        check_text("uri", new.uri),
        check_text("title", new.title),
        metadata_to_json(new.metadata),
        int(new.delete_source),
        float(now),
    )
    return *row, checksum_of_row(row)


def check_admittable(new: NewJob) -> None:
    """Raise InvalidRecordError unless this request says by what it is recognised."""
    if new.content_sha256 is None and not (new.delete_source and new.uri is not None):
        raise InvalidRecordError("a request is admitted by its bytes, or by the uri they are fetched from")


def check_lease(job: Job, attempt: int | None) -> None:
    """Raise LeaseLostError unless the job is running, under this attempt where one is given."""
    if job.state != "running":
        raise LeaseLostError(f"the job {job.id} is not running any more: it is {job.state}")
    if attempt is not None and attempt != job.attempts:
        raise LeaseLostError(f"the job {job.id} was leased by another worker")


def job_of(row: Sequence[Any]) -> Job:
    """The job in a row of COLUMNS. Raises IndexDamagedError."""
    if not is_whole_job(row):
        raise IndexDamagedError(
            f"the catalog is damaged: job number {row[0]} does not match its checksum;"
            " rebuild removes such jobs"
        )
    fields = dict(zip(COLUMNS.split(", "), row, strict=True))
    del fields["row_crc32"]
    fields["metadata"] = json.loads(fields["metadata"])
    fields["delete_source"] = bool(fields["delete_source"])
    failure = fields["failure"]
    fields["failure"] = None if failure is None else _failure(failure)
    return Job(**fields)


def _failure(value: str) -> FailureReason:
    """Of a row that may be damaged in what no checksum is over."""
    try:
        return FailureReason(value)
    except ValueError:
        return FailureReason.UNKNOWN


def is_whole_job(row: Sequence[Any]) -> bool:
    """Whether a row of COLUMNS says what the job was made of."""
    return bool(checksum_of_row([row[position] for position in _FIXED_POSITIONS]) == row[-1])
