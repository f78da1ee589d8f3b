"""The OpenAPI document: FastAPI's, with the schemas of the bodies that the endpoints read themselves, and
with what any endpoint may answer because of keys and limits.

How routes describe their errors to OpenAPI.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from service.auth.access import declared_access
from service.errors import (
    PROBLEM_MEDIA_TYPE,
    BodyTooLargeError,
    CrossSiteError,
    DeadlineExceededError,
    ForbiddenError,
    HeadersTooLargeError,
    HostNotAllowedError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    NotReadyError,
    RequestTimeoutError,
    ServiceError,
    TooManyRequestsError,
    UnauthorizedError,
    UnsupportedContentTypeError,
    UriTooLongError,
)
from service.http.middleware import has_deadline
from service.schemas import (
    AddVideoRequest,
    PatchVideoRequest,
    Problem,
    RankTextsRequest,
    SearchRequest,
    SessionRequest,
)
from service.schemas.fields import FILTER_REFERENCE, FILTER_SCHEMAS

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


BODY_MODELS = (
    SearchRequest,
    RankTextsRequest,
    AddVideoRequest,
    PatchVideoRequest,
    SessionRequest,
    Problem,
)


def install_openapi(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Make `app.openapi` answer the whole document, made once. routers: those that `app` includes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            from importlib.metadata import version

            document = get_openapi(
                title=app.title, version=version("xclip-search"), summary=app.summary, routes=app.routes
            )
            _, extra = models_json_schema(
                [(model, "validation") for model in BODY_MODELS], ref_template="#/components/schemas/{model}"
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(extra["$defs"])
            schemas.update(FILTER_SCHEMAS)
            for route in (route for router in routers for route in router.routes):
                if isinstance(route, APIRoute) and route.include_in_schema:
                    for method in route.methods or ():
                        operation = document["paths"][route.path][method.lower()]
                        _add_problems(operation, route)
                        _describe_filter(operation)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_problems(operation: dict[str, Any], route: APIRoute) -> None:
    """Add what `route` may answer because of what it declares, beside what it describes itself."""
    added: list[type[ServiceError]] = [HostNotAllowedError, UriTooLongError, HeadersTooLargeError]
    scopes = declared_access(route)
    if "read" in scopes or "write" in scopes:
        added += [UnauthorizedError, TooManyRequestsError]
    if "write" in scopes:
        added.append(ForbiddenError)
    if has_deadline(route):
        added.append(DeadlineExceededError)
    if "requestBody" in operation:
        added.append(RequestTimeoutError)
    for status, response in problems(*added, ready=False).items():
        known = operation["responses"].setdefault(str(status), response)
        for media_type, content in response["content"].items():
            known["content"][media_type]["examples"].update(content["examples"])
    operation["responses"] = dict(sorted(operation["responses"].items()))


def _describe_filter(operation: dict[str, Any]) -> None:
    """A filter among the query's parameters is JSON text, which OpenAPI says by a content type."""
    for parameter in operation.get("parameters", ()):
        if (parameter["in"], parameter["name"]) == ("query", "filter"):
            del parameter["schema"]
            parameter["content"] = {"application/json": {"schema": FILTER_REFERENCE}}


def document_text() -> str:
    """The document of an application of this version, as docs/openapi.json holds it."""
    from service.app import create_app
    from service.settings import ServiceSettings

    document = create_app(ServiceSettings(Path("nowhere"))).openapi()
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document_text())
