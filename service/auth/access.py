"""Who may do what: every router declares OPEN, READ or WRITE, and a test fails where one does not.

    router = APIRouter(prefix="/videos", dependencies=[READ])

    @router.delete("/{video_id}", dependencies=[WRITE])

A key comes in `Authorization: Bearer`, in `X-API-Key`, or as a session's cookie; an `Authorization` of
another scheme is for a proxy. Where the server has no keys and none are demanded, everything is open.

A browser's session is a cookie that says which key it stands for and until when, signed and not stored. The
signature is an HMAC whose key is the stored hash of the API key: a session ends with its key, there is no
further secret, and servers that share a file of keys share sessions.

Wrong keys are limited by address. 256 random bits cannot be guessed; what is bounded is the noise and the
work of trying. A right key is always let through, so that no client can lock out another one behind the same
address.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from service.auth.keys import POLL_SECONDS, ApiKey, KeysFileError, Scope, hash_key, read_keys
from service.errors import (
    ForbiddenError,
    KeyNeededError,
    ServiceError,
    TooManyRequestsError,
    UnauthorizedError,
)

logger = logging.getLogger("xclip_search.service")

CLIENT: ContextVar[str] = ContextVar("client", default="unknown")
"""The client of the request under way: its key, else its address."""

COOKIE = "xclip_session"
KEY_HEADER = "X-API-Key"
"""For clients whose Authorization header is for a proxy."""

BURST = 10
"""Wrong keys that one address may send without a pause."""

SECONDS_PER_ATTEMPT = 6.0
"""After the burst, the seconds until one more may be sent."""

CLIENTS_OF_PEER = 10
"""So many times that may come from one peer, whatever addresses its header names: a proxy stands for many
clients, but what may be sent without a proxy may name any number of them."""

MAX_ADDRESSES = 10_000
"""Addresses that are remembered; the one that was silent for longest is forgotten first."""


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class FailedAttempts:
    """Counts wrong keys by address: a bucket of BURST tokens each, refilled one in SECONDS_PER_ATTEMPT.

    num_clients: how many clients one address may stand for, each with a bucket.
    """

    def __init__(self, num_clients: int = 1) -> None:
        self._burst = BURST * num_clients
        self._seconds_per_attempt = SECONDS_PER_ATTEMPT / num_clients
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def count(self, address: str) -> int:
        """Note one wrong key.

        Args:
            address: The client's IP address.

        Returns:
            Seconds until the next may be sent; 0 where it may be sent now.
        """
        now = time.monotonic()
        network = network_of(address)
        bucket = self._buckets.setdefault(network, _Bucket(self._burst, now))
        self._buckets.move_to_end(network)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        filled = bucket.tokens + (now - bucket.filled_at) / self._seconds_per_attempt
        bucket.tokens = min(self._burst, filled)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return math.ceil((1 - bucket.tokens) * self._seconds_per_attempt)
        bucket.tokens -= 1
        return 0


def network_of(address: str) -> str:
    """What stands for one client: an IPv4 address, or the /64 that every IPv6 client has for itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def make_session(key: ApiKey, seconds: float) -> str:
    """The value of a cookie that stands for `key` for `seconds` seconds."""
    expires_at = int(time.time() + seconds)
    return f"{key.name}:{expires_at}:{_sign(key, expires_at)}"


def find_session(value: str, ring: KeyRing) -> ApiKey | None:
    """The key that a cookie stands for; None where it is not ours, has expired, or its key is gone."""
    name, _, rest = value.partition(":")
    expires, _, signature = rest.partition(":")
    if not (expires.isascii() and expires.isdigit() and len(expires) <= 15 and signature.isascii()):
        return None
    key = ring.named(name)
    if key is None or not hmac.compare_digest(signature, _sign(key, int(expires))):
        return None
    return key if time.time() < int(expires) else None


