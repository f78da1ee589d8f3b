"""What holds for every connection and request: size, host, origin and deadlines; the headers of every answer.

`BoundedProtocol` is how uvicorn reads requests here: llhttp, the parser of Node.js, with limits of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import Callable, Sequence

import httptools
from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import (
    PROBLEM_MEDIA_TYPE,
    CrossSiteError,
    DeadlineExceededError,
    HeadersTooLargeError,
    HostNotAllowedError,
    MalformedBodyError,
    RequestTimeoutError,
    ServiceError,
    UriTooLongError,
)
from service.settings import OWN_PATHS, parse_prefix
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


READ_BYTES = 32 * 1024
"""Parsed at a time; then other connections have their turn. In chunks of a byte that takes milliseconds."""

FREE_CHUNKS, MIN_CHUNK_BYTES = 1_000, 64
"""For each chunk beyond so many a body has so many bytes: what a chunk costs is paid in bytes."""

SPARE_CONNECTIONS = 32
"""Beyond the limit they are answered 503 before anything is done for them; further ones are closed."""

LINGER_SECONDS = 2.0
"""How long the rest of a body that was answered before its end is still taken, and dropped unparsed. Were the
connection closed while its client sends, the answer could be lost on the way."""


_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
"""Clients that would rather speak HTTP/2 offer it with each request, body or not, Java's for one. The parser
would take what follows the head for another protocol; here it is HTTP/1.1."""


class BoundedProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """Reads the requests of one connection.

    Bounds what a head may take before it is complete, the number of chunks of a body, and how much is parsed
    before other connections have their turn. A target in absolute form is taken (RFC 9112, 3.2.2). What comes
    after a request whose answer did not wait for its end is not parsed: the connection is closed.
    """

    _buffer = bytearray(READ_BYTES)
    """Of all connections: what is read is parsed before another one reads."""

    in_head, num_head_bytes, num_chunks, num_body_bytes = True, 0, 0, 0
    is_deaf, is_lingering = False, False
    refusal: ServiceError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop."""
        super().connection_made(transport)
        limit = self.limit_concurrency
        if limit is not None and len(self.connections) > limit + SPARE_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        super().connection_lost(exc)
        # uvicorn leaves the timer of a connection that was reset: all that belongs to it would stay in memory
        # for XCLIP_KEEP_ALIVE_SECONDS, and full garbage collections would walk through it.
        self._unset_keepalive_if_required()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the event loop writes what it reads."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what was read."""
        if self.is_deaf:
            return
        data = bytes(self._buffer[:nbytes])
        if self.in_head:
            self.num_head_bytes += nbytes
            end = data.find(b"\r\n\r\n")
            found = _UPGRADE.search(data, 0, len(data) if end < 0 else end)
            if found is not None:
                data = data[: found.start()] + b"\r\nx-upgrade:" + data[found.end() :]
        self.data_received(data)
        if self.in_head and self.num_head_bytes > HEADER_LIMIT_BYTES + URI_LIMIT_BYTES:
            self.refuse(HeadersTooLargeError())

    def on_message_begin(self) -> None:
        """Called by the parser."""
        super().on_message_begin()
        self.num_chunks = self.num_body_bytes = 0
        self.scope["state"]["peer"] = self.client[0] if self.client else "unknown"

    def on_headers_complete(self) -> None:
        """Called by the parser. What this and the following raise is answered 400."""
        self.in_head = False
        hosts = [value for name, value in self.headers if name == b"host"]
        if not self.url.startswith(b"/"):
            target = httptools.parse_url(self.url)
            if not target.host:
                raise ValueError("neither a path nor an address")
            host = b"[%s]" % target.host if b":" in target.host else target.host
            hosts = [host + (b":%d" % target.port if target.port else b"")]
            self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"]
            self.headers.append((b"host", hosts[0]))
            self.url = (target.path or b"/") + (b"?" + target.query if target.query else b"")
        if len(hosts) != 1 and self.parser.get_http_version() != "1.0":
            raise ValueError("a request names one host")
        super().on_headers_complete()
        # The class is uvicorn's choice; its instance is of the class that it would be of had we one.
        self.cycle.__class__ = _Cycle
        self.cycle.transport = _Lingering(self)  # type: ignore[assignment]

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self.num_chunks += 1
        if self.num_body_bytes < MIN_CHUNK_BYTES * (self.num_chunks - FREE_CHUNKS):
            self.refusal = MalformedBodyError(
                f"The body comes in too many chunks: send at least {MIN_CHUNK_BYTES} bytes in each."
            )
            raise ValueError("too many chunks")

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self.num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.in_head, self.num_head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, and take no more of this connection."""
        self.refuse(self.refusal or MalformedBodyError("The request is not HTTP/1.1 as RFC 9112 defines it."))

    def refuse(self, problem: ServiceError) -> None:
        """Answer a request that may be incomplete, unless it was answered, and close.

        Where requests before it wait for their answers, these come, and the connection ends with the last.
        """
        if self.in_head and self.cycle is not None and not self.cycle.response_complete:
            self.is_deaf, self.cycle.keep_alive = True, False
            return
        answered = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not answered and not self.transport.is_closing():
            body = bytes(problem.to_response().body)
            head = f"content-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close"
            self.transport.write(STATUS_LINE[problem.status] + head.encode() + b"\r\n\r\n" + body)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.linger()

    def linger(self) -> None:
        """Send what is written, drop what comes, and close soon."""
        if self.is_lingering or self.transport.is_closing():
            return
        self.is_deaf = self.is_lingering = True
        self.pipeline.clear()
        self._unset_keepalive_if_required()
        with contextlib.suppress(OSError, NotImplementedError):
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


class _Cycle(RequestResponseCycle):
    """One request and its answer, which says so where the connection ends with it."""

    async def send(self, message: Message) -> None:  # type: ignore[override]
        if message["type"] == "http.response.start" and self.more_body:
            self.keep_alive = False
        await super().send(message)  # type: ignore[arg-type]


class _Lingering:
    """The transport as a `_Cycle` uses it: it lingers where the client is still sending."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol, self._cycle = protocol, protocol.cycle
        self.is_closing = protocol.transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._protocol.is_lingering:
            self._protocol.transport.write(data)

    def close(self) -> None:
        if self._cycle.response_complete and self._cycle.more_body:
            self._protocol.linger()
        else:
            self._protocol.transport.close()


