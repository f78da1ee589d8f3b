"""What can go wrong in a request, and its answer: RFC 9457 `application/problem+json`, always.

Each class below is one problem: `status`, `type` (TYPE_PREFIX and its `kind`) and `title` are fixed; `detail`
says what to do. No text of the client's ever goes into one, but for a Host or an Origin that looks like one;
no path and no traceback does: what went wrong inside is for the log. The table in docs/http-api.md and the
responses in docs/openapi.json come from this list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from starlette.responses import Response

PROBLEM_MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:xclip-search:problem:"

Dependency = TypeVar("Dependency", bound=Callable[..., Any])


_SIGNS_OF_FULL_MEMORY = ("DefaultCPUAllocator", "bad_alloc")
"""In the message of the RuntimeError that torch and FAISS raise."""


def is_full_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that no memory was left.

    After such an error caches and indexes may be half changed. The process
    ends, and its supervisor starts another one.
    """
    while error is not None:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS_OF_FULL_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


class ServiceError(Exception):
    """Base of all errors that become an HTTP answer.

    detail: what happened and what to do about it, in words that hold nothing from the request.
    members: further members of the problem object, JSON values.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"
    default_detail: ClassVar[str] = "An internal error occurred. The server's log has the details."

    def __init__(
        self, detail: str | None = None, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        self.detail = detail or self.default_detail
        self.headers = dict(headers or {})
        self.members = members
        super().__init__(self.detail)

    def to_problem(self) -> dict[str, Any]:
        """The problem object of RFC 9457 section 3."""
        return {
            "type": TYPE_PREFIX + self.kind,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }

    def to_response(self) -> Response:
        """The problem object as an HTTP answer."""
        return Response(
            json.dumps(self.to_problem(), ensure_ascii=False),
            status_code=self.status,
            headers=self.headers,
            media_type=PROBLEM_MEDIA_TYPE,
        )


class InvalidRequestError(ServiceError):
    """A field or parameter is missing, unknown, of the wrong type or out of range."""

    status, kind, title = 422, "invalid-request", "Invalid request"
    default_detail = "A field or parameter of the request is not valid."


class InvalidCursorError(ServiceError):
    """A cursor of a list that does not belong to this index."""

    status, kind, title = 422, "invalid-cursor", "Invalid cursor"
    default_detail = "The cursor does not belong to this index. Begin again without it."


class FilterTooCostlyError(ServiceError):
    """Finding what the filter matches takes longer than this server lets one query take."""

    status, kind, title = 422, "filter-too-costly", "Filter too costly"
    default_detail = (
        "Finding what the filter matches takes longer than this server lets one query take. "
        "Use fewer conditions or shorter lists of values; the operator sets XCLIP_FILTER_LIMIT_SECONDS."
    )


class MalformedBodyError(ServiceError):
    """The body cannot be parsed at all."""

    status, kind, title = 400, "malformed-body", "Malformed body"
    default_detail = "The body is not valid JSON: send UTF-8 JSON without NaN or Infinity."


class UnsupportedContentTypeError(ServiceError):
    """The body is of a kind that the endpoint does not take."""

    status, kind, title = 415, "unsupported-content-type", "Unsupported content type"
    default_detail = "Send the body as JSON with the header Content-Type: application/json."


class BodyTooLargeError(ServiceError):
    """The body is larger than the endpoint takes."""

    status, kind, title = 413, "body-too-large", "Body too large"
    default_detail = "The body is larger than this endpoint takes."


class RouteNotFoundError(ServiceError):
    """No endpoint has this path."""

    status, kind, title = 404, "not-found", "Not found"
    default_detail = "There is no such endpoint. GET /openapi.json lists all of them."


class VideoNotFoundError(ServiceError):
    """No video has this id."""

    status, kind, title = 404, "video-not-found", "Video not found"
    default_detail = "No video has this id. GET /videos lists the videos."


class TranscriptNotFoundError(ServiceError):
    """The video has no transcript of this track."""

    status, kind, title = 404, "transcript-not-found", "Transcript not found"
    default_detail = "The video has no transcript of this track. GET /videos/{id}/transcripts lists them."


class JobNotFoundError(ServiceError):
    """No job has this id."""

    status, kind, title = 404, "job-not-found", "Job not found"
    default_detail = "No job has this id. GET /jobs lists the jobs."


class MediaNotFoundError(ServiceError):
    """The index knows the video, but its file is not at hand."""

    status, kind, title = 404, "media-not-found", "Media not found"
    default_detail = (
        "The video is in the index and can be searched, "
        "but its file is gone or no longer the one that was indexed."
    )


class MethodNotAllowedError(ServiceError):
    """The path exists, the method does not."""

    status, kind, title = 405, "method-not-allowed", "Method not allowed"
    default_detail = "This endpoint does not take this method. The Allow header lists those that it takes."


class RangeNotSatisfiableError(ServiceError):
    """The requested bytes lie beyond the end of the file."""

    status, kind, title = 416, "range-not-satisfiable", "Range not satisfiable"
    default_detail = "The range lies beyond the end of the file. Content-Range has the file's size."


class UriNotAllowedError(ServiceError):
    """A uri that this server must not read."""

    status, kind, title = 403, "uri-not-allowed", "Uri not allowed"
    default_detail = (
        "The uri names no regular file inside a folder that this server may read. "
        "Such folders are named with --allow-root when the server starts; or upload the file instead."
    )


class CrossSiteError(ServiceError):
    """A browser says that the request was made by a page of another site."""

    status, kind, title = 403, "cross-site", "Cross-site request"
    default_detail = (
        "Pages of other sites cannot change anything here. Name their origins in XCLIP_CORS_ORIGINS"
        " to let them use the API with a key."
    )


class IdTakenError(ServiceError):
    """Another video has this id."""

    status, kind, title = 409, "id-taken", "Id taken"
    default_detail = "Another video has this id. Choose another id, leave it out, or delete that video first."


class VideoRejectedError(ServiceError):
    """The file was read and cannot be indexed; `detail` is the reason, `job` the id of the job."""

    status, kind, title = 422, "video-rejected", "Video rejected"


class MediaRejectedError(ServiceError):
    """The file cannot be searched with: neither a picture nor a video that can be read; `detail` says why."""

    status, kind, title = 422, "media-rejected", "Media rejected"
    default_detail = "The file is neither a picture nor a video that can be read."


class TranscriptRejectedError(ServiceError):
    """The file is no transcript that can be stored; `detail` says why."""

    status, kind, title = 422, "transcript-rejected", "Transcript rejected"
    default_detail = "It has no line with times as in SubRip (.srt) or WebVTT (.vtt)."


class UnauthorizedError(ServiceError):
    """A key is needed, and none that opens anything came with the request."""

    status, kind, title = 401, "unauthorized", "Unauthorized"
    default_detail = (
        "Send a valid key in the header Authorization: Bearer KEY or X-API-Key: KEY, or log in on the page."
    )

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="xclip-search"'})


class KeyNeededError(ServiceError):
    """As UnauthorizedError, for a request with a proxy's Authorization.

    At a 401 a browser forgets the password that it has for the proxy, and asks for that again.
    """

    status, kind, title = 403, "key-needed", "Key needed"
    default_detail = (
        "No valid key was sent; the Authorization is for a proxy. Send it in the header X-API-Key, or"
        " log in on the page."
    )


class ForbiddenError(ServiceError):
    """The key is valid and does not allow this."""

    status, kind, title = 403, "forbidden", "Forbidden"
    default_detail = "This key may search and read only. Changes need a key with the scope write."


class ReadOnlyIndexError(ServiceError):
    """The index lies on a read-only file system."""

    status, kind, title = 403, "read-only-index", "Read-only index"
    default_detail = "The index is on a read-only file system: it can be searched, not changed."


class HostNotAllowedError(ServiceError):
    """The Host header is none of this server's names."""

    status, kind, title = 421, "host-not-allowed", "Host not allowed"
    default_detail = "This server does not answer under the name in the Host header: see XCLIP_ALLOWED_HOSTS."


