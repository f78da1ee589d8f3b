"""What a search takes and answers, with every bound of a query; how it is timed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, Self, get_args

from indexer.errors import InvalidQueryError
from indexer.store.filters import Filter, parse_filter

SearchMode = Literal["rerank", "coarse", "exhaustive"]
GroupBy = Literal["video", "segment"]
TextMatch = Literal["off", "boost", "only"]
Match = Literal["strong", "likely", "weak", "none"]
Stage = Literal["encode", "coarse", "rerank"]

MAX_QUERY_LENGTH = 10_000
MAX_LIMIT = 1_000
MAX_OFFSET = 10_000
MAX_CANDIDATES = 100_000
MAX_BATCH_TEXTS = 1_000
MAX_MOMENTS = 64

DEFAULT_LIMIT = 10
DEFAULT_CANDIDATES = 200
DEFAULT_MOMENTS = 3

NOT_WEIGHT = 0.3
"""What the score of a text that is not wanted counts, when it is subtracted. Of 0 to 1 it gave the most right
results (benchmarks/facts/less_of.py): more also pushes away what is wanted, which resembles it."""

FOLD_THRESHOLD = 0.98
"""From which cosine of their features on two results look the same, unless the query says: with the demo
model it folds one of 500 different drawings and all but 1 % of re-encoded ones, and it suits a model of real
pictures as well (benchmarks/facts/folding.py)."""

MIN_FOLD_THRESHOLD = 0.5
"""The least that a query may say: pictures that have little in common are above it."""

MAX_COPIES = 100
"""Of a result, that are named."""


@dataclass(frozen=True)
class SearchQuery:
    """A search by text.

    Args:
        text: 1 to 10,000 characters, not only white space; the model reads the first words (see
            `SearchAnswer.warnings`).
        limit: Results on the page, 1 to 1,000.
        offset: Results before the page, 0 to 10,000. Pages of any size cut one and the same order, as long as
            the index does not change.
        candidates: Size of the rerank window, 1 to 100,000 segments: this many of the coarse stage's best are
            ordered by the full score and come first; what lies behind them follows in coarse order.
        mode: `rerank`, as above; `coarse`, the order by `video_sentence` alone, which `candidates` does not
            change; `exhaustive`, the full score of every segment.
        group_by: A result is a `video` with its best segment (of the window, or else its first one behind
            it), or a `segment`. By `video`, a page is not shorter than `limit` while there are more videos.
        min_score: Results below are left out, any finite number; in `rerank` mode also all that lies behind
            the window. None for all.
        explain: Add an `Explanation` to each result.
        filter: Only videos that fulfil it, as `indexer.store.filters` describes; None for all. Kept parsed.
        min_percentile: The same as `min_score` by `SearchResult.percentile`, 0 to 100.
        num_moments: In each result at most, 1 to 64.
        text_match: Whether words of the text in titles, metadata and transcripts count: `off`; `boost`, they
            bring videos forward; `only`, only videos that have some, ordered by them, see
            `indexer.search.text_matching`.
        without: A text that is not wanted, as `text`, or None: NOT_WEIGHT times its score is subtracted from
            every score, also in the coarse stage. There are no percentiles then.
        fold: Whether results that look the same become one, see `indexer.search.folding`: False; True; or
            from which cosine of their features on, 0.5 to 1. `limit` and `offset` count what is left.

    Raises:
        InvalidQueryError: A field is out of its range; the message names it.

    >>> SearchQuery("a dog runs", limit=5, filter={"duration_seconds": {"lt": 60}}).num_wanted
    5
    """

    text: str
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    candidates: int = DEFAULT_CANDIDATES
    mode: SearchMode = "rerank"
    group_by: GroupBy = "video"
    min_score: float | None = None
    explain: bool = False
    filter: Mapping[str, Any] | Filter | None = None
    min_percentile: float | None = None
    num_moments: int = DEFAULT_MOMENTS
    text_match: TextMatch = "off"
    without: str | None = None
    fold: bool | float = False

    def __post_init__(self) -> None:
        check_text("text", self.text)
        if self.without is not None:
            check_text("without", self.without)
            if self.min_percentile is not None:
                raise InvalidQueryError("min_percentile and a text that is not wanted cannot be combined")
        _check_results(self)
        _check_integer("candidates", self.candidates, 1, MAX_CANDIDATES)
        _check_choice("mode", self.mode, get_args(SearchMode))
        _check_choice("text_match", self.text_match, get_args(TextMatch))
        if self.min_percentile is not None and not (
            is_finite(self.min_percentile) and 0 <= self.min_percentile <= 100
        ):
            raise InvalidQueryError("min_percentile must be a number from 0 to 100 or None")
        object.__setattr__(self, "filter", as_filter(self.filter))

    @property
    def num_wanted(self) -> int:
        """Results up to the end of the page."""
        return self.offset + self.limit

    @property
    def fold_threshold(self) -> float | None:
        """From which cosine on results are folded; None for not at all."""
        return _threshold(self.fold)


@dataclass(frozen=True)
class SimilarQuery:
    """What a search by a video, a picture or a clip may ask for; the fields are those of `SearchQuery`.

    min_score is a cosine. Raises InvalidQueryError where a field is out of its range; the message names it.
    """

    limit: int = DEFAULT_LIMIT
    offset: int = 0
    group_by: GroupBy = "video"
    min_score: float | None = None
    filter: Mapping[str, Any] | Filter | None = None
    num_moments: int = DEFAULT_MOMENTS
    fold: bool | float = False

    def __post_init__(self) -> None:
        _check_results(self)
        object.__setattr__(self, "filter", as_filter(self.filter))

    @property
    def num_wanted(self) -> int:
        """Results up to the end of the page."""
        return self.offset + self.limit

    @property
    def fold_threshold(self) -> float | None:
        """From which cosine on results are folded; None for not at all."""
        return _threshold(self.fold)


@dataclass(frozen=True)
class Segment:
    """The interval of a video that a result is about."""

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
class TextHit:
    """Where words of a query are in what is written of a video, or said in it.

    field: `title`, `metadata` or `transcript`. text: the title, the value, or the line, cut where it is long.
    start_seconds, end_seconds: when a line is said. track: of the transcript, see
    `indexer.store.transcripts.Transcript`. They are None for the others.
    """

    field: Literal["title", "metadata", "transcript"]
    text: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    track: str | None = None


@dataclass(frozen=True)
class Copy:
    """A result that looks like a better one, into which it was folded.

    id: of the video. segment_id: of its segment. similarity: the cosine of the features of both segments.
    """

    id: str
    segment_id: int
    similarity: float


@dataclass(frozen=True)
class SearchResult:
    """One found video (or segment).

    id: of the video. segment_id: of its best segment. rank: from 1, over all pages.
    score: the full score, which orders the rerank window (behind it the coarse order does); in `coarse` mode
        `video_sentence`.
    scores: the four, scaled; None for those that the mode does not compute. moments: the best frames of the
        segment, best first, `num_moments` of them (fewer where it has fewer).
    recorded_at: seconds since 1970; None where it is not known when the video was recorded.
    media_start_seconds: what to add to a time of ours for a player of the file, as in `VideoRecord`.
    percentile: how much of the index's baseline scores lies below the score, 0 to 100, see
        `indexer.search.baseline`; None where they are not known (yet).
    text_hits: where words of the query are, if `text_match` asked for it.
    match: how surely the result is what was asked for, see `indexer.search.baseline`; None where that is not
        known.
    copies: results that were folded into this one, if `fold` asked for it, best first, MAX_COPIES at most.
    num_copies: how many were.
    """

    id: str
    segment_id: int
    rank: int
    score: float
    scores: Mapping[str, float | None]
    title: str | None
    uri: str | None
    duration_seconds: float
    recorded_at: float | None
    metadata: Mapping[str, Any]
    segment: Segment
    moments: Sequence[Moment]
    explanation: Explanation | None = None
    percentile: float | None = None
    media_start_seconds: float = 0.0
    text_hits: Sequence[TextHit] = ()
    match: Match | None = None
    copies: Sequence[Copy] = ()
    num_copies: int = 0


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds: text to features (waiting for a batch included; next to nothing for a
    recent text), finding candidates, scoring them (reading their features included), and all together (also
    putting the page together)."""

    encode_seconds: float
    coarse_seconds: float
    rerank_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class SearchAnswer:
    """A page of results.

    query, mode: as asked. num_videos: in the index. truncated: more segments (that fulfil the filter) than
    `candidates`, so that one behind them may have a higher full score than what is here.
    warnings: sentences for the user. stale_seconds: for how long the database has not answered, where the
    results are from the index as it was.
    """

    query: str
    mode: SearchMode
    num_videos: int
    truncated: bool
    warnings: Sequence[str]
    timings: Timings
    results: Sequence[SearchResult]
    stale_seconds: float | None = None

    def _repr_html_(self) -> str:
        """What a notebook shows: a grid of pictures."""
        from indexer.search.notebook import answer_as_html

        return answer_as_html(self.query, self.results, self.warnings)


