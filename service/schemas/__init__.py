"""What comes in and what goes out, as JSON, by resource; every name is to be imported from here.

Requests are strict: a wrong type is an error, never a guess.
"""

from __future__ import annotations

from service.schemas.fields import (
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_QUERY_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    MAX_URI_CHARACTERS,
    Filter,
    Metadata,
    QueryText,
    Title,
    VideoId,
    check_filter,
    check_id,
    check_metadata,
    check_query,
    check_title,
)
from service.schemas.jobs import (
    JobAnswer,
    JobPage,
    ListJobsParameters,
)
from service.schemas.operation import (
    HealthAnswer,
    StatsAnswer,
)
from service.schemas.problems import (
    FieldError,
    Problem,
)
from service.schemas.search import (
    ExplanationAnswer,
    MomentAnswer,
    ResultAnswer,
    ScoresAnswer,
    SearchAnswerBody,
    SearchRequest,
    Span,
    TimingsAnswer,
)
from service.schemas.session import (
    SessionAnswer,
    SessionRequest,
)
from service.schemas.strictness import (
    Answer,
    Parameters,
    Request,
)
from service.schemas.videos import (
    AddVideoAnswer,
    AddVideoParameters,
    AddVideoRequest,
    ListVideosParameters,
    PreviewParameters,
    ThumbnailParameters,
    VideoAnswer,
    VideoPage,
    VideoReference,
)

__all__ = [
    "MAX_METADATA_BYTES",
    "MAX_METADATA_DEPTH",
    "MAX_QUERY_CHARACTERS",
    "MAX_TITLE_CHARACTERS",
    "MAX_URI_CHARACTERS",
    "AddVideoAnswer",
    "AddVideoParameters",
    "AddVideoRequest",
    "Answer",
    "ExplanationAnswer",
    "FieldError",
    "Filter",
    "HealthAnswer",
    "JobAnswer",
    "JobPage",
    "ListJobsParameters",
    "ListVideosParameters",
    "Metadata",
    "MomentAnswer",
    "Parameters",
    "PreviewParameters",
    "Problem",
    "QueryText",
    "Request",
    "ResultAnswer",
    "ScoresAnswer",
    "SearchAnswerBody",
    "SearchRequest",
    "SessionAnswer",
    "SessionRequest",
    "Span",
    "StatsAnswer",
    "ThumbnailParameters",
    "TimingsAnswer",
    "Title",
    "VideoAnswer",
    "VideoId",
    "VideoPage",
    "VideoReference",
    "check_filter",
    "check_id",
    "check_metadata",
    "check_query",
    "check_title",
]