class UriTooLongError(ServiceError):
    """Path and query together are too long."""

    status, kind, title = 414, "uri-too-long", "URI too long"
    default_detail = "The path and query of the request are too long."


class HeadersTooLargeError(ServiceError):
    """Too many headers, or too large ones."""

    status, kind, title = 431, "headers-too-large", "Headers too large"
    default_detail = "The headers of the request are too many or too large."


class RequestTimeoutError(ServiceError):
    """The client took too long to send its request."""

    status, kind, title = 408, "request-timeout", "Request timeout"
    default_detail = "The request did not arrive in time. Send it again, faster."


class TooManyRequestsError(ServiceError):
    """One client asks for more than its share."""

    status, kind, title = 429, "too-many-requests", "Too many requests"
    default_detail = (
        "Too many requests come from this client. Try again after the seconds in the Retry-After header."
    )

    def __init__(self, detail: str | None = None, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_seconds)})


class DeadlineExceededError(ServiceError):
    """The request took longer than this server allows."""

    status, kind, title = 504, "deadline-exceeded", "Deadline exceeded"
    default_detail = "The request took longer than this server allows."


class NotReadyError(ServiceError):
    """Model and index are still being loaded."""

    status, kind, title = 503, "not-ready", "Not ready"
    default_detail = "The model and the index are still being loaded. Try again when GET /readyz answers 200."

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": "2"})


