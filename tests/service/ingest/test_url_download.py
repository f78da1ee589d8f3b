"""Downloads: pinned addresses, redirects, limits of size and time, TLS; against a server on this machine.

Names are resolved by the test, so nothing leaves the machine. 127.0.0.1 stands for a public server by being
allowed; ::1 and everything else stays forbidden.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.ingest.web import download as url_download
from service.ingest.web.download import Download, DownloadRules, download
from service.ingest.web.policy import (
    PORT_REFUSED,
    REFUSED,
    AllowedHosts,
    DownloadError,
    IPAddress,
)
from tests.support.servers.web_server import (
    Answer,
    WebServer,
    by_path,
    dripping,
    make_certificate,
    reply,
    serving,
)

TlsServer = tuple[WebServer, ssl.SSLContext, list[str | None]]
LOOPBACK = ipaddress.ip_address("127.0.0.1")
CONTENT = os.urandom(100_000)
LIMIT_BYTES = 200_000


def here(host: str, port: int) -> list[IPAddress]:
    return [LOOPBACK]


def rules(server: WebServer, **changes: Any) -> DownloadRules:
    values: dict[str, Any] = {
        "limit_bytes": LIMIT_BYTES,
        "allowed": AllowedHosts.parse(["127.0.0.1"]),
        "ports": (server.port,),
        "timeout_seconds": 10.0,
        "idle_seconds": 5.0,
    }
    return DownloadRules(**{**values, **changes})


def refusal(server: WebServer, path: Path, url: str | None = None, **named: Any) -> str:
    """The reason why a download fails."""
    changes = {name: named.pop(name) for name in list(named) if name in DownloadRules.__dataclass_fields__}
    with pytest.raises(DownloadError) as failed:
        download(url or server.url(), path, rules(server, **changes), **{"resolve": here, **named})
    reason = failed.value.reason
    assert "127.0.0.1" not in reason and "example" not in reason and str(server.port) not in reason
    return reason


def get(server: WebServer, path: Path, url: str | None = None, **named: Any) -> Download:
    return download(url or server.url(), path, rules(server), **{"resolve": here, **named})


def test_a_file_arrives_whole_and_the_request_says_no_more_than_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None of these may have any effect.
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "netrc").write_text("default login somebody password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(reply(CONTENT, "200 OK", "Set-Cookie: a=b")) as server:
        done = get(server, tmp_path / "file", server.url("/a%20b.mp4?q=1#fragment"))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert done == Download(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    (head,) = server.requests
    lines = head.split("\r\n")
    assert lines[0] == "GET /a%20b.mp4?q=1 HTTP/1.1" and f"Host: videos.example:{server.port}" in lines
    assert "Accept-Encoding: identity" in lines
    assert not any(line.lower().startswith(("cookie", "authorization", "referer", "proxy")) for line in lines)


def test_a_chunked_file_and_one_that_ends_with_its_connection_arrive_too(tmp_path: Path) -> None:
    chunked = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (CONTENT[:7], CONTENT[7:]))
    chunked = chunked + b"0\r\n\r\n"
    answers = {
        "/chunked": reply(chunked, "200 OK", "Transfer-Encoding: chunked", length=False),
        "/until-the-end": reply(CONTENT, length=False),
    }
    with serving(by_path(answers)) as server:
        for path in answers:
            get(server, tmp_path / "file", server.url(path))
            assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "addresses",
    [["::1"], ["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], []],
)
def test_a_name_that_stands_for_any_forbidden_address_or_for_none_is_refused_alike(
    tmp_path: Path, addresses: list[str]
) -> None:
    def resolve(host: str, port: int) -> list[IPAddress]:
        return [ipaddress.ip_address(address) for address in addresses]

    with serving(reply(CONTENT)) as server:
        assert refusal(server, tmp_path / "file", resolve=resolve) == REFUSED
    assert server.requests == []


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name means something else when it is asked again."""
    asked: list[str] = []
    connected: list[str] = []
    connect_really = socket.create_connection

    def resolve(host: str, port: int) -> list[IPAddress]:
        asked.append(host)
        return [LOOPBACK] if len(asked) == 1 else [ipaddress.ip_address("10.0.0.1")]

    def connect(address: tuple[str, int], *arguments: Any, **named: Any) -> socket.socket:
        connected.append(address[0])
        return connect_really(address, *arguments, **named)

    def look_up(*arguments: Any, **named: Any) -> Any:
        assert arguments[0] == "127.0.0.1", "only an address may be looked up, never a name"
        return look_up_really(*arguments, **named)

    look_up_really = socket.getaddrinfo
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with serving(reply(CONTENT)) as server:
        get(server, tmp_path / "file", resolve=resolve)
        assert asked == ["videos.example"] and connected == ["127.0.0.1"]
        # The second download asks again, and is refused by what it hears.
        assert refusal(server, tmp_path / "file", resolve=resolve) == REFUSED
    assert connected == ["127.0.0.1"] and len(server.requests) == 1


