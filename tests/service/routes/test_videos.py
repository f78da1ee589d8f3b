"""Listing, reading, patching and deleting videos; their files and thumbnails; jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import DecodeTimeoutError
from service.routes.page import PARTS
from service.schemas.videos import JobAnswer, VideoAnswer
from tests.support.catalog_builders import enqueue
from tests.support.servers.service_fakes import Service, add_video, running

MP4 = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "index") as service:
        yield service


def add_file(service: Service, id: str, content: bytes = MP4, ending: str = "mp4") -> Path:
    """A video that was indexed in place, and its file."""
    path = service.directory.parent / f"{id} with spaces.{ending}"
    path.write_bytes(content)
    add_video(service.catalog, id, content, uri=path.as_uri())
    return path


def test_pages_of_videos_hold_each_once_whatever_is_added_or_deleted_in_between(service: Service) -> None:
    for number in range(7):
        add_video(service.catalog, f"video-{number}")
    page = service.client.get("/videos?limit=3").json()
    assert [video["id"] for video in page["videos"]] == ["video-6", "video-5", "video-4"]
    add_video(service.catalog, "late")
    service.catalog.delete_video("video-5")
    page = service.client.get(f"/videos?limit=3&after={page['next']}").json()
    assert [video["id"] for video in page["videos"]] == ["video-3", "video-2", "video-1"]
    page = service.client.get(f"/videos?limit=3&after={page['next']}").json()
    assert [video["id"] for video in page["videos"]] == ["video-0"]
    assert page["next"] is None


def test_videos_are_listed_by_when_they_were_recorded(service: Service) -> None:
    for number, recorded_at in enumerate((None, 1.5, 1714557600.25, 1.5)):
        add_video(service.catalog, f"video-{number}", recorded_at=recorded_at)
    for sort, expected in (("-recorded_at", "2310"), ("recorded_at", "1320"), ("added_at", "0123")):
        found, address = "", f"/videos?limit=1&sort={sort}"
        page = service.client.get(address).json()
        while True:
            found += page["videos"][0]["id"][-1]
            if page["next"] is None:
                break
            page = service.client.get(f"{address}&after={page['next']}").json()
        assert found == expected
    page = service.client.get("/videos?limit=1&sort=-recorded_at").json()
    assert page["videos"][0]["recorded_at"] == "2024-05-01T10:00:00.250000Z"
    for wrong in (f"after={page['next']}", "after=1&sort=recorded_at", "after=1~1.2.3&sort=recorded_at"):
        assert service.client.get(f"/videos?{wrong}").json()["type"].endswith("invalid-cursor"), wrong
    assert service.client.get("/videos?sort=title").status_code == 422
    chosen = json.dumps({"recorded_at": {"gte": "2024-05-01T12:00:00+02:00"}})
    found = service.client.get("/videos", params={"filter": chosen}).json()["videos"]
    assert [video["id"] for video in found] == ["video-2"]


def test_the_time_of_recording_is_changed_by_a_patch(service: Service) -> None:
    add_video(service.catalog, "a", recorded_at=5.0)
    for given, shown in (
        ("2024-05-01T12:00:00+02:00", "2024-05-01T10:00:00Z"),
        ("1931-05-01", "1931-05-01T00:00:00Z"),
        (None, None),
    ):
        answer = service.client.patch("/videos/a", json={"recorded_at": given})
        assert (answer.status_code, answer.json()["recorded_at"]) == (200, shown)
    for wrong in ("yesterday", 5, "0001-01-01T00:00:00+14:00", "2024-06-31"):
        answer = service.client.patch("/videos/a", json={"recorded_at": wrong})
        assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "recorded_at"


def test_a_video_is_shown_with_all_that_was_said_about_it(service: Service) -> None:
    metadata = {"tags": ["🎬", "عربى"], "deep": {"n": 1.5, "none": None, "big": 2**60}}
    add_video(service.catalog, "é-1", title="𠮷itle \u200fكلب 👩\u200d👩\u200d👧", metadata=metadata)
    body = service.client.get("/videos/%C3%A9-1").json()
    VideoAnswer.model_validate(body)
    assert body["title"] == "𠮷itle \u200fكلب 👩\u200d👩\u200d👧" and body["metadata"] == metadata
    assert body["added_at"].endswith("Z") and body["codec"] == "h264" and body["partial"] is False


@pytest.fixture
def numbered(service: Service) -> Service:
    """The service with four videos, v0 to v3."""
    for number in range(4):
        add_video(service.catalog, f"v{number}", metadata={"number": number})
    return service


def problem(response: Any) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["type"].rpartition(":")[2]


@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_a_patch_merges_and_answers_the_video(numbered: Service, media_type: str) -> None:
    def patch(body: Any) -> Any:
        headers = {"Content-Type": media_type}
        return numbered.client.patch("/videos/v1", content=json.dumps(body), headers=headers)

    answer = patch({"title": "new", "metadata": {"a": {"b": 1}}}).json()
    assert (answer["title"], answer["metadata"]) == ("new", {"number": 1, "a": {"b": 1}})
    assert answer == numbered.client.get("/videos/v1").json()
    assert patch({"metadata": {"a": {"b": None}}}).json()["metadata"] == {"number": 1, "a": {}}
    assert patch({"title": None, "metadata": None}).json()["metadata"] == {}
    assert patch({}).json()["title"] is None
    for body in ({"id": "x"}, {"title": ""}, {"metadata": []}, {"metadata": 1}, []):
        assert problem(patch(body)) == (422, "invalid-request")


def test_what_a_patch_comes_to_is_held_to_the_limits(numbered: Service) -> None:
    big = {f"key {number}": "x" * 1000 for number in range(12)}
    assert numbered.client.patch("/videos/v1", json={"metadata": big}).status_code == 200
    more = {f"more {number}": "x" * 1000 for number in range(12)}
    assert problem(numbered.client.patch("/videos/v1", json={"metadata": more})) == (422, "invalid-request")
    assert len(numbered.client.get("/videos/v1").json()["metadata"]) == 13
    assert problem(numbered.client.patch("/videos/no", json={})) == (404, "video-not-found")
    refused = numbered.client.patch("/videos/v1", content="{}", headers={"Content-Type": "text/plain"})
    assert problem(refused) == (415, "unsupported-content-type")


def test_a_list_takes_a_filter(numbered: Service) -> None:
    chosen = json.dumps({"metadata.number": {"gte": 1}})
    first = numbered.client.get("/videos", params={"limit": 2, "filter": chosen}).json()
    assert [video["id"] for video in first["videos"]] == ["v3", "v2"]
    rest = numbered.client.get(
        "/videos", params={"limit": 2, "filter": chosen, "after": first["next"]}
    ).json()
    assert [video["id"] for video in rest["videos"]] == ["v1"] and rest["next"] is None


def test_a_video_may_be_deleted_so_that_its_content_does_not_come_back(service: Service) -> None:
    add_file(service, "private")
    assert service.client.delete("/videos/private?keep_out=true").status_code == 204
    (kept_out,) = service.catalog.kept_out.list_all()
    assert kept_out.video_id == "private"
    assert service.client.delete("/videos/private?keep_out=perhaps").status_code == 422


def test_a_video_says_since_when_its_file_is_missing(service: Service) -> None:
    add_file(service, "a")
    service.catalog.update_video("a", missing_since=0.0)
    assert service.client.get("/videos/a").json()["missing_since"] == "1970-01-01T00:00:00Z"
    found = service.client.get("/videos", params={"filter": '{"missing": true}'}).json()
    assert [video["id"] for video in found["videos"]] == ["a"]


def test_a_deleted_video_is_gone_with_its_uploaded_file_but_not_with_one_indexed_in_place(
    service: Service,
) -> None:
    in_place = add_file(service, "in-place")
    uploaded_id = "0" * 32
    uploaded = service.directory / "media" / f"{uploaded_id}.mp4"
    uploaded.write_bytes(MP4 + b"2")
    add_video(service.catalog, uploaded_id, MP4 + b"2")
    for id in ("in-place", uploaded_id):
        assert service.client.get(f"/videos/{id}/media").status_code == 200
        response = service.client.delete(f"/videos/{id}")
        assert response.status_code == 204 and response.content == b""
        for path in ("", "/media", "/thumbnail"):
            assert service.client.get(f"/videos/{id}{path}").status_code == 404
        assert service.client.delete(f"/videos/{id}").status_code == 404
    assert in_place.exists() and not uploaded.exists()


def test_a_file_whose_name_is_not_utf_8_is_served(service: Service) -> None:
    path = Path(os.fsdecode(os.fsencode(service.directory.parent) + b"/caf\xe9.mp4"))
    path.write_bytes(MP4)
    add_video(service.catalog, "a", MP4, uri=path.as_uri())
    answer = service.client.get("/videos/a/media", headers={"Range": "bytes=0-3"})
    assert (answer.status_code, answer.content) == (206, MP4[:4])
    assert service.client.get("/videos/a").json()["uri"].endswith("/caf%E9.mp4")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (MP4, "video/mp4"),
        (b"\x00\x00\x00\x14ftypqt  " + bytes(500), "video/quicktime"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm" + bytes(500), "video/webm"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x88matroska" + bytes(500), "video/x-matroska"),
        (b"RIFF\x00\x00\x00\x00AVI " + bytes(500), "video/x-msvideo"),
        ((b"\x47" + bytes(187)) * 4, "video/mp2t"),
        (b"<html><script>alert(1)</script>" + bytes(500), "application/octet-stream"),
    ],
)
def test_the_content_type_of_a_file_follows_its_bytes_not_its_name(
    service: Service, content: bytes, expected: str
) -> None:
    add_file(service, "a", content, ending="html")
    response = service.client.get("/videos/a/media")
    assert response.headers["content-type"] == expected and response.content == content
    assert response.headers["x-content-type-options"] == "nosniff"
    assert service.client.head("/videos/a/media").headers["content-length"] == str(len(content))


@pytest.mark.parametrize(
    ("wanted", "status", "first", "last"),
    [
        ("bytes=0-0", 206, 0, 0),
        ("bytes=0-1", 206, 0, 1),
        ("bytes=5-", 206, 5, None),
        ("bytes=-7", 206, len(MP4) - 7, None),
        ("bytes=-999999", 206, 0, None),
        ("bytes=3-999999", 206, 3, None),
        (f"bytes={len(MP4)}-", 416, None, None),
        ("bytes=99999999999999999-", 416, None, None),
        ("bytes=-0", 416, None, None),
        ("bytes=5-4", 200, None, None),
        ("bytes=a-b", 200, None, None),
        ("lines=1-2", 200, None, None),
        ("bytes=0-1,5-6", 200, None, None),
        ("bytes=", 200, None, None),
        ("bytes=" + "9" * 400 + "-", 200, None, None),
    ],
)
def test_ranges_are_answered_exactly_or_ignored(
    service: Service, wanted: str, status: int, first: int | None, last: int | None
) -> None:
    add_file(service, "a")
    response = service.client.get("/videos/a/media", headers={"Range": wanted})
    assert response.status_code == status
    if status == 200:
        assert response.content == MP4
    if status == 206:
        end = len(MP4) if last is None else last + 1
        assert response.content == MP4[first:end]
        assert response.headers["content-range"] == f"bytes {first}-{end - 1}/{len(MP4)}"
    if status == 416:
        assert response.headers["content-range"] == f"bytes */{len(MP4)}"
        assert response.json()["type"].endswith("range-not-satisfiable")


def test_a_file_that_is_no_longer_the_one_indexed_is_not_served(service: Service) -> None:
    path = add_file(service, "a")
    path.write_bytes(MP4 + b"more")
    assert service.client.get("/videos/a/media").json()["type"].endswith("media-not-found")
    path.unlink()
    assert service.client.get("/videos/a/media").status_code == 404
    path.mkdir()
    assert service.client.get("/videos/a/media").status_code == 404
    add_video(service.catalog, "elsewhere", uri="s3://bucket/a.mp4")
    add_video(service.catalog, "relative", uri="a.mp4")
    for id in ("elsewhere", "relative"):
        assert service.client.get(f"/videos/{id}/media").status_code == 404


def test_a_link_put_in_the_place_of_a_file_inside_an_allowed_root_is_not_followed_out_of_it(
    tmp_path: Path,
) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    secret.write_bytes(MP4)
    with running(tmp_path / "index", allowed_roots=(root,)) as service:
        path = root / "a.mp4"
        path.write_bytes(MP4)
        add_video(service.catalog, "a", MP4, uri=path.as_uri())
        assert service.client.get("/videos/a/media").status_code == 200
        path.unlink()
        path.symlink_to(secret)
        assert service.client.get("/videos/a/media").status_code == 404
        assert service.client.get("/videos/a/thumbnail").status_code == 404


def test_a_thumbnail_is_taken_once_and_forgotten_with_its_video(service: Service) -> None:
    path = add_file(service, "a")
    for _ in range(3):
        response = service.client.get("/videos/a/thumbnail?time_seconds=2.5&width=100")
        assert response.headers["content-type"] == "image/jpeg"
        assert response.content == b"a picture of " + path.name.encode()
    assert service.pictures == [(path, 2.5, 100)]
    service.client.get("/videos/a/thumbnail")
    assert service.pictures[1:] == [(path, 0.0, 320)]
    service.client.delete("/videos/a")
    add_video(service.catalog, "a", MP4, uri=str(path))
    service.client.get("/videos/a/thumbnail")
    assert len(service.pictures) == 3


def test_a_thumbnail_that_cannot_be_taken_is_a_404(service: Service) -> None:
    add_file(service, "a")
    service.picture_error = DecodeTimeoutError("decoding took longer than 10 seconds")
    response = service.client.get("/videos/a/thumbnail")
    assert response.status_code == 404 and response.json()["type"].endswith("media-not-found")


def test_thumbnails_beyond_the_bound_drop_the_least_recently_used(tmp_path: Path) -> None:
    with running(tmp_path / "index", thumbnail_cache_bytes=100) as service:
        path = add_file(service, "a")
        size = len(b"a picture of " + path.name.encode())
        num_kept = 100 // size
        for second in range(num_kept):
            service.client.get(f"/videos/a/thumbnail?time_seconds={second}")
        service.client.get("/videos/a/thumbnail?time_seconds=0")  # Used again: now the second is the oldest.
        service.client.get("/videos/a/thumbnail?time_seconds=99")
        service.client.get("/videos/a/thumbnail?time_seconds=0")
        assert len(service.pictures) == num_kept + 1
        service.client.get("/videos/a/thumbnail?time_seconds=1")
        assert len(service.pictures) == num_kept + 2


def test_jobs_are_listed_shown_and_cancelled_without_their_paths(service: Service) -> None:
    queue = service.job_queue
    jobs = [enqueue(queue, None, f"/secret/place/{number}", title=f"🐈 {number}") for number in range(3)]
    leased = queue.lease("a worker", 60)
    assert leased is not None
    queue.fail(leased.id, "the file is empty")
    page = service.client.get("/jobs?limit=2").json()
    assert [job["id"] for job in page["jobs"]] == [jobs[2].id, jobs[1].id]
    page = service.client.get(f"/jobs?limit=2&after={page['next']}").json()
    assert [job["id"] for job in page["jobs"]] == [jobs[0].id] and page["next"] is None
    failed: dict[str, Any] = service.client.get("/jobs?state=failed").json()["jobs"][0]
    JobAnswer.model_validate(failed)
    assert failed["reason"] == "the file is empty" and failed["title"] == "🐈 0"
    response = service.client.delete(f"/jobs/{jobs[1].id}")
    assert response.json()["state"] == "failed" and response.json()["reason"]
    assert service.client.delete(f"/jobs/{failed['id']}").json() == failed
    assert "secret" not in service.client.get("/jobs").text


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/?q=a%20dog", "text/html; charset=utf-8"),
        ("/docs", "text/html; charset=utf-8"),
        *((f"/page/{name}", kind) for name, kind in PARTS.items()),
    ],
)
def test_the_pages_parts_are_served_and_name_no_other_host(service: Service, path: str, kind: str) -> None:
    response = service.client.get(path)
    assert response.status_code == 200 and response.headers["content-type"] == kind
    text = response.text.replace("http://www.w3.org/2000/svg", "")
    assert "//" not in text.replace("// ", "") and "innerHTML" not in text and " style=" not in text
