"""Fetches a file from the web: the address that was checked is the one that is connected to, within limits.

Each name is resolved once per request, all its addresses are checked, and the connection goes to one of these
very addresses, whatever the name resolves to a moment later. TLS still verifies the
name. Nothing comes from the environment (no proxy, no .netrc), no cookie is kept, nothing is decompressed.
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
"""Between two looks at the clock, and calls of `tick`, while nothing arrives."""

LEAST_BYTES: Final = 16 * 1024
"""Must arrive in each interval of `idle_seconds`: a byte now and then does not keep a download alive."""

TOO_SLOW: Final = "the server at this address sends too slowly, or nothing at all"
TOOK_TOO_LONG: Final = "the download took longer than this server waits for one"
TOO_LARGE: Final = "the file is larger than this server takes"
CUT_OFF: Final = "the connection broke off before the whole file had arrived"
NO_CONNECTION: Final = "the server at this address does not answer"
NO_TRUST: Final = "the server at this address has no certificate that proves its name"
TOO_MANY_REDIRECTS: Final = "the address leads from one address to the next and never to a file"
BAD_REDIRECT: Final = "the address leads on to something that is no web address"
DOWNGRADE: Final = "the address leads from an encrypted connection to one that is not"
COMPRESSED: Final = "the server at this address compresses the file on the way, which was not asked for"
WEB_PAGE: Final = "the address leads to a web page and not to a video file"
EMPTY: Final = "there is nothing in the file at this address"

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_BLOCK_BYTES: Final = 1024 * 1024

Resolve = Callable[[str, int], Sequence[IPAddress]]
"""From a host and a port to all its addresses; none where the name is not known."""

Tick = Callable[[], None]
"""Called several times a second while a download goes on; what it raises ends the download."""


@dataclass(frozen=True)
class DownloadRules:
    """What may be fetched, and at what cost.

    limit_bytes: the largest file. ports: those that may be asked. timeout_seconds: for a whole download,
    redirects included. idle_seconds: see LEAST_BYTES.
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
    """A file that has wholly arrived and is synced to disk."""

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
    """Fetch `uri` to `path`, which is overwritten; where it fails, something may be left there. Blocks.

    ssl_context: the authorities that are trusted; the usual ones where None.
    Raises DownloadError, whose reason reveals no names and addresses, OSError of the disk, and whatever
    `tick` raises.
    """
    watch = _Watch(rules, tick)
    backend = _PinnedBackend(rules, watch, resolve)
    address = parse_web_address(uri, rules.ports, rules.allowed)
    for _ in range(MAX_REDIRECTS + 1):
        context = ssl_context or _usual_authorities()
        with httpcore.ConnectionPool(ssl_context=context, network_backend=backend) as pool:
            try:
                outcome = _ask(pool, address, path, rules.limit_bytes)
            except httpcore.ConnectError as error:
                raise DownloadError(NO_TRUST if _is_about_trust(error) else NO_CONNECTION) from None
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
                raise DownloadError(CUT_OFF if watch.num_received else NO_CONNECTION) from None
        if isinstance(outcome, Download):
            return outcome
        address = _follow(address, outcome, rules)
    raise DownloadError(TOO_MANY_REDIRECTS)


def _ask(pool: httpcore.ConnectionPool, address: WebAddress, path: Path, limit_bytes: int) -> Download | str:
    """One request: the file, or the Location that the answer leads on to."""
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
        raise DownloadError(DOWNGRADE)
    return following


@cache
def _usual_authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


def _is_about_trust(error: httpcore.ConnectError) -> bool:
    return isinstance(error.__cause__ or error.__context__, ssl.SSLError)


class _Watch:
    """The clocks of one download. `look` raises when one has run out."""

    def __init__(self, rules: DownloadRules, tick: Tick) -> None:
        self._idle_seconds = rules.idle_seconds
        self._tick = tick
        self._ends_at = time.monotonic() + rules.timeout_seconds
        self._interval_began_at = time.monotonic()
        self._interval_bytes = 0
        self.num_received = 0

    def look(self) -> None:
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
            self._watch.look()
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
    """A connection that looks at the clocks while it waits."""

    def __init__(self, stream: httpcore.NetworkStream, watch: _Watch) -> None:
        self._stream = stream
        self._watch = watch

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            self._watch.look()
            try:
                data = self._stream.read(max_bytes, POLL_SECONDS)
            except httpcore.ReadTimeout:
                continue
            self._watch.received(len(data))
            return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._watch.look()
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
