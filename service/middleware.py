"""What holds for every request: its size, its host, no changes on behalf of other sites, security headers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    CrossSiteError,
    HeadersTooLargeError,
    HostNotAllowedError,
    MalformedBodyError,
    ServiceError,
    UriTooLongError,
)
from service.host_names import cannot_be_rebound, host_name, is_loopback

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

HEADER_LIMIT_BYTES = 16 * 1024
MAX_HEADERS = 100
URI_LIMIT_BYTES = 8 * 1024
"""Path and query."""

PROBES = frozenset({"/healthz", "/readyz"})
"""Asked by load balancers under whatever name or address they know; they tell nothing."""

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
        """Handle one request, as ASGI wants it."""
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
    key or cookie is not sent under a wrong name, and before that those alone that cannot be somebody else's.
    """

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Sequence[str], keys_required: Callable[[], bool]
    ) -> None:
        self.app = app
        self._allowed_hosts = frozenset(allowed_hosts)
        self._keys_required = keys_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as ASGI wants it."""
        if scope["type"] == "http" and (problem := self._find_problem(scope)) is not None:
            await problem.to_response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _find_problem(self, scope: Scope) -> ServiceError | None:
        path: bytes = scope.get("raw_path") or scope["path"].encode()  # Servers need not tell the first.
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
        return None

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
