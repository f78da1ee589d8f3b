"""Videos behind a web server that is slow, redirects, refuses, breaks off or changes what it has."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import FetchError
from indexer.index import Index
from indexer.ingest import local_copies, remote_files
from indexer.ingest.remote_files import RemoteFile, describe
from tests.support.library_stand_in import counts
from tests.support.servers.web_server import make_certificate
from tests.support.video_files import write_coloured_video

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONTENT = bytes(range(256)) * 800


@dataclass
class Site:
    """What the server does. requests: (method, path) of each.

    Attributes:
        statuses: of the next answers to GET, one each; 200 when none is left.
        retry_after: said with them.
        cuts: how much of the content the next answers send before they break off.
        says: how the length is told: by its number, by chunks, or not at all.
    """

    content: bytes = CONTENT
    etag: str | None = '"first"'
    statuses: list[int] = field(default_factory=list)
    retry_after: str | None = None
    cuts: list[int] = field(default_factory=list)
    says: str = "length"
    head_says: bool = True
    pause_seconds: float = 0.0
    on_get: Any = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""

    @property
    def num_fetched(self) -> int:
        """Answers to GET."""
        return sum(method == "GET" for method, _ in self.requests)


def handler_of(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            site.requests.append(("HEAD", self.path))
            self._begin(200, site.head_says)

        def do_GET(self) -> None:
            site.requests.append(("GET", self.path))
            if self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", self.path.replace("/moved", "/to"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            status = site.statuses.pop(0) if site.statuses else 200
            content = site.content
            self._begin(status, site.says == "length")
            if status != 200:
                return
            if site.on_get is not None:
                site.on_get()
            cut = site.cuts.pop(0) if site.cuts else len(content)
            for first in range(0, cut, 50_000):
                part = content[first : min(first + 50_000, cut)]
                if site.says == "chunks":
                    part = f"{len(part):x}\r\n".encode() + part + b"\r\n"
                self.wfile.write(part)
                time.sleep(site.pause_seconds)
            if cut == len(content) and site.says == "chunks":
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = cut < len(content) or site.says == "nothing"

        def _begin(self, status: int, says_length: bool) -> None:
            self.send_response(status)
            if site.etag is not None:
                self.send_header("ETag", site.etag)
            if status != 200:
                if site.retry_after is not None:
                    self.send_header("Retry-After", site.retry_after)
                self.send_header("Content-Length", "0")
            elif says_length:
                self.send_header("Content-Length", str(len(site.content)))
            elif self.command == "GET" and site.says == "chunks":
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Connection", "close")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote_files, "PAUSE_SECONDS", 0.01)
    site = Site()
    server = QuietServer(("127.0.0.1", 0), handler_of(site))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(site: Site, tmp_path: Path, path: str = "/a.mp4") -> bytes:
    """What a run gets for an address that it has listed."""
    listed = describe(site.address + path)
    site.requests.clear()
    local_copies.fetch_to(listed, tmp_path / "copy.mp4")
    return (tmp_path / "copy.mp4").read_bytes()


def why_not(site: Site, tmp_path: Path) -> str:
    with pytest.raises(FetchError) as raised:
        fetched(site, tmp_path)
    return raised.value.reason


@pytest.mark.parametrize("says", ["length", "chunks", "nothing"])
@pytest.mark.parametrize("head_says", [True, False])
def test_a_file_comes_whole_however_its_length_is_told(
    site: Site, tmp_path: Path, says: str, head_says: bool
) -> None:
    site.says, site.head_says = says, head_says
    assert fetched(site, tmp_path) == CONTENT


def test_a_slow_server_is_waited_for(site: Site, tmp_path: Path) -> None:
    site.pause_seconds = 0.1
    assert fetched(site, tmp_path) == CONTENT and site.num_fetched == 1


def test_a_redirect_is_followed(site: Site, tmp_path: Path) -> None:
    assert fetched(site, tmp_path, "/moved.mp4") == CONTENT
    assert ("GET", "/to.mp4") in site.requests


@pytest.mark.parametrize("says", ["length", "chunks", "nothing"])
@pytest.mark.parametrize("head_says", [True, False])
def test_what_breaks_off_is_fetched_again_and_never_taken_for_the_whole(
    site: Site, tmp_path: Path, says: str, head_says: bool
) -> None:
    site.says, site.head_says = says, head_says
    site.statuses, site.cuts = [], []
    listed = describe(f"{site.address}/a.mp4")
    site.cuts = [60_000]
    local_copies.fetch_to(listed, tmp_path / "copy.mp4")
    assert (tmp_path / "copy.mp4").read_bytes() == CONTENT


def test_what_always_breaks_off_fails_after_three_tries(site: Site, tmp_path: Path) -> None:
    site.cuts = [60_000] * 9
    assert "at 3 tries" in why_not(site, tmp_path)
    assert site.num_fetched == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses = [status] * 9
    reason = why_not(site, tmp_path)
    assert site.num_fetched == 1 and "tries" not in reason
    assert ("there is no such file" if status == 404 else str(status)) in reason


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses = [status, status]
    assert fetched(site, tmp_path) == CONTENT and site.num_fetched == 3
    site.statuses = [status] * 9
    assert f"the server answers {status}" in why_not(site, tmp_path)


def test_a_server_says_when_it_wants_to_be_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses, site.retry_after = [429], "1"
    started = time.monotonic()
    assert fetched(site, tmp_path) == CONTENT
    assert 1.0 <= time.monotonic() - started < 10


def test_other_content_meanwhile_is_left_to_the_next_run(site: Site, tmp_path: Path) -> None:
    def change() -> None:
        site.etag = '"second"'

    site.on_get = change
    assert "changed while it was fetched" in why_not(site, tmp_path)
    site.on_get, site.etag = None, '"first"'
    listed = describe(f"{site.address}/a.mp4")
    site.etag, site.content = '"second"', CONTENT[:1000]
    with pytest.raises(FetchError, match="changed while it was fetched"):
        local_copies.fetch_to(listed, tmp_path / "copy.mp4")


def test_the_question_whether_it_changed_is_asked_again_too(site: Site, tmp_path: Path) -> None:
    site.head_says = False  # So that GET is asked for the length.
    listed = describe(f"{site.address}/a.mp4")
    site.statuses = [200, 503]
    local_copies.fetch_to(listed, tmp_path / "copy.mp4")
    assert (tmp_path / "copy.mp4").read_bytes() == CONTENT


def test_an_address_whose_server_is_in_trouble_for_a_moment_is_listed(site: Site) -> None:
    site.head_says = False
    site.statuses = [503]
    (file,), _ = remote_files.list_address(f"{site.address}/a.mp4")
    assert file.size_bytes == len(CONTENT)
    site.statuses = [503]
    found = remote_files.describe_all([f"{site.address}/a.mp4"])
    assert isinstance(found[f"{site.address}/a.mp4"], RemoteFile)


@dataclass(frozen=True)
class TlsSite:
    """A site over TLS. certificate: of its own, which nobody else vouches for."""

    address: str
    certificate: Path


@pytest.fixture
def tls_site(tmp_path: Path) -> Iterator[TlsSite]:
    certificate, key = make_certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = QuietServer(("127.0.0.1", 0), handler_of(Site()))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield TlsSite(f"https://localhost:{server.server_port}", certificate)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_certificate_that_nobody_vouches_for_fails_at_once(tls_site: TlsSite, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="certificate") as raised:
        local_copies.fetch_to(RemoteFile(f"{tls_site.address}/a.mp4"), tmp_path / "copy.mp4")
    assert "tries" not in raised.value.reason


def test_a_certificate_that_the_environment_names_is_accepted(tls_site: TlsSite, tmp_path: Path) -> None:
    fetch = """
