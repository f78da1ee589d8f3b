"""Ingest requests: what they are made of, their states, and why they fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, get_args

JobState = Literal["queued", "running", "done", "failed"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)


class FailureReason(StrEnum):
    """Why a job failed, in few classes: metrics must not have a label for every sentence."""

    MEDIA = "media"
    """The file is no video that we read: the client has to correct it."""
    DECODER = "decoder"
    """The decoder crashed, or took too long."""
    FETCH = "fetch"
    """The file could not be fetched from its uri."""
    ID_TAKEN = "id_taken"
    """Another video got the id that was asked for."""
    KEPT_OUT = "kept_out"
    """Its content was deleted on purpose and is kept out."""
    CANCELLED = "cancelled"
    """The client cancelled it."""
    GAVE_UP = "gave_up"
    """It was started several times and never ended: its workers died."""
    NO_ROOM = "no_room"
    """The disk is full."""
    INTERNAL = "internal"
    """Anything else; the server's log says what."""
    UNKNOWN = "unknown"
    """It failed under version 0.1.0, which stored no class."""


@dataclass(frozen=True)
class Job:
    """One ingest request. Times are seconds since 1970.

    Attributes:
        number: increases with every job.
        video_id: the id its video will have, and from `done` on the id it has (another one where the same
            bytes were indexed already).
        source_path: the local file to index, or its file:// address where its name is not UTF-8; never shown
            to a client.
        delete_source: whether the file is ours, to be deleted when the job has ended.
        reason: why it failed, a sentence for the client.
        failure: the same in one of few classes.
        attempts: times it was leased.
        started_at: of the last attempt.
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
    failure: FailureReason | None
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


@dataclass(frozen=True)
class Admission:
    """What became of a request.

    job: its job, as it is now; None where the bytes were in the index already. video_id: of its video.
    is_new: whether the job was made for this very request, so that the file it names now belongs to the job.
    """

    job: Job | None
    video_id: str
    is_new: bool = False
