"""Searches and their answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.schemas.fields import Filter, QueryText
from service.schemas.strictness import Answer, Request


class SearchRequest(Request):
    """A search by text."""

    query: QueryText = Field(
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
    num_moments: int = Field(default=3, ge=1, le=64, description="Moments in each result, at most.")
    explain: bool = Field(default=False, description="Add tokens, frame times and the word-by-frame matrix.")
    filter: Filter | None = Field(
        default=None,
        description="Only videos that fulfil it: fields (id, title, duration_seconds, added_at, metadata.KEY)"
        " with a value, in, exists, gt, gte, lt or lte; joined by and, or, not.",
        examples=[{"metadata.camera": "north", "duration_seconds": {"gte": 10, "lt": 60}}],
    )


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
    preview_url: str
    playable: bool = Field(description="Whether browsers play `media` itself; else there is the preview.")
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
