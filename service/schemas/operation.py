"""Health and figures of the service."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.schemas.strictness import Answer


class HealthAnswer(Answer):
    """Whether the process lives, or is ready. outdated: searches are answered from a former generation of the
    index, because the current one cannot be loaded; changes are refused."""

    status: Literal["ok", "outdated"]


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
