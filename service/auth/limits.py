"""Which client is asking, for fair shares, and how often one client may send wrong keys.

256 random bits cannot be guessed; what is bounded is the noise and the work of trying. A right key is always
let through, so that no client can lock out another one that shares its address.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass

CLIENT: ContextVar[str] = ContextVar("client", default="unknown")
"""The client of the request under way: its key, else its address."""

BURST = 10
"""Wrong keys that one address may send without a pause."""

SECONDS_PER_ATTEMPT = 6.0
"""After the burst, the seconds until one more may be sent."""

MAX_ADDRESSES = 10_000
"""Addresses that are remembered; the one that was silent for longest is forgotten first."""


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class FailedAttempts:
    """Counts wrong keys by address: a bucket of BURST tokens each, refilled one in SECONDS_PER_ATTEMPT."""

    def __init__(self) -> None:
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
        bucket = self._buckets.setdefault(network, _Bucket(BURST, now))
        self._buckets.move_to_end(network)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        bucket.tokens = min(BURST, bucket.tokens + (now - bucket.filled_at) / SECONDS_PER_ATTEMPT)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return math.ceil((1 - bucket.tokens) * SECONDS_PER_ATTEMPT)
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
