"""Downloads a file from the web, within limits, without server-side request forgery (SSRF).

Each name is resolved once per request, all its addresses are checked, and the connection goes to one of these
very addresses, whatever the name resolves to a moment later (DNS rebinding). TLS still verifies the name.
Nothing comes from the environment (no proxy, no .netrc), no cookie is kept, nothing is decompressed.
"""

from __future__ import annotations

import hashlib
import http
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import httpcore
import httpx

from service.ingest.web.policy import (
    CREDENTIALS_REFUSED,
    NO_WEB_ADDRESS,
    AllowedHosts,
    DownloadError,
    IPAddress,
    WebAddress,
    check_addresses,
    parse_web_address,
)

MAX_REDIRECTS: Final = 5
MAX_ADDRESSES_TRIED: Final = 4
CONNECT_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.25
"""Between two checks of the timeouts, and calls of `tick`, while nothing arrives."""

LEAST_BYTES: Final = 16 * 1024
"""Must arrive in each interval of `idle_seconds`: a byte now and then does not prevent the timeout."""

TOO_SLOW: Final = "the server at this address sends too slowly, or nothing at all"
TOOK_TOO_LONG: Final = "the download took longer than this server allows"
TOO_LARGE: Final = "the file is larger than this server accepts"
INCOMPLETE: Final = "the connection was closed before the whole file had arrived"
NO_CONNECTION: Final = "the server at this address does not answer"
UNVERIFIED: Final = "the TLS certificate of the server at this address cannot be verified"
TOO_MANY_REDIRECTS: Final = "the address redirects too many times"
BAD_REDIRECT: Final = "the address redirects to something that is not a web address"
NOT_ENCRYPTED: Final = "the address redirects from https to http"
COMPRESSED: Final = "the server at this address sends the file with a content encoding that was not requested"
WEB_PAGE: Final = "the address is of a web page, not of a video file"
EMPTY: Final = "there is nothing in the file at this address"

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_BLOCK_BYTES: Final = 1024 * 1024

Resolve = Callable[[str, int], Sequence[IPAddress]]
"""From a host and a port to all its addresses; none where the name is not known."""

Tick = Callable[[], None]
"""Called several times a second while a download goes on; what it raises ends the download."""


@dataclass(frozen=True)
class DownloadRules:
    """Which addresses may be requested, and the limits of a download.

    Attributes:
        limit_bytes: The largest file.
        allowed: Hosts and networks beyond the public internet.
        ports: Those that may be connected to.
        timeout_seconds: For a whole download, redirects included.
        idle_seconds: In each interval of this length LEAST_BYTES must arrive.
    """

    limit_bytes: int
    allowed: AllowedHosts
    ports: tuple[int, ...]
    timeout_seconds: float
    idle_seconds: float

    @classmethod
    def of(cls, settings: _UrlSettings) -> DownloadRules:
        """From the settings of the service or of a worker."""
        return cls(
            settings.upload_limit_bytes,
            AllowedHosts.parse(settings.url_allowed_hosts),
            settings.url_ports,
            settings.url_timeout_seconds,
            settings.url_idle_seconds,
        )


class _UrlSettings(Protocol):
    @property
    def upload_limit_bytes(self) -> int: ...
    @property
    def url_allowed_hosts(self) -> tuple[str, ...]: ...
    @property
    def url_ports(self) -> tuple[int, ...]: ...
    @property
    def url_timeout_seconds(self) -> float: ...
    @property
    def url_idle_seconds(self) -> float: ...


@dataclass(frozen=True)
class Download:
    """A file that has arrived completely and is synced to disk. content_sha256: 64 hex digits."""

    content_sha256: str
    size_bytes: int


