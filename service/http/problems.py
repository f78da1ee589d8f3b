"""Exception handlers: from whatever an endpoint raises to a problem object."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from indexer import errors as indexer_errors
from service.errors import (
    BodyTooLargeError,
    FilterTooCostlyError,
    IdTakenError,
    IndexUnavailableError,
    InternalError,
    JobNotFoundError,
    MalformedBodyError,
    MethodNotAllowedError,
    OverloadedError,
    ReadOnlyIndexError,
    RouteNotFoundError,
    ServiceError,
    StorageFullError,
    TranscriptNotFoundError,
    UnsupportedContentTypeError,
    VideoNotFoundError,
    is_full_memory,
    validation_problem,
)
from service.http.middleware import route_path
from service.ingest.upload import media_type_of

logger = logging.getLogger("xclip_search.service")


def install_error_handlers(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Make every foreseen error of `app` a problem object.

    routers: those that `app` includes.
    The others are caught by `service.http.observation`, inside of whatever adds headers to answers.
    """

    async def on_service_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return error.to_response()

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = [app.router, *routers]
        if error.status_code == 404 and (other := _with_the_other_ending(request, known)) is not None:
            return RedirectResponse(other)
        if error.status_code == 405:
            methods = _methods_of_path(request.scope, known)
            return MethodNotAllowedError(headers={"Allow": ", ".join(methods)}).to_response()
        if isinstance(error.__cause__, ServiceError):
            return error.__cause__.to_response()  # FastAPI makes a 400 of any error while the body is read.
        if is_full_memory(error):
            raise error.__cause__ or error
        return _from_http_exception(error).to_response()

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        errors = error.errors()
        if any(tuple(one["loc"]) == ("body",) for one in errors) and not _is_json(request):
            return UnsupportedContentTypeError().to_response()
        return validation_problem(errors, _known_names(request)).to_response()

    async def on_indexer_error(_request: Request, error: Exception) -> Response:
        return from_indexer_error(error).to_response()

    async def on_disconnect(_request: Request, _error: Exception) -> Response:
        # The client is gone; an answer ends the request without an error in the log.
        return MalformedBodyError("The request is incomplete.").to_response()

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(indexer_errors.IndexerError, on_indexer_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def from_indexer_error(error: Exception) -> ServiceError:
    """The problem for an error of the indexer's; those the client cannot help are logged."""
    if isinstance(error, indexer_errors.VideoNotFoundError):
        return VideoNotFoundError()
    if isinstance(error, indexer_errors.TranscriptNotFoundError):
        return TranscriptNotFoundError()
    if isinstance(error, indexer_errors.JobNotFoundError):
        return JobNotFoundError()
    if isinstance(error, indexer_errors.DuplicateIdError):
        return IdTakenError()
    if isinstance(error, indexer_errors.QueryTimeoutError):
        return FilterTooCostlyError()
    # A superseded catalog is one that the server is about to leave for the current one.
    if isinstance(error, indexer_errors.IndexBusyError | indexer_errors.IndexSupersededError):
        return OverloadedError()
    if isinstance(error, indexer_errors.IndexUnavailableError):
        return IndexUnavailableError()
    if isinstance(error, indexer_errors.IndexReadOnlyError):
        return ReadOnlyIndexError()
    if isinstance(error, indexer_errors.IndexFullError):
        logger.error("the disk of the index is full: %s", error)
        return StorageFullError()
    logger.error("the index failed", exc_info=error)
    return InternalError()


def _from_http_exception(error: HTTPException) -> ServiceError:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return RouteNotFoundError(headers=headers)
    if error.status_code == 413:
        return BodyTooLargeError(headers=headers)
    if error.status_code < 500:
        return MalformedBodyError("The request cannot be understood.", headers=headers)
    return InternalError(headers=headers)


def _methods_of_path(scope: Scope, routers: Sequence[APIRouter]) -> list[str]:
    """Methods that the path of a request takes. Each of them may have a route of its own."""
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})


def _with_the_other_ending(request: Request, routers: Sequence[APIRouter]) -> str | None:
    """Where the path with a slash more or less at its end leads, as a path; None where that is nowhere."""
    path: str = request.scope["path"]
    path = path.rstrip("/") if route_path(request.scope).endswith("/") else f"{path}/"
    if not path or not _methods_of_path({**request.scope, "path": path}, routers):
        return None
    return quote(path) + (f"?{request.url.query}" if request.url.query else "")


def _is_json(request: Request) -> bool:
    """Whether FastAPI takes the body for JSON."""
    kind, _, subtype = media_type_of(request).partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _known_names(request: Request) -> list[str]:
    """Names of the query's parameters and the body's fields."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return []
    names: list[str] = []
    for parameter in [*dependant.query_params, *dependant.body_params]:
        fields = getattr(parameter.field_info.annotation, "model_fields", None)
        names += list(fields) if fields else [parameter.alias]
    return names
