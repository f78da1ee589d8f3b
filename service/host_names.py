"""What names and addresses say about who is meant by them."""

from __future__ import annotations

import ipaddress


def host_name(host: str) -> str:
    """The name or address in a Host header, without its port, in small letters."""
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
    """Whether nobody on the Internet can let this name point to us: an address, or a name without a dot."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name
    return True