def test_the_next_address_is_tried_where_one_does_not_answer(tmp_path: Path) -> None:
    def resolve(host: str, port: int) -> list[IPAddress]:
        return [ipaddress.ip_address("127.0.0.77"), LOOPBACK]

    with serving(reply(CONTENT)) as server:
        both = rules(server, allowed=AllowedHosts.parse(["127.0.0.0/24"]))
        download(server.url(), tmp_path / "file", both, resolve=resolve)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Again", "308 There"])
def test_a_redirect_is_followed(tmp_path: Path, status: str) -> None:
    answers = {"/clip.mp4": reply(b"", status, "Location: ../there?x=1"), "/there?x=1": reply(CONTENT)}
    with serving(by_path(answers)) as server:
        get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and len(server.requests) == 2


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://10.0.0.1/", REFUSED),
        ("http://[::1]:{port}/", REFUSED),
        ("http://[::ffff:127.0.0.1]:{port}/", REFUSED),
        ("//169.254.169.254/latest/meta-data/", REFUSED),
        ("http://0x7f000001:{port}/", REFUSED),
        ("http://inside.example:{port}/", REFUSED),
        ("http://127.0.0.1:22/", PORT_REFUSED),
        ("http://user:word@videos.example:{port}/", url_download.BAD_REDIRECT),
        ("file:///etc/passwd", url_download.BAD_REDIRECT),
        ("gopher://videos.example/", url_download.BAD_REDIRECT),
        ("https://", url_download.BAD_REDIRECT),
        ("http://[", REFUSED),
    ],
)
def test_a_redirect_to_what_may_not_be_asked_is_refused(tmp_path: Path, location: str, reason: str) -> None:
    def resolve(host: str, port: int) -> list[IPAddress]:
        return [ipaddress.ip_address("192.168.1.1")] if host == "inside.example" else [LOOPBACK]

    with serving(reply(b"", "302 Found")) as server:
        server.answer = reply(b"", "302 Found", f"Location: {location.format(port=server.port)}")
        found = refusal(server, tmp_path / "file", resolve=resolve)
    assert found == reason and len(server.requests) == 1


def test_redirects_without_an_end_are_given_up(tmp_path: Path) -> None:
    with serving(reply(b"", "302 Found", "Location: /clip.mp4")) as server:
        assert refusal(server, tmp_path / "file") == url_download.TOO_MANY_REDIRECTS
        assert len(server.requests) == url_download.MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(b"gone", "404 Not Found"), "the server at this address answers 404 (not found)"),
        (reply(b"", "500 Oops"), "the server at this address answers 500 (internal server error)"),
        (reply(b"", "401 Unauthorized"), "the server at this address answers 401 (unauthorized)"),
        (reply(b"", "799 Strange"), "the server at this address answers 799 (unknown)"),
        (reply(CONTENT, "206 Partial Content"), "the server at this address answers 206 (partial content)"),
        (reply(b"", "304 Not Modified"), "the server at this address answers 304 (not modified)"),
        (reply(b"", "302 Found"), "the server at this address answers 302 (found)"),
        (reply(b""), url_download.EMPTY),
        (reply(b"<html>", "200 OK", "Content-Type: text/html; charset=utf-8"), url_download.WEB_PAGE),
        (reply(b"x", "200 OK", "Content-Encoding: gzip"), url_download.COMPRESSED),
        (reply(b"x", "200 OK", "Content-Encoding: br"), url_download.COMPRESSED),
        (reply(b"x", "200 OK", f"Content-Length: {LIMIT_BYTES + 1}"), url_download.TOO_LARGE),
        (reply(b"x", "200 OK", "Content-Length: " + "9" * 400), url_download.INCOMPLETE),
        (reply(CONTENT, "200 OK", "Content-Length: 150000"), url_download.INCOMPLETE),
        (reply(b"x", "200 OK", "Content-Length: -5"), url_download.INCOMPLETE),
        (reply(b"x", "200 OK", "Content-Length: 1", "Content-Length: 2"), url_download.INCOMPLETE),
        (reply(b"5\r\nabc", "200 OK", "Transfer-Encoding: chunked", length=False), url_download.INCOMPLETE),
        (reply(b"zz\r\nabc", "200 OK", "Transfer-Encoding: chunked", length=False), url_download.INCOMPLETE),
        (reply(CONTENT + CONTENT + b"x", length=False), url_download.TOO_LARGE),
        (lambda connection, path: connection.sendall(b"no HTTP at all\r\n\r\n"), url_download.INCOMPLETE),
        (
            lambda connection, path: connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000),
            url_download.INCOMPLETE,
        ),
        (lambda connection, path: None, url_download.NO_CONNECTION),
    ],
)
def test_an_answer_that_is_no_file_fails_with_a_reason(tmp_path: Path, answer: Answer, reason: str) -> None:
    with serving(answer) as server:
        assert refusal(server, tmp_path / "file") == reason


