"""What a search takes and gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from indexer.errors import InvalidQueryError
from indexer.filters import parse_filter

SearchMode = Literal["rerank", "coarse", "exhaustive"]
GroupBy = Literal["video", "segment"]

MAX_TEXT_LENGTH = 10_000
MAX_LIMIT = 1_000
MAX_OFFSET = 10_000
MAX_CANDIDATES = 100_000


@dataclass(frozen=True)
class SearchQuery:
    """A search. Raises InvalidQueryError where a field is out of its range.

    text: 1 to 10,000 characters, not only white space; the model reads the first words (see
        `SearchAnswer.warnings`).
    limit: results on the page, 1 to 1,000. offset: results before the page, 0 to 10,000.
    candidates: segments that the coarse stage hands on, 1 to 100,000; raised to offset + limit where it is
        less.
    mode: `rerank` the candidates by all scores; `coarse`, their order by `video_sentence` alone;
        `exhaustive`, all
        scores of every segment.
    group_by: a result is a `video` with its best segment, or a `segment`.
    min_score: results below are left out; any finite number, None for all.
    explain: add an `Explanation` to each result.
    filter: only videos that fulfil it, as `indexer.filters` describes; None for all.
    """

    text: str
    limit: int = 10
    offset: int = 0
    candidates: int = 200
    mode: SearchMode = "rerank"
    group_by: GroupBy = "video"
    min_score: float | None = None
    explain: bool = False
    filter: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip() or len(self.text) > MAX_TEXT_LENGTH:
            raise InvalidQueryError(
                f"text must have 1 to {MAX_TEXT_LENGTH} characters and not only white space"
            )
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidQueryError("text must be valid Unicode (it holds a lone surrogate)") from None
        _check_integer("limit", self.limit, 1, MAX_LIMIT)
        _check_integer("offset", self.offset, 0, MAX_OFFSET)
        _check_integer("candidates", self.candidates, 1, MAX_CANDIDATES)
        _check_choice("mode", self.mode, get_args(SearchMode))
        _check_choice("group_by", self.group_by, get_args(GroupBy))
        if self.min_score is not None and not (
            isinstance(self.min_score, int | float) and math.isfinite(self.min_score)
        ):
            raise InvalidQueryError("min_score must be a finite number or None")
        if self.filter is not None:
            parse_filter(self.filter)

    @property
    def num_wanted(self) -> int:
        """Results up to the end of the page."""
        return self.offset + self.limit


@dataclass(frozen=True)
class Segment:
    """The stretch of a video that a result is about."""

    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Moment:
    """A sampled frame: when it is shown, in seconds of the video, and how well it matches (scaled like a
    score)."""

    time_seconds: float
    score: float


@dataclass(frozen=True)
class Explanation:
    """Which words met which frames, N tokens by M real frames.

    tokens: N texts, start and end marks included. frame_times: M, seconds of the video. similarity: N x M,
    the cosine of each (mapped) word with each frame, not scaled.
    """

    tokens: Sequence[str]
    frame_times: Sequence[float]
    similarity: Sequence[Sequence[float]]


@dataclass(frozen=True)
class SearchResult:
    """One found video (or segment).

    id: of the video. segment_id: of its best segment. rank: from 1, over all pages. score: what the order is
        by.
    scores: the four, scaled; None for those that the mode does not compute. moments: the best three frames of
    the segment, best first (fewer where it has fewer).
    """

    id: str
    segment_id: int
    rank: int
    score: float
    scores: Mapping[str, float | None]
    title: str | None
    uri: str | None
    duration_seconds: float
    metadata: Mapping[str, Any]
    segment: Segment
    moments: Sequence[Moment]
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds: text to features, finding candidates, scoring them (reading their
    features included), and all together (also putting the page together)."""

    encode_seconds: float
    coarse_seconds: float
    rerank_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class SearchAnswer:
    """A page of results.

    query, mode: as asked. num_videos: in the index. truncated: not every segment was looked at, so a video
    that no candidate belonged to may be missing. warnings: sentences for a person.
    """

    query: str
    mode: SearchMode
    num_videos: int
    truncated: bool
    warnings: Sequence[str]
    timings: Timings
    results: Sequence[SearchResult]


def _check_integer(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidQueryError(f"{name} must be a whole number from {least} to {most}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidQueryError(f"{name} must be one of {', '.join(choices)}")
