"""What the service answers, as frozen objects with types. Fields that a newer server adds are left out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

JobState = Literal["queued", "running", "done", "failed"]
Mode = Literal["rerank", "coarse", "exhaustive"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Span(_Answer):
    """A stretch of a video, in seconds from its start."""

    start_seconds: float
    end_seconds: float


class Moment(_Answer):
    """A sampled frame and how well it matches."""

    time_seconds: float
    score: float


class Scores(_Answer):
    """The four scores; None where the mode or the model does not compute one."""

    video_sentence: float | None = None
    video_word: float | None = None
    sentence_frame: float | None = None
    frame_word: float | None = None


class Timings(_Answer):
    """Where the server's time went, in seconds; None for stages that there were not."""

    encode_seconds: float | None = None
    coarse_seconds: float | None = None
    rerank_seconds: float | None = None
    total_seconds: float


class Explanation(_Answer):
    """Which words met which frames: similarity[token][frame] is a cosine."""

    tokens: list[str]
    frame_times: list[float]
    similarity: list[list[float]]


class Result(_Answer):
    """One found video (or segment).

    percentile: share (0 to 100) of the index's baseline scores below this one; None where it is too small
    to say. The addresses are paths on the server.
    """

    id: str
    segment_id: int
    rank: int
    score: float
    scores: Scores
    percentile: float | None = None
    title: str | None
    uri: str | None
    duration_seconds: float
    metadata: dict[str, Any]
    segment: Span
    moments: list[Moment]
    thumbnail_url: str
    media_url: str
    preview_url: str | None = None
    playable: bool | None = None
    explanation: Explanation | None = None


class SearchAnswer(_Answer):
    """A page of results, best first."""

    query: str
    mode: Mode
    num_videos: int
    truncated: bool
    warnings: list[str]
    timings: Timings
    results: list[Result]


class ManySearchAnswers(_Answer):
    """One answer for each of several queries, in their order."""

    answers: list[SearchAnswer]
    timings: Timings


class SimilarVideos(_Answer):
    """Videos like the one of this id, best first; their scores are cosines."""

    id: str
    num_videos: int
    results: list[Result]


class RankedText(_Answer):
    """A text and how well it fits the video. index: its place in the request."""

    rank: int
    index: int
    text: str
    score: float
    scores: Scores
    percentile: float | None = None
    segment: Span
    moments: list[Moment]


class RankedTexts(_Answer):
    """Texts for the video of this id, best first."""

    id: str
    warnings: list[str]
    timings: Timings
    results: list[RankedText]


class Video(_Answer):
    """A video of the index. partial: only the first `fraction_read` of the file could be read."""

    id: str
    title: str | None
    uri: str | None
    metadata: dict[str, Any]
    duration_seconds: float
    width: int
    height: int
    frame_rate: float
    codec: str
    size_bytes: int
    content_sha256: str
    partial: bool
    fraction_read: float
    added_at: datetime
    thumbnail_url: str
    media_url: str
    preview_url: str | None = None
    playable: bool | None = None


class VideoPage(_Answer):
    """A page of videos, newest first. next: `after` of the next page; None on the last."""

    videos: list[Video]
    next: int | None


class Job(_Answer):
    """An ingest request and its life.

    video_id: the id that the video will have, and from `done` on the id that it has. received_bytes: while
    the file is fetched from the web.
    """

    id: str
    state: JobState
    video_id: str
    title: str | None
    reason: str | None
    attempts: int
    received_bytes: int | None = None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether the state is `done` or `failed`."""
        return self.state in ("done", "failed")


class JobPage(_Answer):
    """A page of jobs, newest first. next: `after` of the next page; None on the last."""

    jobs: list[Job]
    next: int | None


class VideoReference(_Answer):
    """The id under which a video is, or will be, found."""

    id: str


class AddedVideo(_Answer):
    """What became of a request to add a video. job: None where the same bytes were in the index already."""

    job: Job | None
    video: VideoReference

    @property
    def was_known(self) -> bool:
        """Whether the same bytes were in the index already."""
        return self.job is None


class Stats(_Answer):
    """What there is and what is going on."""

    num_videos: int
    num_segments: int
    sequence: int
    fingerprint: str
    embedding_dim: int
    num_frames: int
    jobs: Mapping[JobState, int]
    num_searches_inside: int
    search: dict[str, Any]


class Access(_Answer):
    """What the key that was used may do, and whether this server asks for keys at all."""

    scopes: list[str]
    keys_required: bool


class Health(_Answer):
    """`ok`."""

    status: Literal["ok"]
