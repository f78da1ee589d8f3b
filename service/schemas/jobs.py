"""Ingest requests and their life."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from service.schemas.strictness import Answer, Parameters


class ListJobsParameters(Parameters):
    """Of GET /jobs."""

    limit: int = Field(default=50, ge=1, le=200, description="Jobs in the answer, at most.")
    state: Literal["queued", "running", "done", "failed"] | None = Field(
        default=None, description="Only jobs in this state."
    )
    after: int | None = Field(default=None, ge=0, le=2**63 - 1, description="`next` of the page before.")


class JobAnswer(Answer):
    """An ingest request and its life."""

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


class JobPage(Answer):
    """A page of jobs, newest first."""

    jobs: list[JobAnswer]
    next: int | None = Field(description="Give it as `after` for the next page; null on the last.")
