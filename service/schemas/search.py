"""Searches and their answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from indexer.search.types import (
    DEFAULT_CANDIDATES,
    DEFAULT_LIMIT,
    DEFAULT_MOMENTS,
    MAX_BATCH_TEXTS,
    MAX_COPIES,
    MAX_MOMENTS,
    MAX_OFFSET,
    MIN_FOLD_THRESHOLD,
    GroupBy,
    Match,
    SearchMode,
    TextMatch,
)
from service.schemas.fields import (
    MEDIA_START,
    RECORDED_AT,
    Answer,
    Filter,
    FilterText,
    Parameters,
    QueryText,
    Request,
    WholeNumber,
)

MAX_QUERIES = 32
MAX_TEXTS = MAX_BATCH_TEXTS
MAX_LIMIT = 100
MAX_CANDIDATES = 10_000
MAX_RESULTS = 2_000
MAX_EXPLAINED_RESULTS = 400
"""These bound one request's work and the size of its answer; a `SearchQuery` in Python may ask for more. The
last two are of all queries together: an explained result is some 10 KB."""


def _explain_fold(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f"Give true, false, or a number from {MIN_FOLD_THRESHOLD} to 1.") from None


def _read_fold(text: Any) -> Any:
    """What a parameter of an address or of a form says."""
    known = {"true": True, "false": False}
    if not isinstance(text, str) or text.lower() in known:
        return known.get(str(text).lower(), text)
    try:
        return float(text)
    except ValueError:
        return None


_Threshold = Annotated[StrictFloat, Field(ge=MIN_FOLD_THRESHOLD, le=1)]
Fold = Annotated[_Threshold | StrictBool, WrapValidator(_explain_fold)]
FOLD: Any = Field(
    default=False,
    description="Whether results that look the same become one, with `copies`: true; or from which cosine of"
    " their features on. `limit` and `offset` count what is left.",
)

_TOGETHER = {
    "oneOf": [
        {"required": ["query"], "properties": {"query": {"type": "string"}, "queries": {"type": "null"}}},
        {"required": ["queries"], "properties": {"query": {"type": "null"}, "queries": {"type": "array"}}},
    ],
    "not": {
        "required": ["not", "min_percentile"],
        "properties": {"not": {"type": "string"}, "min_percentile": {"type": "number"}},
    },
}
"""What `SearchRequest` requires of its fields together, as JSON Schema."""


class SearchRequest(Request):
    """A search by text."""

    model_config = ConfigDict(json_schema_extra=_TOGETHER)  # type: ignore[typeddict-item]

    query: QueryText | None = Field(
        default=None,
        description="A description of what the video shows. Give either this or `queries`.",
        examples=["a dog runs on the beach"],
    )
    queries: list[QueryText] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_QUERIES,
        description="Several searches with the same other fields; the answer has an answer for each.",
    )
    limit: WholeNumber = Field(
        default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Results in the answer, at most."
    )
    offset: WholeNumber = Field(
        default=0, ge=0, le=MAX_OFFSET, description="Results left out before the first."
    )
    candidates: WholeNumber = Field(
        default=DEFAULT_CANDIDATES,
        ge=1,
        le=MAX_CANDIDATES,
        description="Segments of the coarse stage that are ordered by the full score and come first.",
    )
    mode: SearchMode = Field(
        default="rerank",
        description="rerank: the full score on the candidates; coarse: the coarse stage alone; "
        "exhaustive: the full score on everything.",
    )
    group_by: GroupBy = Field(
        default="video", description="Whether a result is a video with its best segment, or a segment."
    )
    min_score: float | None = Field(
        default=None,
        description="Results below are left out; in mode rerank also all behind the candidates.",
    )
    min_percentile: float | None = Field(
        default=None, ge=0, le=100, description="The same by the `percentile` of the results."
    )
    num_moments: WholeNumber = Field(
        default=DEFAULT_MOMENTS, ge=1, le=MAX_MOMENTS, description="Moments in each result, at most."
    )
    text_match: TextMatch = Field(
        default="off",
        description="Whether words of the query in titles, metadata and transcripts count. off: meaning"
        " alone; boost: they bring videos forward; only: only videos that have some, ordered by them.",
    )
    without: QueryText | None = Field(
        default=None,
        alias="not",
        description="What is not wanted: 0.3 times its score is subtracted. There are no percentiles then.",
        examples=["red"],
    )
    fold: Fold = FOLD
    explain: bool = Field(default=False, description="Add tokens, frame times and the word-by-frame matrix.")
    filter: Filter | None = Field(
        default=None,
        description="Only videos that fulfil it: fields (id, title, duration_seconds, added_at, metadata.KEY)"
        " with a value, in, exists, gt, gte, lt or lte; joined by and, or, not.",
        examples=[{"metadata.camera": "north", "duration_seconds": {"gte": 10, "lt": 60}}],
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.query is None) == (self.queries is None):
            raise ValueError("Give either query or queries.")
        if self.without is not None and self.min_percentile is not None:
            raise ValueError("min_percentile cannot be combined with not: there are no percentiles then.")
        most = MAX_EXPLAINED_RESULTS if self.explain else MAX_RESULTS
        if self.limit * len(self.queries or ("",)) > most:
            raise ValueError(
                f"The answer would be too large: queries times limit is at most {MAX_RESULTS}, and"
                f" {MAX_EXPLAINED_RESULTS} with explain. Ask for fewer queries at once, or set a lower limit."
            )
        return self


class Span(Answer):
    """An interval of a video."""

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


class TextHitAnswer(Answer):
    """Where words of the query are in what is written of a video, or said in it."""

    field: Literal["title", "metadata", "transcript"]
    text: str = Field(description="The title, the value of metadata, or the line; cut where it is long.")
    start_seconds: float | None = Field(description="When a line of a transcript is said; else null.")
    end_seconds: float | None
    track: str | None = Field(description="Of the transcript; else null.")


class CopyAnswer(Answer):
    """A result that looks like a better one."""

    id: str
    segment_id: int
    similarity: float = Field(description="The cosine of the features of both.")


class ResultAnswer(Answer):
    """One result, best first. Moments are best first too."""

    id: str
    segment_id: int = Field(description="Number of the segment that the result is about.")
    rank: int = Field(description="1 for the best of all results, `offset` counted in.")
    score: float
    percentile: float | None = Field(
        description="How much of the index's baseline scores lies below, 0 to 100; null where not known."
    )
    match: Match | None = Field(
        default=None,
        description="How surely it is what was asked for: by how many segments chance puts as high."
        " Null where that is not known.",
    )
    scores: ScoresAnswer
    title: str | None
    uri: str | None
    duration_seconds: float
    recorded_at: datetime | None = RECORDED_AT
    media_start_seconds: float = MEDIA_START
    metadata: dict[str, Any]
    segment: Span
    moments: list[MomentAnswer]
    thumbnail_url: str
    media_url: str
    preview_url: str
    playable: bool = Field(description="Whether browsers play `media` itself; else there is the preview.")
    explanation: ExplanationAnswer | None = Field(default=None, description="Where `explain` asked for it.")
    text_hits: list[TextHitAnswer] = Field(
        default_factory=list, description="Where `text_match` asked for it and there are some."
    )
    copies: list[CopyAnswer] = Field(
        default_factory=list,
        description=f"Where `fold` asked for it and there are some: results that look the same, the best"
        f" {MAX_COPIES}.",
    )
    num_copies: int = Field(default=0, description="How many there are.")


class SearchAnswerBody(Answer):
    """The answer to a search."""

    query: str
    mode: SearchMode
    num_videos: int = Field(description="Videos in the index.")
    truncated: bool = Field(
        description="Whether there are more segments than candidates: one behind them may score higher."
    )
    warnings: list[str]
    timings: TimingsAnswer
    results: list[ResultAnswer]


class SearchAnswersBody(Answer):
    """The answers to several searches, in their order."""

    answers: list[SearchAnswerBody]
    timings: TimingsAnswer


class SimilarParameters(Parameters):
    """Of GET /videos/{id}/similar, and of POST /search/media next to its file."""

    limit: int = Field(
        default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Results in the answer, at most."
    )
    offset: int = Field(default=0, ge=0, le=MAX_OFFSET, description="Results left out before the first.")
    group_by: GroupBy = Field(
        default="video", description="Whether a result is a video with its nearest segment, or a segment."
    )
    min_score: float | None = Field(default=None, description="Results below this cosine are left out.")
    num_moments: int = Field(
        default=DEFAULT_MOMENTS, ge=1, le=MAX_MOMENTS, description="Moments in each result, at most."
    )
    filter: FilterText | None = Field(default=None, description="As in a search, as JSON text.")
    fold: Annotated[Fold, BeforeValidator(_read_fold)] = FOLD


class SimilarAnswerBody(Answer):
    """Videos that look like one video; never that video itself. Scores are cosines."""

    id: str
    num_videos: int = Field(description="Videos in the index.")
    results: list[ResultAnswer]


class MediaSearchAnswerBody(Answer):
    """Videos that look like a picture or a clip. Scores are cosines."""

    num_videos: int = Field(description="Videos in the index.")
    warnings: list[str]
    results: list[ResultAnswer]


class RankTextsRequest(Request):
    """Texts to compare with a video."""

    texts: list[QueryText] = Field(min_length=1, max_length=MAX_TEXTS)


class RankedTextAnswer(Answer):
    """A text and how well it fits the video's best segment for it."""

    rank: int = Field(description="1 for the best.")
    index: int = Field(description="Position among the texts that were sent, from 0.")
    text: str
    score: float
    percentile: float | None
    scores: ScoresAnswer
    segment: Span
    moments: list[MomentAnswer]


class TextTimingsAnswer(Answer):
    """Where the time went."""

    encode_seconds: float
    rerank_seconds: float
    total_seconds: float


class TextsAnswerBody(Answer):
    """Texts by how well they fit a video, best first."""

    id: str
    warnings: list[str]
    timings: TextTimingsAnswer
    results: list[RankedTextAnswer]
