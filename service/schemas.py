"""What comes in and what goes out, as JSON. Requests are strict: a wrong type is an error, never a guess."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from indexer.catalog_checks import MAX_ID_LENGTH, check_video_id
from indexer.errors import InvalidQueryError, InvalidRecordError
from indexer.filters import parse_filter

MAX_QUERY_CHARACTERS = 2000
MAX_TITLE_CHARACTERS = 500
MAX_URI_CHARACTERS = 4096
MAX_METADATA_BYTES = 16 * 1024
MAX_METADATA_DEPTH = 8


def check_query(text: str) -> str:
    """`text`, unless there is nothing in it to search for. Raises ValueError."""
    if not text.strip():
        raise ValueError("The query is blank: say in a few words what is to be seen.")
    return text


def check_title(text: str) -> str:
    """`text`, unless it is blank or holds a NUL. Raises ValueError."""
    if not text.strip() or "\0" in text:
        raise ValueError("The title must have a visible character and no NUL.")
    return text


def check_id(video_id: str) -> str:
    """`video_id`, unless it cannot be one. Raises ValueError."""
    try:
        return check_video_id(video_id)
    except InvalidRecordError:
        raise ValueError(
            f"An id has 1 to {MAX_ID_LENGTH} characters, no white space, none of / \\ ? # %, "
            "and is not . or .."
        ) from None


def check_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """`metadata`, unless it is too large, too deep, or holds a number that JSON cannot. Raises ValueError.

    At most MAX_METADATA_BYTES as compact UTF-8 JSON, at most MAX_METADATA_DEPTH objects and arrays deep.
    """
    if not _is_plain(metadata, MAX_METADATA_DEPTH):
        raise ValueError(
            f"The metadata must be JSON without NaN or Infinity, at most {MAX_METADATA_DEPTH} levels deep."
        )
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode("utf-8", "surrogatepass")) > MAX_METADATA_BYTES:
        raise ValueError(f"The metadata is larger than {MAX_METADATA_BYTES} bytes of JSON.")
    return metadata


def _is_plain(value: Any, levels_left: int) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return levels_left > 0 and all(_is_plain(inner, levels_left - 1) for inner in value.values())
    if isinstance(value, list):
        return levels_left > 0 and all(_is_plain(inner, levels_left - 1) for inner in value)
    return True


def check_filter(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """`value`, unless it is no filter. Raises ValueError, which names the place."""
    try:
        parse_filter(value)
    except InvalidQueryError as error:
        raise ValueError(f"{error}.") from None
    return value


Filter = Annotated[dict[str, Any], AfterValidator(check_filter)]
Title = Annotated[str, Field(max_length=MAX_TITLE_CHARACTERS), AfterValidator(check_title)]
Metadata = Annotated[dict[str, Any], AfterValidator(check_metadata)]


class Request(BaseModel):
    """A JSON body: unknown fields, other types, NaN and Infinity are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SearchRequest(Request):
    """A search by text."""

    query: Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS), AfterValidator(check_query)] = Field(
        description="What is to be seen, in words.", examples=["a dog runs on the beach"]
    )
    limit: int = Field(default=10, ge=1, le=100, description="Results in the answer, at most.")
    offset: int = Field(default=0, ge=0, le=10_000, description="Results left out before the first.")
    candidates: int = Field(
        default=200, ge=1, le=10_000, description="Segments that the coarse stage hands to the reranking."
    )
    mode: Literal["rerank", "coarse", "exhaustive"] = Field(
        default="rerank",
        description="rerank: the full score on the candidates; coarse: the coarse stage alone; "
        "exhaustive: the full score on everything.",
    )
    group_by: Literal["video", "segment"] = Field(
        default="video", description="Whether a result is a video with its best segment, or a segment."
    )
    min_score: float | None = Field(default=None, description="Results below this score are left out.")
    explain: bool = Field(default=False, description="Add tokens, frame times and the word-by-frame matrix.")
    filter: Filter | None = Field(
        default=None,
        description="Only videos that fulfil it: fields (id, title, duration_seconds, added_at, metadata.KEY)"
        " with a value, in, exists, gt, gte, lt or lte; joined by and, or, not.",
        examples=[{"metadata.camera": "north", "duration_seconds": {"gte": 10, "lt": 60}}],
    )


class AddVideoRequest(Request):
    """A video that lies on the server already, inside an allowed root."""

    uri: str = Field(
        min_length=1, max_length=MAX_URI_CHARACTERS, description="An absolute path or a file:// uri."
    )
    title: Title | None = None
    metadata: Metadata = Field(default_factory=dict)
    id: Annotated[str, AfterValidator(check_id)] | None = Field(
        default=None, description="The video's id; one is made where there is none."
    )


