"""What can go wrong for a client of the service.

ClientError
├── ConnectionFailedError       no answer: no server there, the connection broke, too slow
├── UnexpectedAnswerError       an answer that this API does not give: a proxy's page, another program
├── JobFailedError              the video was taken in and could not be read; `job` says why
├── WaitTimeoutError            the job did not end in the time given
├── DamagedDownloadError        what arrived is not what the server says the file is
└── ProblemError                the server said no, as RFC 9457 problem+json
    ├── InvalidRequestError     400, 405, 406, 411, 415, 416, 422: the request must change
    ├── UnauthorizedError       401, or 403 behind a proxy's password: no key, or none that is known
    ├── ForbiddenError          403: the key may not do this, or no key may
    ├── NotFoundError           404: no such video, job, file or endpoint
    ├── ConflictError           409: the id is taken
    ├── TooLargeError           413, 431
    ├── BusyError               408, 429, 503, 504: later it may work; tried again already
    └── ServerFailedError       any other 5xx; the server's log says more
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from service.schemas.videos import JobAnswer


class ClientError(Exception):
    """Base of all errors of the client; the message says what to do about it."""


class ConnectionFailedError(ClientError):
    """No answer came."""


class UnexpectedAnswerError(ClientError):
    """An answer that this API does not give."""


class JobFailedError(ClientError):
    """The server could not make a video of what it was given. job: as it ended, with its `reason`."""

    def __init__(self, job: JobAnswer) -> None:
        super().__init__(f"the job {job.id} failed: {job.reason}")
        self.job = job


class WaitTimeoutError(ClientError):
    """A job did not end in time. job: as it was last seen; it continues."""

    def __init__(self, job: JobAnswer, timeout_seconds: float) -> None:
        super().__init__(
            f"the job {job.id} is still {job.state} after {timeout_seconds:g} seconds; it continues"
        )
        self.job = job


class DamagedDownloadError(ClientError):
    """The bytes that arrived are not those of the video; nothing was kept."""


class ProblemError(ClientError):
    """An answer of the server's that says why not.

    type: `urn:xclip-search:problem:...`. title: the kind of problem. status: of the HTTP answer. detail: what
    happened and what to do. errors: single fields that are wrong, as (field, message). members: the whole
    problem object.
    """

    def __init__(self, status: int, members: Mapping[str, Any]) -> None:
        self.status = status
        self.members = dict(members)
        self.type = str(members.get("type", "about:blank"))
        self.title = str(members.get("title", ""))
        self.detail = str(members.get("detail", ""))
        self.errors = [
            (str(item.get("field", "")), str(item.get("message", "")))
            for item in members.get("errors") or []
            if isinstance(item, dict)
        ]
        super().__init__(f"{status} {self.title}: {self.detail}")

    @property
    def kind(self) -> str:
        """The last part of `type`, as in `video-not-found`."""
        return self.type.rpartition(":")[2]


class InvalidRequestError(ProblemError):
    """The request must change before it can be answered."""


class UnauthorizedError(ProblemError):
    """No key, or one that the server does not know."""


class ForbiddenError(ProblemError):
    """The key does not allow this, or no key does."""


class NotFoundError(ProblemError):
    """No such video, job, file or endpoint."""


class ConflictError(ProblemError):
    """Something is in the way: the id is taken."""


class TooLargeError(ProblemError):
    """The file, the body or the headers are larger than the server takes."""


class BusyError(ProblemError):
    """The server has too much to do, or is not ready yet; the client tried several times."""


class ServerFailedError(ProblemError):
    """Something went wrong inside the server."""


_BY_STATUS: dict[int, type[ProblemError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    431: TooLargeError,
    408: BusyError,
    429: BusyError,
    503: BusyError,
    504: BusyError,
}


_BY_KIND: dict[str, type[ProblemError]] = {"key-needed": UnauthorizedError}


def to_error(response: httpx.Response) -> ClientError:
    """The error that an answer of 400 or above stands for; its body has been read."""
    status = response.status_code
    try:
        members = json.loads(response.content)
    except ValueError:
        members = None
    if not isinstance(members, dict) or "title" not in members:
        return UnexpectedAnswerError(
            f"the server answered {status} without saying why in a way that this client knows; "
            f"is {response.request.url.copy_with(path='/', query=None)} an xclip-search server?"
        )
    fallback = InvalidRequestError if status < 500 else ServerFailedError
    kind = str(members.get("type", "")).rpartition(":")[2]
    return (_BY_KIND.get(kind) or _BY_STATUS.get(status, fallback))(status, members)


def connection_error(error: httpx.TransportError, url: httpx.URL, num_attempts: int) -> ConnectionFailedError:
    """`error` as a sentence that says what to check."""
    origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
    tried = "" if num_attempts == 1 else f" (tried {num_attempts} times)"
    if isinstance(error, httpx.ConnectError):
        what = f"nothing answers at {origin}{tried}: is the server running there, and is the address right?"
    elif isinstance(error, httpx.TimeoutException):
        what = f"{origin} took too long to answer{tried}: it may be busy, or the timeout too short"
    elif isinstance(error, httpx.UnsupportedProtocol):
        what = f"{url} is no address of a server: it begins with http:// or https://"
    else:
        what = f"the connection to {origin} broke{tried}: it was closed before the answer was there"
    return ConnectionFailedError(f"{what} [{type(error).__name__}: {error}]")
