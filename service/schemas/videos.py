"""Videos, their files and pictures, and the jobs that add them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from indexer.store.records import Sort
from service.schemas.fields import (
    MAX_URI_CHARACTERS,
    MEDIA_START,
    RECORDED_AT,
    Answer,
    FilterText,
    Metadata,
    Parameters,
    RecordedAt,
    Request,
    Title,
    VideoId,
)

CURSOR_PATTERN = r"^[0-9]{1,19}(~(-?[0-9.e+]+)?)?$"
"""The change that added a video and, where it was asked for, when it was recorded."""


class ListJobsParameters(Parameters):
    """Of GET /jobs."""

    limit: int = Field(default=50, ge=1, le=200, description="Jobs in the answer, at most.")
    state: Literal["queued", "running", "done", "failed"] | None = Field(
        default=None, description="Only jobs in this state."
    )
    after: int | None = Field(default=None, ge=0, le=2**63 - 1, description="`next` of the page before.")


class JobAnswer(Answer):
    """An ingest request: its state and outcome."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    video_id: str = Field(description="The id that the video will have; from `done` on the id that it has.")
    title: str | None
    reason: str | None = Field(description="Why the job failed, in words.")
    attempts: int
    received_bytes: int | None = Field(
        default=None, description="While the file is fetched from the web: how much of it has arrived."
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether the state is `done` or `failed`."""
        return self.state in ("done", "failed")


class JobPage(Answer):
    """A page of jobs, newest first."""

    jobs: list[JobAnswer]
    next: int | None = Field(description="Give it as `after` for the next page; null on the last.")


class AddVideoRequest(Request):
    """A video inside a folder of the server's that is allowed, or one that it fetches from the web."""

    uri: str = Field(
        min_length=1,
        max_length=MAX_URI_CHARACTERS,
        description="An absolute path, a file:// uri, or, where it is turned on, an http(s):// address.",
    )
    title: Title | None = None
    metadata: Metadata = Field(default_factory=dict)
    id: VideoId | None = Field(
        default=None,
        description="The video's id; one is made where there is none, and always for one from the web.",
    )


class AddVideoParameters(Parameters):
    """Of POST /videos."""

    wait: bool = Field(
        default=False, description="Answer when the video is searchable, or after a bounded wait."
    )


class ListVideosParameters(Parameters):
    """Of GET /videos."""

    limit: int = Field(default=50, ge=1, le=200, description="Videos in the answer, at most.")
    after: str | None = Field(
        default=None, pattern=CURSOR_PATTERN, max_length=60, description="`next` of the page before."
    )
    sort: Sort = Field(
        default="-added_at",
        description="By when they were added or recorded; with a minus sign the latest first. Where that is"
        " not known, last.",
    )
    filter: FilterText | None = Field(default=None, description="As in a search, as JSON text.")


class PatchVideoRequest(Request):
    """A merge patch (RFC 7396) of title, metadata and the time of recording: null removes."""

    title: Title | None = None
    metadata: dict[str, Any] | None = Field(
        default=None, description="Members to set; null removes one, or, instead of the object, all."
    )
    recorded_at: RecordedAt | None = None


class DeleteVideoParameters(Parameters):
    """Of DELETE /videos/{id}."""

    keep_out: bool = Field(default=False, description="Whether the same content shall not come in again.")


class ThumbnailParameters(Parameters):
    """Of GET /videos/{id}/thumbnail."""

    time_seconds: float = Field(default=0.0, ge=0, le=1e6, description="Seconds from the start of the video.")
    width: int = Field(default=320, ge=16, le=1280, description="Width of the picture in pixels, at most.")


class PreviewParameters(Parameters):
    """Of GET /videos/{id}/preview."""

    time_seconds: float = Field(default=0.0, ge=0, le=1e6, description="Seconds from the start of the video.")


class VideoAnswer(Answer):
    """A video of the index."""

    id: str
    title: str | None
    uri: str | None
    metadata: dict[str, Any]
    duration_seconds: float
    media_start_seconds: float = MEDIA_START
    width: int
    height: int
    frame_rate: float
    codec: str
    size_bytes: int
    content_sha256: str
    partial: bool = Field(description="Whether a part of the file could not be read.")
    fraction_read: float
    added_at: datetime
    recorded_at: datetime | None = RECORDED_AT
    missing_since: datetime | None = Field(
        default=None, description="When its file was first found to be gone; null while it is there."
    )
    thumbnail_url: str
    media_url: str
    preview_url: str
    playable: bool = Field(description="Whether browsers play `media` itself; else there is the preview.")


class VideoPage(Answer):
    """A page of videos."""

    videos: list[VideoAnswer]
    next: int | str | None = Field(
        description="Give it as `after` for the next page of the same order; null on the last."
    )


class TranscriptAnswer(Answer):
    """A transcript of a video."""

    track: str = Field(description="A language tag or another short name; `und` where none is known.")
    num_lines: int
    end_seconds: float = Field(description="When the last line ends, in seconds of the video.")
    from_file: bool = Field(description="Whether it is that of a file beside the video, and follows it.")
    url: str = Field(description="Of the transcript as WebVTT.")


class TranscriptList(Answer):
    """The transcripts of a video, by their tracks."""

    transcripts: list[TranscriptAnswer]


class VideoReference(Answer):
    """The id under which a video is, or will be, found."""

    id: str


class AddVideoAnswer(Answer):
    """What became of an upload. `job` is null where the same bytes were there already."""

    job: JobAnswer | None
    video: VideoReference

    @property
    def was_known(self) -> bool:
        """Whether the same bytes were in the index already."""
        return self.job is None
