"""Errors (RFC 9457)."""

from __future__ import annotations

from pydantic import Field

from service.schemas.jobs import JobAnswer
from service.schemas.strictness import Answer


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
