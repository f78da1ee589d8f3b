"""Which web addresses may be asked: every spelling of an address inside is refused, with one sentence."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ingest.web.policy import (
    CREDENTIALS_REFUSED,
    NO_WEB_ADDRESS,
    PORT_REFUSED,
    REFUSED,
    AllowedHosts,
    DownloadError,
    check_addresses,
    is_public,
    parse_web_address,
)

NOTHING_MORE = AllowedHosts()
INSIDE = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.254", "127.0.0.1"),
    *("127.255.255.254", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.8"),
    *("192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("168.63.129.16", "100.100.100.200"),
    *(
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
    ),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "64:ff9b:1:ffff::7f00:1", "100::1", "2001::1"),
    *("2001:0:7f00:1::", "2001:db8::1", "2001:20::1", "2002:7f00:1::", "2002:a00:1::1", "3fff::1", "5f00::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "ff0e::1", "4000::1", "fe80::1%eth0"),
    # Public in truth, and still not asked in disguise: whatever they stand for can be had directly.
    *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
]
PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "93.184.215.14", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1"),
    *("192.0.1.1", "198.17.255.255", "198.20.0.1", "223.255.255.255", "11.0.0.1", "169.253.1.1"),
    *("2606:4700::1111", "2a00:1450:4001:80b::200e", "2620:fe::fe", "2400:cb00::1"),
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_public_is_refused_as_a_literal_and_as_what_a_name_stands_for(
    address: str,
) -> None:
    ip = ipaddress.ip_address(address)
    assert not is_public(ip)
    host = f"[{address}]" if ip.version == 6 else address
    for ports in ((80, 443), (8080,)):
        with pytest.raises(DownloadError) as refused:
            parse_web_address(f"http://{host}/", ports, NOTHING_MORE)
        assert refused.value.reason == REFUSED
    with pytest.raises(DownloadError) as refused:
        check_addresses([ip], "videos.example", NOTHING_MORE)
    assert refused.value.reason == REFUSED


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_taken(address: str) -> None:
    ip = ipaddress.ip_address(address)
    host = f"[{address}]" if ip.version == 6 else address
    parsed = parse_web_address(f"http://{host}/clip.mp4", (80,), NOTHING_MORE)
    assert is_public(ip) and (ipaddress.ip_address(parsed.host), parsed.port) == (ip, 80)
    check_addresses([ip], "videos.example", NOTHING_MORE)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.1",
            "127.0.1",
            "0x7f.1",
            "0x7f000001",
            "0X7F000001",
            "2130706433",
            "017700000001",
            "0177.0.0.1",
        ),
        *(
            "127.0.0.01",
            "127.0.0.0x1",
            "127.0.0.1.",
            "0",
            "0x",
            "00000000",
            "1.2.3.4.5",
            "256.1.1.1",
            "4294967297",
        ),
        *(
            "%31%32%37.0.0.1",
            "127%2e0.0.1",
            "127。0。0。1",
            "127\uff0e0\uff0e0\uff0e1",
            "\uff11\uff12\uff17.0.0.1",
            "①②⑦.0.0.1",
            "127.0.0.1%00",
        ),
        *(
            "[::1",
            "::1",
            "[::1%25lo]",
            "[::1%lo]",
            "[fe80::1%25eth0]",
            "[127.0.0.1]",
            "[::ffff:7f00:1]",
            "[v1.a]",
        ),
        *("[0:0:0:0:0:ffff:127.0.0.1]", "[::ffff:0x7f.1]", "[0000:0000::0001]", "[::]", "[]"),
        *("", ".", "..", "a..b", "-a", "a-", ".a", "a b", "a_b.0x1", "a" * 64 + ".org", "a." * 127 + "org"),
        *("ex\u00adample.1", "\u202e", "exa\tmple", "a\\b", "a,b", "a;b", "a*b", "host$", "(a)", "a'b"),
    ],
)
def test_no_other_spelling_of_an_address_gets_past(host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(DownloadError) as refused:
            parse_web_address(f"{scheme}://{host}/", (80, 443), NOTHING_MORE)
        assert refused.value.reason in (REFUSED, NO_WEB_ADDRESS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://example.org/a", NO_WEB_ADDRESS),
        ("file:///etc/passwd", NO_WEB_ADDRESS),
        ("gopher://example.org/", NO_WEB_ADDRESS),
        ("//example.org/a", NO_WEB_ADDRESS),
        ("example.org/a", NO_WEB_ADDRESS),
        ("http:/example.org/a", NO_WEB_ADDRESS),
        ("http:example.org", NO_WEB_ADDRESS),
        ("http:///a", NO_WEB_ADDRESS),
        ("http://example.org\\@127.0.0.1/", NO_WEB_ADDRESS),
        ("http://example.org/a b", NO_WEB_ADDRESS),
        ("http://example.org/\r\nHost: inside", NO_WEB_ADDRESS),
        ("http://example.org/\0", NO_WEB_ADDRESS),
        ("http://example.org/" + "a" * 5000, NO_WEB_ADDRESS),
        ("http://example.org:http/", NO_WEB_ADDRESS),
        ("http://user@example.org/", CREDENTIALS_REFUSED),
        ("http://user:word@example.org/", CREDENTIALS_REFUSED),
        ("http://example.org@127.0.0.1/", CREDENTIALS_REFUSED),
        ("http://example.org:22/", PORT_REFUSED),
        ("http://example.org:0/", PORT_REFUSED),
        ("https://example.org:8443/", PORT_REFUSED),
        ("http://example.org:99999/", PORT_REFUSED),
    ],
)
def test_what_is_no_plain_web_address_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DownloadError) as refused:
        parse_web_address(text, (80, 443), NOTHING_MORE)
    assert refused.value.reason == reason


def test_an_address_is_asked_as_it_was_checked() -> None:
    address = parse_web_address(
        "HTTPS://BÜCHER.Example./ä b.mp4?q=ä#part".replace(" ", "%20"), (443,), NOTHING_MORE
    )
    assert (address.host, address.port) == ("xn--bcher-kva.example", 443)
    assert str(address.url) == "https://xn--bcher-kva.example/%C3%A4%20b.mp4?q=%C3%A4"
    assert (
        parse_web_address("http://example.org:8080/a", (8080,), NOTHING_MORE).url.netloc
        == b"example.org:8080"
    )


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    public, inside = ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("10.0.0.1")
    check_addresses([public, public], "a.example", NOTHING_MORE)
    for addresses in ([public, inside], [inside, public], []):
        with pytest.raises(DownloadError, match=REFUSED):
            check_addresses(addresses, "a.example", NOTHING_MORE)


def test_hosts_and_networks_can_be_allowed_by_name_but_no_name_leads_to_the_metadata_service() -> None:
    allowed = AllowedHosts.parse(["Media.Internal.", "10.1.0.0/16", "192.168.7.7", "fd12::/16"])
    assert allowed.names == {"media.internal"}

    def may(address: str, host: str = "any.example") -> bool:
        try:
            check_addresses([ipaddress.ip_address(address)], host, allowed)
        except DownloadError:
            return False
        return True

    assert may("10.1.2.3") and may("192.168.7.7") and may("fd12::1") and may("172.16.0.1", "media.internal")
    assert not may("10.2.0.1") and not may("192.168.7.8") and not may("fd13::1") and not may("172.16.0.1")
    for metadata in (
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "fe80::1",
        "0.0.0.0",
        "224.0.0.1",
    ):
        assert not may(metadata, "media.internal")
    explicit = AllowedHosts.parse(["169.254.0.0/16"])
    check_addresses([ipaddress.ip_address("169.254.1.1")], "a.example", explicit)
    assert parse_web_address("http://10.1.0.9/a", (80,), allowed).host == "10.1.0.9"


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "a b", "*.internal", "http://a", "a:80", "", "127.1"])
def test_an_entry_that_allows_nothing_is_an_error(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host name, address or network"):
        AllowedHosts.parse([entry])


@given(
    st.text(max_size=40), st.sampled_from(["http://{}/", "http://a.example{}/", "http://{}@b.example/", "{}"])
)
def test_any_text_is_an_address_or_refused_and_what_is_parsed_is_stable(text: str, form: str) -> None:
    try:
        address = parse_web_address(form.format(text), (80, 443), NOTHING_MORE)
    except DownloadError as error:
        assert error.reason in (REFUSED, NO_WEB_ADDRESS, CREDENTIALS_REFUSED, PORT_REFUSED)
        return
    assert parse_web_address(str(address.url), (80, 443), NOTHING_MORE) == address
    assert address.url.host.strip("[]") and "@" not in address.url.netloc.decode()


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_has_no_disguise_in_which_it_passes(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    for prefix in ("::ffff:0:0", "::", "64:ff9b::", "64:ff9b:1::", "::ffff:0:0:0"):
        assert not is_public(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | number))
    assert not is_public(ipaddress.IPv6Address((0x2002 << 112) | (number << 80)))
    assert not is_public(ipaddress.IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF)))
    if is_public(plain):
        assert plain.is_global and not plain.is_private