class Parameters(BaseModel):
    """Query parameters: unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class AddVideoParameters(Parameters):
    """Of POST /videos."""

    wait: bool = Field(
        default=False, description="Answer when the video can be found, or after a bounded wait."
    )


class ListVideosParameters(Parameters):
    """Of GET /videos."""

    limit: int = Field(default=50, ge=1, le=200, description="Videos in the answer, at most.")
    after: int | None = Field(default=None, ge=0, le=2**63 - 1, description="`next` of the page before.")


class ListJobsParameters(Parameters):
    """Of GET /jobs."""

    limit: int = Field(default=50, ge=1, le=200, description="Jobs in the answer, at most.")
    state: Literal["queued", "running", "done", "failed"] | None = None
    after: int | None = Field(default=None, ge=0, le=2**63 - 1, description="`next` of the page before.")


class ThumbnailParameters(Parameters):
    """Of GET /videos/{id}/thumbnail."""

    time_seconds: float = Field(default=0.0, ge=0, le=1e6, description="Seconds from the start of the video.")
    width: int = Field(default=320, ge=16, le=1280, description="Width of the picture in pixels, at most.")


class Answer(BaseModel):
    """A JSON answer."""

    model_config = ConfigDict(from_attributes=True)


class Span(Answer):
    """A stretch of a video."""

    start_seconds: float
    end_seconds: float


class MomentAnswer(Answer):
    """A sampled frame and how well it matches the query."""

    time_seconds: float
    score: float


class ScoresAnswer(Answer):
    """The four scores; null where the mode or the model does not compute one."""

    video_sentence: float | None
    video_word: float | None
    sentence_frame: float | None
    frame_word: float | None


class TimingsAnswer(Answer):
    """Where the time went."""

    encode_seconds: float
    coarse_seconds: float
    rerank_seconds: float
    total_seconds: float


class ExplanationAnswer(Answer):
    """Which words met which frames, N tokens by M frames."""

    tokens: list[str]
    frame_times: list[float] = Field(description="Seconds from the start of the video.")
    similarity: list[list[float]] = Field(description="N x M: cosine of each word with each frame.")


class ResultAnswer(Answer):
    """One result, best first. Moments are best first too."""

    id: str
    segment_id: int = Field(description="Number of the segment that the result is about.")
    rank: int = Field(description="1 for the best of all results, `offset` counted in.")
    score: float
    scores: ScoresAnswer
    title: str | None
    uri: str | None
    duration_seconds: float
    metadata: dict[str, Any]
    segment: Span
    moments: list[MomentAnswer]
    thumbnail_url: str
    media_url: str
    explanation: ExplanationAnswer | None = Field(default=None, description="Where `explain` asked for it.")


class SearchAnswerBody(Answer):
    """The answer to a search."""

    query: str
    mode: Literal["rerank", "coarse", "exhaustive"]
    num_videos: int = Field(description="Videos in the index.")
    truncated: bool = Field(description="Whether the candidates left something out.")
    warnings: list[str]
    timings: TimingsAnswer
    results: list[ResultAnswer]


class VideoAnswer(Answer):
    """A video of the index."""

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
    partial: bool = Field(description="Whether a part of the file could not be read.")
    fraction_read: float
    added_at: datetime
    thumbnail_url: str
    media_url: str


class VideoPage(Answer):
    """A page of videos, newest first."""

    videos: list[VideoAnswer]
    next: int | None = Field(description="Give it as `after` for the next page; null on the last.")


class JobAnswer(Answer):
    """An ingest request and its life."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    video_id: str = Field(description="The id that the video will have; from `done` on the id that it has.")
    title: str | None
    reason: str | None = Field(description="Why the job failed, in words.")
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobPage(Answer):
    """A page of jobs, newest first."""

    jobs: list[JobAnswer]
    next: int | None = Field(description="Give it as `after` for the next page; null on the last.")


class VideoReference(Answer):
    """The id under which a video is, or will be, found."""

    id: str


class AddVideoAnswer(Answer):
    """What became of an upload. `job` is null where the same bytes were there already."""

    job: JobAnswer | None
    video: VideoReference


class HealthAnswer(Answer):
    """Whether the process lives, or is ready."""

    status: Literal["ok"]


class StatsAnswer(Answer):
    """What there is and what is going on."""

    num_videos: int
    num_segments: int
    sequence: int = Field(description="Number of the last change of the index.")
    fingerprint: str = Field(description="sha256 over model and sampling.")
    embedding_dim: int
    num_frames: int
    jobs: dict[Literal["queued", "running", "done", "failed"], int] = Field(
        description="How many jobs are in each state."
    )
    num_searches_inside: int = Field(description="Searches that run or wait right now.")
    search: dict[str, Any] = Field(description="Figures of the search engine itself.")


class FieldError(Answer):
    """One thing wrong with a request."""

    field: str = Field(description="The field or parameter; empty where it is not one of those known.")
    message: str


class Problem(Answer):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = Field(default=None, description="Only where single fields are wrong.")
    job: JobAnswer | None = Field(default=None, description="Only where a job failed.")