class HeadersMiddleware:
    """Adds SECURITY_HEADERS to every answer, and `Connection: close` while the server is ending.

    media_elsewhere: whether the page may play videos from other servers, to which this one redirects.
    """

    def __init__(self, app: ASGIApp, *, is_ending: Callable[[], bool], media_elsewhere: bool = False) -> None:
        self.app = app
        self._is_ending = is_ending
        self._headers = dict(SECURITY_HEADERS)
        if media_elsewhere:
            policy = SECURITY_HEADERS["Content-Security-Policy"]
            self._headers["Content-Security-Policy"] = policy.replace(
                "media-src 'self'", "media-src 'self' https: http:"
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
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
    cors_origins: of pages of other sites that may use the API, with a key: no cookie of theirs counts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Sequence[str],
        keys_required: Callable[[], bool],
        cors_origins: Sequence[str],
    ) -> None:
        self.app = app
        self._allowed_hosts = frozenset(allowed_hosts)
        self._keys_required = keys_required
        self._cors_origins = frozenset(cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        if scope["type"] == "http":
            if (problem := self._find_problem(scope)) is not None:
                await problem.to_response()(scope, receive, send)
                return
            if self._is_of_named_origin(scope) and cross_site_problem(scope) is not None:
                headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
                scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)

    def _is_of_named_origin(self, scope: Scope) -> bool:
        return Headers(scope=scope).get("origin") in self._cors_origins

    def _find_problem(self, scope: Scope) -> ServiceError | None:
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()  # It is optional in ASGI.
        if len(raw_path) + len(scope["query_string"]) > URI_LIMIT_BYTES:
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
        path, method, host = route_path(scope), scope["method"], headers.get("host", "")
        if path not in PROBES and not self._may_be_called(host):
            return HostNotAllowedError(
                f"This server does not answer under the name in the Host header, {_shown(host)}: add it to"
                " XCLIP_ALLOWED_HOSTS, or make a key."
            )
        may_change = method in SAFE_METHODS or self._is_of_named_origin(scope)
        if not may_change and (problem := cross_site_problem(scope)) is not None:
            return problem
        service: ReadyService | None = scope["app"].state.service
        is_search = (method, path) == ("POST", "/search")
        return service.search_limiter.refusal() if is_search and service is not None else None

    def _may_be_called(self, host: str) -> bool:
        name = host_name(host)
        if is_loopback(name):
            return True
        if self._allowed_hosts:
            return name in self._allowed_hosts
        return self._keys_required() or cannot_be_rebound(name)