@dataclass(frozen=True)
class SearchAnswers:
    """Pages of results of several texts, in their order. timings: of all together."""

    answers: Sequence[SearchAnswer]
    timings: Timings


@dataclass(frozen=True)
class SimilarAnswer:
    """Videos that look like one video, or like a picture or a clip that is not in the index.

    id: of that video, which is not among the results; None for a picture or a clip. num_videos: in the index.
    In the results `score` and the moments' scores are cosines of features, -1 to 1; `scores` and `percentile`
    are None. warnings: sentences for the user.
    """

    id: str | None
    num_videos: int
    results: Sequence[SearchResult]
    warnings: Sequence[str] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows: a grid of pictures."""
        from indexer.search.notebook import answer_as_html

        return answer_as_html(f"Like {self.id or 'the file'}", self.results, self.warnings)


@dataclass(frozen=True)
class RankedText:
    """A text and how well it fits a video.

    rank: from 1. index: position among the texts that were given, from 0. score, scores, percentile: the full
    score with the video's best segment for this text, which `segment` says; moments: of that segment, as in
    `SearchResult`.
    """

    rank: int
    index: int
    text: str
    score: float
    scores: Mapping[str, float | None]
    percentile: float | None
    segment: Segment
    moments: Sequence[Moment]


@dataclass(frozen=True)
class TextTimings:
    """Where the time went, in seconds: texts to features, scoring them, and all together."""

    encode_seconds: float
    rerank_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class TextsAnswer:
    """Texts by how well they fit a video, best first, equal ones in the order given.

    id: of the video. warnings: sentences for the user.
    """

    id: str
    warnings: Sequence[str]
    timings: TextTimings
    results: Sequence[RankedText]

    @classmethod
    def join(cls, answers: Sequence[Self]) -> Self:
        """One answer about all texts, from answers about parts of them in their order; at least one."""
        firsts = accumulate((len(answer.results) for answer in answers), initial=0)
        results = [
            replace(result, index=first + result.index)
            for first, answer in zip(firsts, answers, strict=False)
            for result in answer.results
        ]
        results.sort(key=lambda result: (-result.score, result.index))
        parts = [answer.timings for answer in answers]
        return cls(
            answers[0].id,
            [warning for answer in answers for warning in answer.warnings],
            TextTimings(
                sum(part.encode_seconds for part in parts),
                sum(part.rerank_seconds for part in parts),
                sum(part.total_seconds for part in parts),
            ),
            [replace(result, rank=rank) for rank, result in enumerate(results, start=1)],
        )


def texts_of(queries: Sequence[SearchQuery]) -> list[str]:
    """What has to be encoded for queries that differ in their texts alone: these, and what is not wanted."""
    unwanted = queries[0].without
    return [*(query.text for query in queries), *([] if unwanted is None else [unwanted])]


def check_text(name: str, text: object) -> None:
    """Raise InvalidQueryError unless `text` is something that can be compared with videos."""
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_QUERY_LENGTH:
        raise InvalidQueryError(
            f"{name} must have 1 to {MAX_QUERY_LENGTH} characters and not only white space"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidQueryError(f"{name} must be valid Unicode (it holds a lone surrogate)") from None


def check_batch(queries: Sequence[SearchQuery]) -> None:
    """Raise InvalidQueryError unless these queries can be answered together."""
    if not 1 <= len(queries) <= MAX_BATCH_TEXTS:
        raise InvalidQueryError(f"queries must be 1 to {MAX_BATCH_TEXTS}")
    if any(replace(query, text=queries[0].text) != queries[0] for query in queries[1:]):
        raise InvalidQueryError("queries must differ in their texts alone")


def check_page(limit: int, offset: int) -> None:
    """Raise InvalidQueryError unless a page of `limit` results behind `offset` can be asked for."""
    _check_integer("limit", limit, 1, MAX_LIMIT)
    _check_integer("offset", offset, 0, MAX_OFFSET)


def as_filter(value: Mapping[str, Any] | Filter | None) -> Filter | None:
    """The filter that a JSON object says; what is parsed already stays. Raises InvalidQueryError."""
    return value if value is None or isinstance(value, Filter) else parse_filter(value)


def is_finite(value: object) -> bool:
    """Whether this is a number that float64 holds (math.isfinite raises for larger whole numbers)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _check_results(query: SearchQuery | SimilarQuery) -> None:
    """Raise InvalidQueryError where a field is out of its range that says which results are wanted."""
    check_page(query.limit, query.offset)
    _check_integer("num_moments", query.num_moments, 1, MAX_MOMENTS)
    _check_choice("group_by", query.group_by, get_args(GroupBy))
    if not isinstance(query.fold, bool) and not (
        is_finite(query.fold) and MIN_FOLD_THRESHOLD <= query.fold <= 1
    ):
        raise InvalidQueryError(
            f"fold must be True, False, or from which cosine on results are one: {MIN_FOLD_THRESHOLD} to 1"
        )
    if query.min_score is not None and not is_finite(query.min_score):
        raise InvalidQueryError("min_score must be a finite number or None")


def _threshold(fold: bool | float) -> float | None:
    if isinstance(fold, bool):
        return FOLD_THRESHOLD if fold else None
    return fold


def _check_integer(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidQueryError(f"{name} must be a whole number from {least} to {most}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidQueryError(f"{name} must be one of {', '.join(choices)}")


class StageTimes:
    """Seconds spent in each stage, whose parts may alternate, and in all since the start.

    encode_seconds: spent before the start.
    """

    def __init__(self, encode_seconds: float = 0.0) -> None:
        self._started = time.perf_counter() - encode_seconds
        self._seconds: dict[Stage, float] = {"encode": encode_seconds, "coarse": 0.0, "rerank": 0.0}

    @contextlib.contextmanager
    def measuring(self, stage: Stage) -> Iterator[None]:
        """Add what happens inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        """Add time measured elsewhere."""
        self._seconds[stage] += seconds

    def seconds(self, stage: Stage) -> float:
        """Of one stage, so far."""
        return self._seconds[stage]

    @property
    def total_seconds(self) -> float:
        """Since the start, stages or not."""
        return time.perf_counter() - self._started