def _sign(key: ApiKey, expires_at: int) -> str:
    message = f"xclip-search session\n{key.name}\n{expires_at}".encode()
    return hmac.new(bytes.fromhex(key.sha256), message, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class _Stamp:
    """What changes when a file is replaced or written."""

    inode: int
    size_bytes: int
    changed_ns: int


class KeyRing:
    """The keys of a running server, read again soon after the file has changed.

    Once there was a key, keys are needed for good: removing the last one must not open the server. A file
    that became unreadable leaves the keys as they were.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: list[ApiKey] = []
        self._required = False
        self._stamp: _Stamp | None = None
        self._polled_at = float("-inf")

    def demand(self) -> None:
        """Require a key from now on, whether there is one or not."""
        self._required = True

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        self._refresh()
        return self._required

    @property
    def num_keys(self) -> int:
        """Valid keys."""
        self._refresh()
        return len(self._keys)

    def find(self, secret: str) -> ApiKey | None:
        """The key that `secret` is, or None. Takes the same time whichever it is, and whether it is one."""
        self._refresh()
        digest = hash_key(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def named(self, name: str) -> ApiKey | None:
        """The key of this name, or None."""
        self._refresh()
        return next((key for key in self._keys if key.name == name), None)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._polled_at < POLL_SECONDS:
            return
        self._polled_at = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except KeysFileError as error:
            # Whatever is wrong, the previous keys stay in force.
            self._required = True
            logger.error("the keys were not reloaded, the previous ones stay in force: %s", error)
            return
        self._required = self._required or bool(self._keys)
        logger.info("loaded %d API keys", len(self._keys))


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


SECURITY_SCHEMES: dict[str, dict[str, str]] = {
    "key": {
        "type": "http",
        "description": "A key made with `xclip-search keys add`. Not needed where the server has no keys.",
        "scheme": "bearer",
    },
    "key_header": {
        "type": "apiKey",
        "description": "The same key, where a proxy has the header `Authorization` for itself.",
        "in": "header",
        "name": KEY_HEADER,
    },
    "session": {
        "type": "apiKey",
        "description": "Set by `POST /session`; for browsers.",
        "in": "cookie",
        "name": COOKIE,
    },
}
"""How a key may come, as OpenAPI says it. As dependencies of FastAPI they would be solved at each request,
for nothing but its document."""


class AccessControl:
    """Authenticates requests by the keys of `ring`, and limits how many wrong keys an address may send."""

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self.failed_attempts = FailedAttempts()
        self.failed_attempts_of_peers = FailedAttempts(CLIENTS_OF_PEER)
        self.num_wrong_keys = 0

    def identify(self, request: Request) -> ApiKey | None:
        """The key that came with a request, None where none came.

        Raises:
            UnauthorizedError, KeyNeededError: The key is wrong.
            TooManyRequestsError: Too many wrong keys came from this address.
        """
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.check_secret(request, secret.strip())
        if (header := request.headers.get(KEY_HEADER)) is not None:
            return self.check_secret(request, header.strip())
        cookie = request.cookies.get(COOKIE)
        return None if cookie is None else find_session(cookie, self.ring)

    def check_secret(self, request: Request, secret: str) -> ApiKey:
        """The key that `secret` is.

        Args:
            request: Its client's address is charged for a wrong key.
            secret: As the client sent it.

        Raises:
            UnauthorizedError, KeyNeededError: It is not a valid key.
            TooManyRequestsError: It is not a valid key, and too many of them came from this address.
        """
        key = self.ring.find(secret)
        if key is not None:
            return key
        self.num_wrong_keys += 1
        address = request.client.host if request.client else ""
        wait_seconds = max(
            self.failed_attempts.count(address),
            self.failed_attempts_of_peers.count(getattr(request.state, "peer", address)),
        )
        if wait_seconds:
            raise TooManyRequestsError(
                "Too many wrong keys come from this address.", retry_after_seconds=wait_seconds
            )
        raise no_key(request, "The key is not valid.")


def no_key(request: Request, detail: str | None = None) -> ServiceError:
    """What a request without a valid key is answered: see `KeyNeededError` for why there are two."""
    scheme = request.headers.get("authorization", "").partition(" ")[0].lower()
    return UnauthorizedError(detail) if scheme in ("", "bearer") else KeyNeededError(detail)


@dataclass(frozen=True)
class Access:
    """The scope that an endpoint requires, None for none. A dependency of FastAPI."""

    scope: Scope | None

    @property
    def problems(self) -> tuple[type[ServiceError], ...]:
        """What an endpoint that requires it may answer, see `service.errors.may_raise`."""
        refused = (UnauthorizedError, KeyNeededError, TooManyRequestsError)
        return (*refused, ForbiddenError) if self.scope == "write" else refused

    async def __call__(self, request: Request) -> None:
        """Let the request through, and note whose it is.

        Raises:
            UnauthorizedError, KeyNeededError: It has no key, or a wrong one.
            ForbiddenError: Its key has not the scope.
            TooManyRequestsError: Too many wrong keys came from this address.
        """
        assert self.scope is not None
        control: AccessControl = request.app.state.access
        if not control.ring.required:
            return
        key = control.identify(request)
        if key is None:
            raise no_key(request)
        request.state.key_name = key.name
        CLIENT.set(key.client)
        if not key.allows(self.scope):
            raise ForbiddenError()


async def _allow_all() -> None:
    """No key is needed. Async, for FastAPI calls a plain function in a thread, and a probe must not wait."""


OPEN = Depends(_allow_all)
"""Needs no key."""

READ = Depends(Access("read"))
"""Needs a key, of either scope."""

WRITE = Depends(Access("write"))
"""Needs a key with the scope write. A route may declare it on top of its router's READ."""


def declared_access(route: APIRoute) -> list[Scope | None]:
    """The scopes that a route and its routers declare, None for OPEN; empty where none is declared."""
    found: list[Scope | None] = []
    for dependant in route.dependant.dependencies:
        if isinstance(dependant.call, Access):
            found.append(dependant.call.scope)
        elif dependant.call is _allow_all:
            found.append(None)
    return found
