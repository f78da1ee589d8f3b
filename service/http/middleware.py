"""What holds for every request: size, host, origin and deadlines; and the headers of every answer."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    CrossSiteError,
    DeadlineExceededError,
    HeadersTooLargeError,
    HostNotAllowedError,
    MalformedBodyError,
    RequestTimeoutError,
    ServiceError,
    UriTooLongError,
)
from service.state import ReadyService


def host_name(host: str) -> str:
    """The name or address in a Host header, without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def is_loopback(name: str) -> bool:
    """Whether a name or address always means the machine that uses it: RFC 6761 for names."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def cannot_be_rebound(name: str) -> bool:
    """Whether no name server can make this name point to us: an address, or a name without a dot."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name
    return True


SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

HEADER_LIMIT_BYTES = 16 * 1024
MAX_HEADERS = 100
URI_LIMIT_BYTES = 8 * 1024
"""Path and query."""

CLIENT_GONE = 499
"""Status in log and figures of a request whose client did not wait for the answer; nginx calls it so too."""

PROBES = frozenset({"/healthz", "/readyz"})
"""Asked by load balancers under whatever name or address they know; the answers reveal nothing."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
}
"""Everything comes from this server, is of the kind that it says, and is not shown inside other sites."""


class HeadersMiddleware:
    """Adds SECURITY_HEADERS to every answer, and `Connection: close` while the server is ending."""

    def __init__(self, app: ASGIApp, *, is_ending: Callable[[], bool]) -> None:
        self.app = app
        self._is_ending = is_ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if self._is_ending():
                    headers["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, send_with_headers)


class RequestChecksMiddleware:
    """Refuses requests that are too large, say two lengths, came under a wrong name, or were made by another
    site's page.

    A browser sends a form with a file to any address, so without the last check any page that a user visits
    could upload to a server on the user's own machine. That check trusts the browser's idea of what is the
    same site; a page whose name was made to point here (DNS rebinding) passes it, and is known by that name.

    allowed_hosts: names that are answered; where there are none, every name is once `keys_required`, since a
    key or cookie is not sent under a wrong name, and before that only names that cannot belong to others.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Sequence[str],
        keys_required: Callable[[], bool],
    ) -> None:
        self.app = app
        self._allowed_hosts = frozenset(allowed_hosts)
        self._keys_required = keys_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        if scope["type"] == "http" and (problem := self._find_problem(scope)) is not None:
            await problem.to_response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _find_problem(self, scope: Scope) -> ServiceError | None:
        path: bytes = scope.get("raw_path") or scope["path"].encode()  # `raw_path` is optional in ASGI.
        if len(path) + len(scope["query_string"]) > URI_LIMIT_BYTES:
            return UriTooLongError()
        size_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > MAX_HEADERS or size_bytes > HEADER_LIMIT_BYTES:
            return HeadersTooLargeError()
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy may go by the other one, and see the next request elsewhere: RFC 9112, 6.1.
            return MalformedBodyError(
                "A request has a Content-Length or a Transfer-Encoding, not both.",
                headers={"Connection": "close"},
            )
        if scope["path"] not in PROBES and not self._may_be_called(headers.get("host", "")):
            return HostNotAllowedError()
        if scope["method"] not in SAFE_METHODS and is_cross_site(headers):
            return CrossSiteError()
        service: ReadyService | None = scope["app"].state.service
        is_search = (scope["method"], scope["path"]) == ("POST", "/search")
        return service.search_limiter.refusal() if is_search and service is not None else None

    def _may_be_called(self, host: str) -> bool:
        name = host_name(host)
        if is_loopback(name):
            return True
        if self._allowed_hosts:
            return name in self._allowed_hosts
        return self._keys_required() or cannot_be_rebound(name)


def is_cross_site(headers: Headers) -> bool:
    """Whether a browser made this request for a page of another origin. Other clients send neither header."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


class DeadlineMiddleware:
    """Answers 504 where no answer was begun in time, 408 where a body stops arriving or merely trickles.

    request_timeout_seconds: from the headers to the beginning of the answer, unless the endpoint declares
        WITHOUT_DEADLINE.
        An endpoint that declares WHILE_CONNECTED is cancelled when its client has gone.
    body_timeout_seconds: longest silence while a body arrives. min_bytes_per_second: a body has
        body_timeout_seconds and on top the time that it takes at this rate; only waiting for it counts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        request_timeout_seconds: float,
        body_timeout_seconds: float,
        min_bytes_per_second: int,
    ) -> None:
        self.app = app
        self._request_timeout_seconds = request_timeout_seconds
        self._body_timeout_seconds = body_timeout_seconds
        self._min_bytes_per_second = min_bytes_per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        deadline = asyncio.timeout(self._request_timeout_seconds)
        begun = gone = False

        def note_gone() -> None:
            nonlocal gone
            if not begun and not deadline.expired():
                gone = True
                deadline.reschedule(0.0)

        scope.setdefault("state", {}).update(deadline=deadline, note_gone=note_gone)

        async def send_in_time(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and not begun:
                if deadline.expired():
                    await asyncio.sleep(0)  # The cancellation comes here: this answer is too late.
                begun = True
                deadline.reschedule(None)
            await send(message)

        try:
            async with deadline:
                await self.app(scope, self._watch(receive), send_in_time)
        except TimeoutError:
            if begun or not deadline.expired():
                raise
            if gone:
                await Response(status_code=CLIENT_GONE)(scope, receive, send)  # For log and figures alone.
                return
            await DeadlineExceededError().to_response()(scope, receive, send)

    def _watch(self, receive: Receive) -> Receive:
        waited_seconds, num_received, complete = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited_seconds, num_received, complete
            if complete:
                return await receive()
            left = self._body_timeout_seconds + num_received / self._min_bytes_per_second - waited_seconds
            started = time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(left, self._body_timeout_seconds))):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeoutError() from None
            waited_seconds += time.monotonic() - started
            num_received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            return message

        return receive_in_time


async def _end_without_deadline(request: Request) -> None:
    request.state.deadline.reschedule(None)


WITHOUT_DEADLINE = Depends(_end_without_deadline)
"""Declared by an endpoint that takes as long as its client keeps sending."""


async def _cancel_when_gone(request: Request) -> AsyncIterator[None]:
    async def watch() -> None:
        with contextlib.suppress(ServiceError):  # A body that nobody reads stopped arriving.
            while (await request.receive())["type"] != "http.disconnect":
                pass
            request.state.note_gone()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


WHILE_CONNECTED = Depends(_cancel_when_gone)
"""Declared by an endpoint that only reads, and may have a lot to do: nobody would see what it still finds."""


def has_deadline(route: APIRoute) -> bool:
    """Whether a route has to begin its answer in time."""
    return all(dependant.call is not _end_without_deadline for dependant in route.dependant.dependencies)
