"""The files of videos that were indexed from addresses: streamed, redirected to, copied for pictures."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from starlette.testclient import TestClient

from indexer.ingest.remote_files import describe
from indexer.store.records import KnownFile
from service import remote_media
from service.app import create_app
from service.settings import Settings
from tests.support.servers.service_fakes import FakeSearcher, add_video, make_catalog
from tests.support.servers.web_server import by_path, reply, serving
from tests.support.video_files import write_numbered_video

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def address() -> str:
    address = f"memory://{uuid.uuid4().hex}/clip.mp4"
    put(address, CONTENT)
    return address


def put(address: str, content: bytes) -> None:
    with fsspec.open(address, "wb") as opened:
        opened.write(content)


@contextmanager
def client_of(
    directory: Path, address: str, content: bytes = CONTENT, *, is_known: bool = True, **settings: Any
) -> Iterator[TestClient]:
    """A server of one video, `a`, that lies at an address; read from there by the index, or only said to."""
    with make_catalog(directory / "index") as catalog:
        add_video(catalog, "a", content, uri=address)
        if is_known:
            there = describe(address)
            sha256 = hashlib.sha256(content).hexdigest()
            catalog.files.remember([KnownFile(address, len(content), there.version, sha256)])
        app = create_app(Settings(index=directory / "index", **settings), searcher=FakeSearcher(catalog))  # type: ignore[arg-type]
        with TestClient(app) as client:
            yield client


@pytest.mark.parametrize("block_bytes", [1 << 20, 1000])
def test_a_file_is_streamed_whole_and_in_part(
    tmp_path: Path, address: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_media, "BLOCK_BYTES", block_bytes)
    with client_of(tmp_path, address) as client:
        whole = client.get("/videos/a/media")
        assert (whole.status_code, whole.content) == (200, CONTENT)
        assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
        for asked, wanted in [
            ("bytes=10-19", CONTENT[10:20]),
            ("bytes=10000-", CONTENT[10000:]),
            ("bytes=-5", CONTENT[-5:]),
        ]:
            part = client.get("/videos/a/media", headers={"Range": asked})
            assert (part.status_code, part.content) == (206, wanted), asked
            assert part.headers["content-range"].endswith(f"/{len(CONTENT)}")
        assert client.get("/videos/a/media", headers={"Range": "bytes=99999-"}).status_code == 416
        known = client.get("/videos/a/media", headers={"If-None-Match": whole.headers["etag"]})
        assert known.status_code == 304 and known.content == b""
        head = client.head("/videos/a/media")
        assert head.headers["content-length"] == str(len(CONTENT)) and head.content == b""


def test_an_address_that_only_a_client_said_is_never_opened(tmp_path: Path, address: str) -> None:
    with client_of(tmp_path, address, is_known=False) as client:
        assert client.get("/videos/a/media").status_code == 404
        assert client.get("/videos/a/thumbnail").status_code == 404


def test_a_file_that_changed_or_is_gone_is_not_served(tmp_path: Path, address: str) -> None:
    with client_of(tmp_path, address) as client:
        put(address, CONTENT[::-1])
        assert client.get("/videos/a/media").status_code == 404
        fsspec.filesystem("memory").rm(address)
        assert client.get("/videos/a/media").status_code == 404
        assert client.get("/videos/a/thumbnail").status_code == 404


def test_files_at_addresses_can_be_kept_to_the_server(tmp_path: Path, address: str) -> None:
    with client_of(tmp_path, address, remote_media="off") as client:
        assert client.get("/videos/a/media").status_code == 404


def test_where_addresses_can_be_signed_clients_are_sent_there(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(tmp_path, address, remote_media="redirect") as client:
        assert client.get("/videos/a/media").content == CONTENT, "the memory signs nothing"
        signed = f"https://bucket.example/{uuid.uuid4().hex}?signature=x"
        monkeypatch.setattr(MemoryFileSystem, "sign", lambda self, path, expiration: signed)
        answer = client.get("/videos/a/media", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, signed)
        assert "media-src 'self' https: http:" in client.get("/").headers["content-security-policy"]


def test_thumbnails_are_made_from_one_copy(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_numbered_video(tmp_path / "a.mp4", 20, rate=10).read_bytes()
    put(address, content)
    fetched: list[str] = []
    get_file = MemoryFileSystem.get_file

    def note(self: MemoryFileSystem, path: str, *arguments: Any, **options: Any) -> None:
        fetched.append(path)
        get_file(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", note)
    with client_of(tmp_path, address, content) as client:
        for time_seconds in (0.0, 1.0):
            picture = client.get(f"/videos/a/thumbnail?time_seconds={time_seconds}")
            assert Image.open(io.BytesIO(picture.content)).format == "JPEG"
        assert len(fetched) == 1


def test_a_copy_larger_than_the_room_for_them_is_not_made(tmp_path: Path, address: str) -> None:
    with client_of(tmp_path, address, remote_media_cache_bytes=100) as client:
        assert client.get("/videos/a/thumbnail").status_code == 404
        assert client.get("/videos/a/media").content == CONTENT


def test_a_server_that_gives_whole_files_alone_serves_parts_from_a_copy(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    answer = by_path({"/clip.mp4": reply(CONTENT, "200 OK", 'ETag: "one"', "Connection: close")})
    with serving(answer) as server:
        url = server.url(host="127.0.0.1")
        with client_of(tmp_path, url) as client:
            part = client.get("/videos/a/media", headers={"Range": "bytes=10-19"})
            assert (part.status_code, part.content) == (206, CONTENT[10:20])
