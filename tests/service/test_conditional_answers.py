"""What a client has already is not sent again, and parts are sent where they are parts of what it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.support.servers.service_fakes import Service, add_video, running

ADDRESSES = ("/videos/a/media", "/videos/a/preview", "/page/app.js", "/")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    directory = tmp_path_factory.mktemp("conditional")
    with running(directory / "index") as service:
        add_file(service, directory / "a.mp4")
        yield service.client


def add_file(service: Service, path: Path) -> None:
    content = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256))
    path.write_bytes(content)
    add_video(service.catalog, "a", content, uri=str(path))


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_client_that_has_it_gets_304(client: TestClient, address: str) -> None:
    whole = client.get(address)
    tag = whole.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        for more in ({}, {"Range": "bytes=0-1"}, {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}):
            answer = client.get(address, headers={"If-None-Match": known, **more})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == tag
            assert answer.headers["cache-control"] == whole.headers["cache-control"]
    assert client.get(address, headers={"If-None-Match": '"other"'}).content == whole.content
    if modified := whole.headers.get("last-modified"):
        assert client.get(address, headers={"If-Modified-Since": modified}).status_code == 304
        both = {"If-Modified-Since": modified, "If-None-Match": '"other"'}
        assert client.get(address, headers=both).status_code == 200


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_part_is_sent_only_of_what_the_client_has(client: TestClient, address: str) -> None:
    whole = client.get(address)
    parts = {"Range": "bytes=1-3"}
    assert client.get(address, headers=parts).content == whole.content[1:4]
    same = client.get(address, headers={**parts, "If-Range": whole.headers["etag"]})
    assert (same.status_code, same.content) == (206, whole.content[1:4])
    for other in ('"other"', f"W/{whole.headers['etag']}", "Thu, 01 Jan 1970 00:00:00 GMT"):
        answer = client.get(address, headers={**parts, "If-Range": other})
        assert (answer.status_code, answer.content) == (200, whole.content)
    beyond = {"Range": "bytes=99999999-"}
    refused = client.get(address, headers=beyond)
    assert refused.status_code == 416
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["content-range"] == f"bytes */{len(whole.content)}"
    assert client.get(address, headers={**beyond, "If-Range": '"other"'}).status_code == 200


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("wanted", ["lines=1-", "bytes=5-2", "bytes=0-1,3-4", "nonsense", "bytes=a-b"])
def test_a_range_that_is_not_understood_is_ignored(client: TestClient, address: str, wanted: str) -> None:
    assert client.get(address, headers={"Range": wanted}).content == client.get(address).content


@pytest.mark.parametrize("address", ADDRESSES)
def test_head_describes_the_whole_file_and_ignores_ranges(client: TestClient, address: str) -> None:
    whole = client.get(address)
    for headers in ({}, {"Range": "bytes=1-3"}, {"Range": "bytes=99999999-"}):
        answer = client.head(address, headers=headers)
        assert (answer.status_code, answer.content) == (200, b"")
        for name in ("etag", "content-type", "content-length"):
            assert answer.headers[name] == whole.headers[name]


def test_a_monitor_may_ask_for_the_health_by_head(client: TestClient) -> None:
    for address in ("/healthz", "/readyz", "/docs"):
        assert client.head(address).status_code == 200