import sys, pathlib
from indexer.ingest import local_copies, remote_files
local_copies.fetch_to(remote_files.describe(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""
    # In a process of its own: certificates are read once.
    command = [sys.executable, "-c", fetch, f"{tls_site.address}/a.mp4", str(tmp_path / "copy.mp4")]
    subprocess.run(command, env={**os.environ, "SSL_CERT_FILE": str(tls_site.certificate)}, check=True)
    assert (tmp_path / "copy.mp4").read_bytes() == CONTENT


def test_a_film_that_broke_off_once_is_indexed_whole(
    site: Site, tmp_path: Path, model_directory: Path
) -> None:
    clip = write_coloured_video(tmp_path / "clip.mp4", (200, 90, 20))
    site.content = clip.read_bytes()
    with Index.create(tmp_path / "index", str(model_directory)) as index:
        site.cuts = [len(site.content) // 2]
        report = index.sync([f"{site.address}/film.mp4"], encoding={"num_workers": 1})
        assert counts(report) == {"added": 1} and not report.partial
        site.etag, site.content = '"second"', write_coloured_video(clip, (9, 200, 9)).read_bytes()
        site.cuts = [len(site.content) // 2] * 9
        report = index.sync([f"{site.address}/film.mp4"], encoding={"num_workers": 1})
        assert counts(report) == {"failed": 1}
        assert index.catalog.num_videos == 1, "the former one stays"
