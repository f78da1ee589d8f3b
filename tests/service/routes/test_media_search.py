"""POST /search/media: its form, its answer, and that nothing of the file stays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import NotAVideoError
from service.auth.keys import add_key
from tests.support.servers.service_fakes import Service, add_video, running

PICTURE = b"\xff\xd8\xff picture"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with running(tmp_path / "index", query_media_limit_bytes=1000) as service:
        add_video(service.catalog, "beach")
        yield service
    assert not list((tmp_path / "scratch").iterdir())


def ask(service: Service, content: bytes = PICTURE, **fields: Any) -> Any:
    return service.client.post("/search/media", files={"file": ("x.jpg", content)}, data=fields)


def test_a_file_finds_videos_and_is_not_kept(service: Service) -> None:
    response = ask(service)
    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"num_videos", "warnings", "results"}
    assert (answer["num_videos"], answer["warnings"]) == (1, ["a warning"])
    (result,) = answer["results"]
    assert result["id"] == "beach" and set(result["scores"].values()) == {None}
    assert service.searcher.media_bytes == [PICTURE]
    assert service.catalog.num_videos == 1 and not service.job_queue.list_jobs()


def test_fields_of_the_form_are_those_of_a_search(service: Service) -> None:
    filter_json = '{"metadata.camera": "north"}'
    ask(service, limit=5, offset=2, group_by="segment", min_score=0.5, num_moments=1, filter=filter_json)
    (query,) = service.searcher.media_queries
    assert (query.limit, query.offset, query.group_by, query.min_score, query.num_moments) == (
        *(5, 2, "segment", 0.5),
        1,
    )
    assert query.filter is not None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"filter": "{"}, "filter"),
        ({"min_score": "nan"}, "min_score"),
        ({"mode": "coarse"}, "those known: file, limit"),
    ],
)
def test_a_wrong_field_is_named_and_the_file_is_not_read(
    service: Service, fields: dict[str, str], said: str
) -> None:
    response = ask(service, **fields)
    assert response.status_code == 422
    assert said in response.json()["detail"]
    assert not service.searcher.media_bytes


def test_a_file_that_is_neither_picture_nor_video_is_refused_with_the_reason(service: Service) -> None:
    service.picture_error = NotAVideoError("text, not a video")
    response = ask(service)
    assert (response.status_code, response.json()["type"].rpartition(":")[2]) == (422, "media-rejected")
    assert response.json()["detail"] == "Text, not a video."


def test_a_file_beyond_the_limit_is_refused(service: Service) -> None:
    assert ask(service, b"x" * 1001).status_code == 413
    assert ask(service, b"x" * 1_000_000).status_code == 413


def test_a_form_without_a_file_and_other_bodies_are_refused(service: Service) -> None:
    client = service.client
    assert client.post("/search/media", files={"other": b"x"}).status_code == 422
    assert ask(service, b"").status_code == 422
    assert client.post("/search/media", json={"query": "x"}).status_code == 415
    assert client.post("/search/media").status_code == 415
    cut = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/search/media", content=cut, headers=headers).status_code == 400


def test_a_key_that_reads_may_search_by_media(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "reader", "read")
    with running(tmp_path / "index", keys_file=tmp_path / "keys.json") as service:
        assert ask(service).status_code == 401
        service.client.headers["Authorization"] = f"Bearer {key}"
        assert ask(service).status_code == 200
