"""Which web addresses may be requested. Pure: nothing here resolves a name or opens a connection.

A client that names an address makes this server connect to it from inside its network (server-side request
forgery, SSRF). So only addresses of the public internet are allowed, unless the operator allows others, and
the refusal is the same sentence for all: it reveals neither whether an internal name exists nor its address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

import httpx

from indexer.errors import MediaError

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_URL_CHARACTERS: Final = 4096
MAX_HOST_CHARACTERS: Final = 253

REFUSED: Final = "the address names no server on the public internet that this server may ask"
NO_WEB_ADDRESS: Final = "this is not a web address: one looks like https://example.org/video.mp4"
CREDENTIALS_REFUSED: Final = "an address with a user name or a password in it is not taken"
PORT_REFUSED: Final = "the address names a port that this server may not ask"

IPAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        # IPv4, by RFC 6890 and the registry of IANA that follows it.
        "0.0.0.0/8",  # this network; Linux takes 0.0.0.0 for itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers, and the metadata service of some clouds
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local: the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",  # reserved, with 255.255.255.255
        # Azure asks this public address from inside for what concerns the machine alone.
        "168.63.129.16/32",
        # IPv6: what of 2000::/3 is not public. Of the rest nothing is.
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
_PUBLIC_IPV6: Final = IPv6Network("2000::/3")
"""All that IANA has given out. Outside of it lie ::, ::1, IPv4-mapped and -compatible addresses, NAT64
(64:ff9b::/96 and 64:ff9b:1::/48), the discard prefix, unique local, link-local, site-local and multicast."""

_NEVER: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "fd00:ec2::254/128",  # the metadata service of AWS over IPv6
        "fe80::/10",
        "ff00::/8",
    )
)
"""Not even for a host that is allowed by name. A network that names them allows them."""

_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


class DownloadError(MediaError):
    """A video that could not be fetched from the web; `reason` says why."""


@dataclass(frozen=True)
class AllowedHosts:
    """What may be requested beyond the public internet.

    Attributes:
        names: Hosts whose addresses may be private, in lower case, as in a url.
        networks: Private addresses that any host may have.
    """

    names: frozenset[str] = field(default_factory=frozenset)
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> AllowedHosts:
        """From names, addresses and networks: `media.internal`, `10.0.0.5`, `10.1.0.0/16`, `fd00::/8`.

        Raises:
            ValueError: An entry is none of them; the message names it.
        """
        names, networks = set[str](), list[Network]()
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
                continue
            except ValueError:
                pass
            name = _normalised_name(entry)
            if name is None:
                raise ValueError(f"{entry!r} is not a host name, address or network")
            names.add(name)
        return cls(frozenset(names), tuple(networks))


@dataclass(frozen=True)
class WebAddress:
    """An address that is well-formed and allowed as far as it can be known before its name is resolved.

    Attributes:
        url: As it will be requested, without a fragment.
        host: In lower case, IDNA-encoded, without a trailing dot and without brackets.
        port: The one to connect to.
    """

    url: httpx.URL
    host: str
    port: int


def parse_web_address(text: str, ports: Sequence[int], allowed: AllowedHosts) -> WebAddress:
    """Parse an http or https address; a literal IP address is checked here.

    Args:
        text: The address, as a client sent it.
        ports: Those that may be connected to.
        allowed: Hosts and networks beyond the public internet.

    Raises:
        DownloadError: It is no such address, or is refused; the reason holds nothing of `text`.
    """
    if len(text) > MAX_URL_CHARACTERS or "\\" in text or not text.isprintable() or " " in text:
        raise DownloadError(NO_WEB_ADDRESS)
    try:
        url = httpx.URL(text)
        # The parsed text is parsed once more: what is requested must be what was checked.
        url = httpx.URL(str(url.copy_with(fragment=None)))
    except (httpx.InvalidURL, ValueError, TypeError):
        raise DownloadError(NO_WEB_ADDRESS) from None
    if url.scheme not in DEFAULT_PORTS:
        raise DownloadError(NO_WEB_ADDRESS)
    if url.userinfo or "@" in url.netloc.decode("ascii"):
        raise DownloadError(CREDENTIALS_REFUSED)
    host = url.raw_host.decode("ascii").lower()
    literal = _literal(host)
    if literal is not None:
        check_addresses([literal], host, allowed)
        host = str(literal)
    else:
        name = _normalised_name(host)
        if name is None:
            raise DownloadError(REFUSED if host else NO_WEB_ADDRESS)
        host = name
    port = DEFAULT_PORTS[url.scheme] if url.port is None else url.port
    if port not in ports:
        raise DownloadError(PORT_REFUSED)
    # Without the trailing dot: certificates name hosts without it, and servers expect to be named so.
    return WebAddress(url.copy_with(host=host, port=None if url.port is None else port), host, port)


def check_addresses(addresses: Sequence[IPAddress], host: str, allowed: AllowedHosts) -> None:
    """Check what a name resolved to.

    Args:
        addresses: All of them.
        host: The name that they are of, as in WebAddress.
        allowed: Hosts and networks beyond the public internet.

    Raises:
        DownloadError: There are none, or one of them may not be connected to.
    """
    by_name = host in allowed.names
    if not addresses or not all(_is_allowed(address, by_name, allowed) for address in addresses):
        raise DownloadError(REFUSED)


def is_public(address: IPAddress) -> bool:
    """Whether this is, in its own spelling, an address of the public internet.

    An IPv6 address that stands for an IPv4 address is not: whatever it stands for can be had directly.
    """
    if isinstance(address, IPv6Address) and (address not in _PUBLIC_IPV6 or address.scope_id is not None):
        return False
    # Python's own list differs from version to version, so it can only add to ours.
    return address.is_global and not address.is_multicast and not _is_in(address, _NOT_PUBLIC)


def _is_allowed(address: IPAddress, by_name: bool, allowed: AllowedHosts) -> bool:
    if is_public(address) or _is_in(address, allowed.networks):
        return True
    plain = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return by_name and not _is_in(address, _NEVER) and not (plain is not None and _is_in(plain, _NEVER))


def _is_in(address: IPAddress, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _literal(host: str) -> IPAddress | None:
    """The IP address that `host` is in its usual spelling; None for any other text."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _normalised_name(host: str) -> str | None:
    """A host name in lower case without a trailing dot; None for what is none.

    A name that ends in a number is an IPv4 address to some (0x7f.1, 127.1, 2130706433) and is none here.
    """
    name = host.lower().removesuffix(".")
    if not name or len(name) > MAX_HOST_CHARACTERS or not _NAME.fullmatch(name):
        return None
    return None if _NUMBER.fullmatch(name.rpartition(".")[2]) else name