def cross_site_problem(scope: Scope) -> CrossSiteError | None:
    """Why a browser made this request for a page of another origin, None where it did not.

    A browser that knows the site says so. Otherwise the page's origin is compared with the name by which this
    server was called, in Host or, from a trusted proxy, in X-Forwarded-Host. A Host without a port that comes
    through such a proxy, or to another port than 80 and 443, was rewritten, as nginx's
    `proxy_set_header Host $host` does: its port is not known. Other clients send neither header.
    """
    headers = Headers(scope=scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return None if site in ("same-origin", "none") else CrossSiteError()
    if origin is None:
        return None
    through_proxy: bool = scope.get("state", {}).get("through_proxy", False)
    _, own_port = scope.get("server") or (None, None)
    names = [headers.get("host", "")]
    if through_proxy:
        names.append(headers.get("x-forwarded-host", "").partition(",")[0].strip())
    page_name, page_port = split_port(origin.partition("://")[2])
    for name, port in map(split_port, names):
        is_port_lost = port is None and (through_proxy or own_port not in DEFAULT_PORTS)
        is_same_port = port == page_port or {port, page_port} <= {None, *DEFAULT_PORTS}
        if name and name == page_name and (is_same_port or is_port_lost):
            return None
    return CrossSiteError(
        f"The request is of a page at {_shown(origin)}, but calls this server {_shown(names[0])}. Open the"
        " page under the server's own address; a proxy must pass the browser's Host on: proxy_set_header Host"
        " $http_host in nginx, ProxyPreserveHost On in Apache."
    )


DEFAULT_PORTS = frozenset({80, 443})


def split_port(host: str) -> tuple[str, int | None]:
    """Name and port of a Host header, or of an origin without its scheme; None where it says no port.

    >>> split_port("Search.Example.org:443"), split_port("[::1]")
    (('search.example.org', 443), ('::1', None))
    """
    _, _, digits = host.rpartition("]")[2].partition(":")
    is_port = digits.isascii() and digits.isdigit() and len(digits) <= 5
    return host_name(host), int(digits) if is_port else None


def _shown(host: str) -> str:
    """A Host or Origin as an answer may show it: of the client's text only what looks like one."""
    return host if re.fullmatch(r"(?:https?://)?[\w.:\[\]-]{1,255}", host, re.ASCII) else "by no name"


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

        watching: list[asyncio.Task[None]] = []
        scope.setdefault("state", {}).update(deadline=deadline, note_gone=note_gone, watching=watching)

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
        finally:
            for task in watching:
                task.cancel()

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


async def _cancel_when_gone(request: Request) -> None:
    async def watch() -> None:
        with contextlib.suppress(ServiceError):  # A body that is not read any more stopped arriving.
            while (await request.receive())["type"] != "http.disconnect":
                pass
            request.state.note_gone()

    # The middleware ends it: a dependency with `yield` costs FastAPI half as much as all others together.
    request.state.watching.append(asyncio.create_task(watch()))


WHILE_CONNECTED = Depends(_cancel_when_gone)
"""Declared by an endpoint that only reads, and may have a lot to do: its result would go to no one."""


def has_deadline(route: APIRoute) -> bool:
    """Whether a route has to begin its answer in time."""
    return all(dependant.call is not _end_without_deadline for dependant in route.dependant.dependencies)


# What proxies say of a request


class ForwardingMiddleware:
    """Takes X-Forwarded-For, -Proto and -Prefix from trusted proxies, and puts every path below its prefix.

    The prefix is the setting's, or where there is none X-Forwarded-Prefix, which proxies send that strip one.
    A path that comes without the prefix was stripped of it, or asked for directly: both are answered. To the
    application `path` begins with `root_path`, as ASGI has it.

    In the scope's `state` it leaves `through_proxy`, whether the connection is a trusted proxy's.

    trusted_proxies: as `Settings.trusted_proxies`. root_path: as `Settings.root_path`.
    """

    def __init__(self, app: ASGIApp, *, trusted_proxies: str, root_path: str) -> None:
        # uvicorn's own has other names for the same types.
        self._app = ProxyHeadersMiddleware(app, trusted_proxies)  # type: ignore[arg-type]
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        if scope["type"] == "http":
            scope = dict(scope)
            peer = scope["client"][0] if scope.get("client") else ""
            through_proxy = peer in self._app.trusted_hosts
            scope["state"] = {**scope.get("state", {}), "through_proxy": through_proxy}
            prefix = self._root_path
            if not prefix and through_proxy:
                prefix = forwarded_prefix(Headers(scope=scope))
            if prefix:
                _put_below(scope, prefix)
        await self._app(scope, receive, send)  # type: ignore[arg-type]


def forwarded_prefix(headers: Headers) -> str:
    """The prefix of X-Forwarded-Prefix, of several proxies one after the other; empty where it is none."""
    prefixes = headers.getlist("x-forwarded-prefix")
    if not prefixes:
        return ""
    try:
        return "".join(parse_prefix(prefix) for prefix in ",".join(prefixes).split(","))
    except ValueError:
        return ""


def _put_below(scope: Scope, prefix: str) -> None:
    scope["root_path"] = prefix
    path: str = scope["path"]
    # A prefix that is called as a path of ours cannot be told from it. The setting does not take such a one,
    # and a proxy that sends the header has stripped it.
    is_below = path == prefix or path.startswith(f"{prefix}/")
    if not is_below or prefix.split("/")[1] in OWN_PATHS:
        scope["path"] = prefix + path
        if raw_path := scope.get("raw_path"):
            scope["raw_path"] = prefix.encode() + raw_path


def route_path(scope: Scope) -> str:
    """The path of a request as our routes have it: without the prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