class IndexUnavailableError(ServiceError):
    """The database of the index does not answer."""

    status, kind, title = 503, "index-unavailable", "Index unavailable"
    default_detail = (
        "The database of the index does not answer. Try again after the seconds in the Retry-After header."
        " A change that was under way may or may not have been made."
    )

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": "2"})


class OverloadedError(ServiceError):
    """More requests are waiting than the server lets wait."""

    status, kind, title = 503, "overloaded", "Overloaded"
    default_detail = "Too many requests are waiting. Try again after the seconds in the Retry-After header."

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class StorageFullError(ServiceError):
    """The disk of the index is full."""

    status, kind, title = 507, "storage-full", "Storage full"
    default_detail = "There is no space left to store this. Free space on the disk that holds the index."


class InternalError(ServiceError):
    """Whatever has no better name."""


ERROR_CLASSES: tuple[type[ServiceError], ...] = tuple(ServiceError.__subclasses__())
"""Every problem that can be answered, in the order above."""


def may_raise(*classes: type[ServiceError]) -> Callable[[Dependency], Dependency]:
    """Decorator of a FastAPI dependency: the errors that each endpoint which has it may answer."""

    def mark(dependency: Dependency) -> Dependency:
        setattr(dependency, "problems", classes)  # noqa: B010
        return dependency

    return mark


def problems_of_dependency(dependency: object) -> Sequence[type[ServiceError]]:
    """What `may_raise` noted, or the member `problems` of a callable object."""
    found: Sequence[type[ServiceError]] = getattr(dependency, "problems", ())
    return found


def validation_problem(errors: Sequence[Mapping[str, Any]], known_fields: Sequence[str] = ()) -> ServiceError:
    """One problem from pydantic's list of errors, without a word of the input.

    errors: as `errors()` of pydantic's ValidationError and FastAPI's RequestValidationError give them.
    known_fields: names that the answer may mention; any other name came from the client.
    """
    if any(error["type"] == "json_invalid" for error in errors):
        return MalformedBodyError()
    if any(error["type"] == "missing" and tuple(error["loc"]) == ("body",) for error in errors):
        return MalformedBodyError("The body is empty: send a JSON object.")
    items: list[dict[str, str]] = []
    for error in errors[:20]:
        # FastAPI puts where it looked before the name, and a field of a body may be named "query" too.
        source, *rest = error["loc"] or ("",)
        name = str(rest[0] if rest and source in ("body", "query", "path") else source)
        field = name if name in known_fields else ""
        items.append({"field": field, "message": _explain(error, known_fields)})
    first = items[0]
    detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    return InvalidRequestError(detail, errors=items)


def _explain(error: Mapping[str, Any], known_fields: Sequence[str]) -> str:
    if error["type"] == "extra_forbidden":
        names = ", ".join(known_fields) or "none"
        return f"A field or parameter is not known here. Those known: {names}."
    if error["type"] in ("model_type", "model_attributes_type"):
        return "The body must be a JSON object."
    if error["type"] == "value_error":
        # Our own validators raise ValueError with fixed sentences; pydantic prefixes them.
        return str(error["msg"]).removeprefix("Value error, ")
    # pydantic's other messages are made of the schema alone: types, bounds, choices.
    return str(error["msg"]) + "."
