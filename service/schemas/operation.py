"""What is about the service itself: health, figures, problems (RFC 9457), sessions of browsers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from service.schemas.fields import Answer, Request
from service.schemas.videos import JobAnswer


class HealthAnswer(Answer):
    """Whether the process lives, or is ready. outdated: searches are answered from a former generation of the
    index, because the current one cannot be loaded; changes are refused. stale: searches are answered from
    the index as it was, because its database does not answer; all else is refused."""

    status: Literal["ok", "outdated", "stale"]


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


MAX_KEY_CHARACTERS = 256


class SessionRequest(Request):
    """Log a browser in."""

    key: Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARACTERS, description="An API key.")]


class SessionAnswer(Answer):
    """What the client may do."""

    scopes: list[Literal["read", "write"]]
    keys_required: bool
