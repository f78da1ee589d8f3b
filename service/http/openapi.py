"""The OpenAPI document: FastAPI's, with every error as a problem object and with schemas written by hand.

A route's own errors are declared with `problems`; those of its dependencies, its body and the middleware are
added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.auth.access import SECURITY_SCHEMES, declared_access
from service.errors import (
    PROBLEM_MEDIA_TYPE,
    BodyTooLargeError,
    CrossSiteError,
    DeadlineExceededError,
    HeadersTooLargeError,
    HostNotAllowedError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    RequestTimeoutError,
    ServiceError,
    UnsupportedContentTypeError,
    UriTooLongError,
    problems_of_dependency,
)
from service.http.middleware import SAFE_METHODS, has_deadline
from service.schemas.fields import FILTER_REFERENCE, FILTER_SCHEMAS
from service.schemas.operation import Problem
from service.schemas.videos import AddVideoRequest

ALWAYS: tuple[type[ServiceError], ...] = (
    InvalidRequestError,
    InternalError,
    HostNotAllowedError,
    UriTooLongError,
    HeadersTooLargeError,
)
WITH_BODY: tuple[type[ServiceError], ...] = (
    MalformedBodyError,
    UnsupportedContentTypeError,
    BodyTooLargeError,
    RequestTimeoutError,
)

_REFERENCES = "#/components/schemas/{model}"


def problems(*classes: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these errors and for ALWAYS, by status, each with its example."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in dict.fromkeys((*classes, *ALWAYS)):
        content = {"schema": {"$ref": _REFERENCES.format(model="Problem")}, "examples": {}}
        response = responses.setdefault(
            error.status, {"description": "", "content": {PROBLEM_MEDIA_TYPE: content}}
        )
        response["description"] = ", or ".join(filter(None, [response["description"], error.title]))
        response["content"][PROBLEM_MEDIA_TYPE]["examples"][error.kind] = {"value": error().to_problem()}
    return responses


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """An OpenAPI media type object, for bodies of `model` in addition to those that FastAPI describes."""
    return {"schema": {"$ref": _REFERENCES.format(model=model.__name__)}}


def install_openapi(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Make `app.openapi` answer the whole document, made once. routers: those that `app` includes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            from importlib.metadata import version

            document = get_openapi(
                title=app.title, version=version("xclip-search"), summary=app.summary, routes=app.routes
            )
            # Models that no parameter and no answer of a route names, but a reference of ours.
            _, extra = models_json_schema(
                [(AddVideoRequest, "validation"), (Problem, "validation")], ref_template=_REFERENCES
            )
            document["components"]["schemas"].update({**extra["$defs"], **FILTER_SCHEMAS})
            document["components"]["securitySchemes"] = SECURITY_SCHEMES
            for route in (route for router in routers for route in router.routes):
                if isinstance(route, APIRoute) and route.include_in_schema:
                    for method in route.methods or ():
                        operation = document["paths"][route.path][method.lower()]
                        _add_problems(operation, route, method)
                        _describe_filter(operation)
                        if any(declared_access(route)):
                            operation["security"] = [{scheme: []} for scheme in SECURITY_SCHEMES]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_problems(operation: dict[str, Any], route: APIRoute, method: str) -> None:
    """Add the problems that `route` may answer in addition to those that it declares itself."""
    added = [error for part in route.dependant.dependencies for error in problems_of_dependency(part.call)]
    if method not in SAFE_METHODS:
        added.append(CrossSiteError)
    if has_deadline(route):
        added.append(DeadlineExceededError)
    if "requestBody" in operation:
        added += WITH_BODY
    responses = operation["responses"]
    for status, response in problems(*added).items():
        known = responses.setdefault(str(status), response)
        examples = known["content"][PROBLEM_MEDIA_TYPE]["examples"]
        examples.update(response["content"][PROBLEM_MEDIA_TYPE]["examples"])
        known["description"] = ", or ".join(example["value"]["title"] for example in examples.values())
    operation["responses"] = dict(sorted(responses.items()))


def _describe_filter(operation: dict[str, Any]) -> None:
    """A filter among the query's parameters is JSON text, which OpenAPI says by a content type."""
    for parameter in operation.get("parameters", ()):
        if (parameter["in"], parameter["name"]) == ("query", "filter"):
            del parameter["schema"]
            parameter["content"] = {"application/json": {"schema": FILTER_REFERENCE}}