def test_a_length_that_is_too_small_cuts_the_file_there(tmp_path: Path) -> None:
    with serving(reply(CONTENT, "200 OK", "Content-Length: 10")) as server:
        assert get(server, tmp_path / "file").size_bytes == 10


def test_no_more_than_the_limit_and_a_block_is_ever_written(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    with serving(reply()) as server:
        server.answer = dripping(head, b"x" * 60_000, 0.0, server.is_stopped.is_set)
        assert refusal(server, tmp_path / "file") == url_download.TOO_LARGE
    assert (tmp_path / "file").stat().st_size <= LIMIT_BYTES


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    ],
)
def test_a_server_that_sends_drop_by_drop_is_given_up(tmp_path: Path, head: bytes, drop: bytes) -> None:
    with serving(reply()) as server:
        server.answer = dripping(head, drop, 0.02, server.is_stopped.is_set)
        started = time.monotonic()
        reason = refusal(server, tmp_path / "file", idle_seconds=0.5, timeout_seconds=2.0)
        assert reason in (url_download.TOO_SLOW, url_download.TOOK_TOO_LONG, url_download.TOO_MANY_REDIRECTS)
        assert time.monotonic() - started < 6
        server.is_stopped.set()


def test_a_server_that_sends_fast_enough_but_without_an_end_is_given_up_in_time(tmp_path: Path) -> None:
    with serving(reply()) as server:
        server.answer = dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 2000, 0.02, server.is_stopped.is_set)
        reason = refusal(server, tmp_path / "file", timeout_seconds=0.7, limit_bytes=10**9)
        assert reason == url_download.TOOK_TOO_LONG
        server.is_stopped.set()


def test_a_download_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    class NoLongerWanted(Exception):
        pass

    wanted = threading.Event()
    wanted.set()

    def tick() -> None:
        if not wanted.is_set():
            raise NoLongerWanted

    with serving(reply()) as server:
        server.answer = dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"", 0.02, server.is_stopped.is_set)
        threading.Timer(0.3, wanted.clear).start()
        with pytest.raises(NoLongerWanted):
            download(server.url(), tmp_path / "file", rules(server), tick, resolve=here)
        server.is_stopped.set()


def test_an_address_that_refuses_connections_gives_a_clear_reason(tmp_path: Path) -> None:
    with serving(reply()) as server:
        pass
    assert refusal(server, tmp_path / "file") == url_download.NO_CONNECTION


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"), "videos.example")


@pytest.fixture
def tls_server(
    certificate: tuple[Path, Path],
) -> Iterator[TlsServer]:
    """A server, a context that trusts its certificate, and the names by which it was asked."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    with serving(reply(CONTENT), context) as server:
        yield server, trusting, names


def test_tls_goes_to_the_checked_address_and_verifies_the_name(tmp_path: Path, tls_server: TlsServer) -> None:
    server, trusting, names = tls_server
    get(server, tmp_path / "file", server.url(scheme="https"), ssl_context=trusting)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert names == ["videos.example"] and f"Host: videos.example:{server.port}" in server.requests[0]


@pytest.mark.parametrize("host", ["other.example", "127.0.0.1"])
def test_tls_refuses_a_certificate_for_another_name(tmp_path: Path, tls_server: TlsServer, host: str) -> None:
    server, trusting, _ = tls_server
    url = server.url(scheme="https", host=host)
    assert refusal(server, tmp_path / "file", url, ssl_context=trusting) == url_download.UNVERIFIED
    assert server.requests == []


def test_tls_refuses_a_certificate_of_an_unknown_authority(tmp_path: Path, tls_server: TlsServer) -> None:
    server, _, _ = tls_server
    assert refusal(server, tmp_path / "file", server.url(scheme="https")) == url_download.UNVERIFIED
    assert server.requests == []


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path, tls_server: TlsServer) -> None:
    server, trusting, _ = tls_server
    server.answer = reply(b"", "302 Found", f"Location: {server.url()}")
    url = server.url(scheme="https")
    assert refusal(server, tmp_path / "file", url, ssl_context=trusting) == url_download.NOT_ENCRYPTED


def test_what_the_system_knows_of_a_name_is_asked_without_an_error() -> None:
    assert LOOPBACK in url_download.resolve("localhost", 80)
    assert url_download.resolve("no-such-name.invalid", 80) == []
    assert url_download.resolve("a" * 70 + ".invalid", 80) == []
    found: Sequence[IPAddress] = url_download.resolve("::1", 80)
    assert [address.is_loopback for address in found] == [True]


def test_the_resolver_type_is_what_download_takes() -> None:
    resolver: Callable[[str, int], Sequence[IPAddress]] = url_download.resolve
    assert resolver("127.0.0.1", 80) == [LOOPBACK]
