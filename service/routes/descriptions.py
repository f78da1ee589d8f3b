"""How routes describe their errors to OpenAPI."""

from __future__ import annotations

from typing import Any

from service.errors import (
    PROBLEM_MEDIA_TYPE,
    BodyTooLargeError,
    CrossSiteError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    NotReadyError,
    ServiceError,
    UnsupportedContentTypeError,
)

BODY_ERRORS = (
    MalformedBodyError,
    UnsupportedContentTypeError,
    BodyTooLargeError,
    InvalidRequestError,
    CrossSiteError,
)
"""What any endpoint with a body may answer."""


def problems(*classes: type[ServiceError], ready: bool = True) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these errors, by status, each with its example. 422 and 500 are always there.

    ready: whether the endpoint waits for model and index.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    extra = (InvalidRequestError, InternalError, *((NotReadyError,) if ready else ()))
    for error in dict.fromkeys((*classes, *extra)):
        response = responses.setdefault(
            error.status,
            {
                "description": "",
                "content": {
                    PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
                },
            },
        )
        response["description"] = ", or ".join(filter(None, [response["description"], error.title]))
        response["content"][PROBLEM_MEDIA_TYPE]["examples"][error.kind] = {"value": error().to_problem()}
    return responses