def resolve(host: str, port: int) -> list[IPAddress]:
    """All addresses of a name, as the system knows them. Blocks."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(ipaddress.ip_address(address[0]) for *_, address in found))


def download(
    uri: str,
    path: Path,
    rules: DownloadRules,
    tick: Tick = lambda: None,
    *,
    resolve: Resolve = resolve,
    ssl_context: ssl.SSLContext | None = None,
) -> Download:
    """Download a file over http or https, following redirects. Blocks.

    Args:
        uri: The address. It and every redirect are checked against `rules`.
        path: Overwritten; where the download fails, a part may be left there.
        rules: Which addresses are allowed, and the limits of size and time.
        tick: Called several times a second; what it raises ends the download.
        resolve: From a host and a port to its addresses; each of them is checked.
        ssl_context: Of the connections; None for certificates of the usual authorities.

    Returns:
        The sha256 and size of the file, which is synced to disk.

    Raises:
        DownloadError: The address is refused, or the file did not arrive; the reason is for the client, and
            reveals no names and addresses.
        OSError: The file cannot be written.
    """
    watch = _Watch(rules, tick)
    backend = _PinnedBackend(rules, watch, resolve)
    address = parse_web_address(uri, rules.ports, rules.allowed)
    for _ in range(MAX_REDIRECTS + 1):
        context = ssl_context or _default_ssl_context()
        with httpcore.ConnectionPool(ssl_context=context, network_backend=backend) as pool:
            try:
                outcome = _ask(pool, address, path, rules.limit_bytes)
            except httpcore.ConnectError as error:
                raise DownloadError(UNVERIFIED if _is_tls_error(error) else NO_CONNECTION) from None
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
                raise DownloadError(INCOMPLETE if watch.num_received else NO_CONNECTION) from None
        if isinstance(outcome, Download):
            return outcome
        address = _follow(address, outcome, rules)
    raise DownloadError(TOO_MANY_REDIRECTS)


def _ask(pool: httpcore.ConnectionPool, address: WebAddress, path: Path, limit_bytes: int) -> Download | str:
    """One request: the file, or the Location that the answer redirects to."""
    url = address.url
    target = httpcore.URL(
        scheme=url.raw_scheme, host=address.host.encode("ascii"), port=url.port, target=url.raw_path
    )
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", b"xclip-search"),
        (b"Accept", b"video/*, application/octet-stream, */*;q=0.1"),
        (b"Accept-Encoding", b"identity"),
    ]
    with pool.stream("GET", target, headers=headers) as response:
        received = httpx.Headers(response.headers)
        if response.status in _REDIRECTS and "location" in received:
            return received["location"]
        _check_answer(response.status, received, limit_bytes)
        return _save(response.iter_stream(), path, limit_bytes)


def _check_answer(status: int, headers: httpx.Headers, limit_bytes: int) -> None:
    if status != 200:
        phrase = http.HTTPStatus(status).phrase if status in list(http.HTTPStatus) else "unknown"
        raise DownloadError(f"the server at this address answers {status} ({phrase.lower()})")
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise DownloadError(COMPRESSED)
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type in ("text/html", "application/xhtml+xml"):
        raise DownloadError(WEB_PAGE)
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit_bytes:
        raise DownloadError(TOO_LARGE)


def _save(chunks: Iterable[bytes], path: Path, limit_bytes: int) -> Download:
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("wb", buffering=_BLOCK_BYTES) as file:
        for chunk in chunks:
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise DownloadError(TOO_LARGE)
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if not size_bytes:
        raise DownloadError(EMPTY)
    return Download(digest.hexdigest(), size_bytes)


def _follow(address: WebAddress, location: str, rules: DownloadRules) -> WebAddress:
    try:
        following = parse_web_address(str(address.url.join(location)), rules.ports, rules.allowed)
    except (httpx.InvalidURL, ValueError):
        raise DownloadError(BAD_REDIRECT) from None
    except DownloadError as error:
        not_formed = error.reason in (NO_WEB_ADDRESS, CREDENTIALS_REFUSED)
        raise DownloadError(BAD_REDIRECT if not_formed else error.reason) from None
    if address.url.scheme == "https" and following.url.scheme != "https":
        raise DownloadError(NOT_ENCRYPTED)
    return following


@cache
def _default_ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


def _is_tls_error(error: httpcore.ConnectError) -> bool:
    return isinstance(error.__cause__ or error.__context__, ssl.SSLError)


class _Watch:
    """The timeouts of one download. `check` raises when one has run out."""

    def __init__(self, rules: DownloadRules, tick: Tick) -> None:
        self._idle_seconds = rules.idle_seconds
        self._tick = tick
        self._ends_at = time.monotonic() + rules.timeout_seconds
        self._interval_began_at = time.monotonic()
        self._interval_bytes = 0
        self.num_received = 0

    def check(self) -> None:
        self._tick()
        now = time.monotonic()
        if now >= self._ends_at:
            raise DownloadError(TOOK_TOO_LONG)
        if now - self._interval_began_at >= self._idle_seconds:
            if self._interval_bytes < LEAST_BYTES:
                raise DownloadError(TOO_SLOW)
            self.begin_interval()

    def begin_interval(self) -> None:
        self._interval_began_at, self._interval_bytes = time.monotonic(), 0

    def received(self, num_bytes: int) -> None:
        self.num_received += num_bytes
        self._interval_bytes += num_bytes

    def seconds_left(self, longest: float) -> float:
        return max(0.01, min(longest, self._ends_at - time.monotonic()))


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and to no others."""

    def __init__(self, rules: DownloadRules, watch: _Watch, resolve: Resolve) -> None:
        self._rules = rules
        self._watch = watch
        self._resolve = resolve
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._resolve(host, port)
        check_addresses(addresses, host, self._rules.allowed)
        for address in addresses[:MAX_ADDRESSES_TRIED]:
            self._watch.check()
            self._watch.begin_interval()
            seconds = self._watch.seconds_left(CONNECT_SECONDS)
            try:
                stream = self._sockets.connect_tcp(str(address), port, seconds, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
            self._watch.begin_interval()
            return _WatchedStream(stream, self._watch)
        raise httpcore.ConnectError


class _WatchedStream(httpcore.NetworkStream):
    """A connection that checks the timeouts while it waits."""

    def __init__(self, stream: httpcore.NetworkStream, watch: _Watch) -> None:
        self._stream = stream
        self._watch = watch

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            self._watch.check()
            try:
                data = self._stream.read(max_bytes, POLL_SECONDS)
            except httpcore.ReadTimeout:
                continue
            self._watch.received(len(data))
            return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._watch.check()
        self._stream.write(buffer, self._watch.seconds_left(CONNECT_SECONDS))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = self._watch.seconds_left(CONNECT_SECONDS)
        return _WatchedStream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._watch)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
