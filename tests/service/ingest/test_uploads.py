"""POST /videos: forms and uris, limits, the same bytes again, waiting."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import IndexFullError
from indexer.ingest.video_files import local_path
from indexer.store.job import Job
from service.ingest.media_store import STALE_UPLOAD_SECONDS, MediaStore, delete_orphans, resolve_uri
from service.ingest.upload import FORM_OVERHEAD_BYTES, title_from_filename
from tests.support.catalog_builders import enqueue
from tests.support.servers.service_fakes import Service, add_video, running

LIMIT_BYTES = 300_000


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "allowed").mkdir()
    with running(
        tmp_path / "index",
        upload_limit_bytes=LIMIT_BYTES,
        allowed_roots=(tmp_path / "allowed",),
        wait_limit_seconds=0.3,
    ) as service:
        yield service


def uploads(service: Service) -> list[Path]:
    return list((service.directory / "uploads").iterdir())


def upload(service: Service, content: bytes, query: str = "", **fields: str) -> Any:
    parts = {"file": ("a clip.mp4", content), **{name: (None, value) for name, value in fields.items()}}
    return service.client.post(f"/videos{query}", files=parts)


def test_an_upload_becomes_a_job_and_a_file_under_a_name_of_ours(service: Service) -> None:
    content = os.urandom(LIMIT_BYTES)
    response = upload(service, content, title="  \u200fكلب 🐕 𠮷 ", metadata='{"k": ["é", 1.5, null]}')
    assert response.status_code == 202
    body = response.json()
    assert response.headers["location"] == f"/jobs/{body['job']['id']}"
    assert body["job"]["state"] == "queued" and body["video"]["id"] == body["job"]["video_id"]
    assert service.client.get(response.headers["location"]).json() == body["job"]
    job = service.job_queue.get(body["job"]["id"])
    assert job.title == "  \u200fكلب 🐕 𠮷 " and job.metadata == {"k": ["é", 1.5, None]}
    assert job.content_sha256 == hashlib.sha256(content).hexdigest() and job.delete_source
    (path,) = uploads(service)
    assert Path(job.source_path) == path and path.read_bytes() == content and "clip" not in path.name


@pytest.mark.parametrize(
    ("filename", "title"),
    [
        ("dog.mp4", "dog"),
        ("../../etc/pass wd.tar.gz", "pass wd.tar"),
        ("C:\\videos\\katze 🐈.webm", "katze 🐈"),
        (".hidden", ".hidden"),
        ("a\x00b\x1b[31m\n.mp4", "ab[31m"),
        ("\u200f.mp4", None),
        ("", None),
        ("x" * 900 + ".mp4", "x" * 500),
    ],
)
def test_a_title_is_made_from_what_is_readable_of_the_filename(filename: str, title: str | None) -> None:
    assert title_from_filename(filename) == title


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"title": " "}, 422),
        ({"title": "x" * 501}, 422),
        ({"metadata": "{"}, 422),
        ({"metadata": "[]"}, 422),
        ({"metadata": '"a"'}, 422),
        ({"metadata": '{"a": NaN}'}, 422),
        ({"metadata": '{"a": 1e999}'}, 422),
        ({"metadata": '{"a": "\\ud800"}'}, 422),
        ({"metadata": '{"a": ' + "[" * 8 + "]" * 8 + "}"}, 422),
        ({"metadata": '{"a": "' + "x" * 16_400 + '"}'}, 422),
        ({"metadata": '{"a": 1}, "b": {}'}, 422),
        ({"metadata": "x" * 70_000}, 413),
        ({"id": "mine"}, 422),
    ],
)
def test_fields_outside_of_the_schema_are_refused_and_leave_no_file(
    service: Service, fields: dict[str, str], status: int
) -> None:
    response = upload(service, b"content", **fields)
    assert response.status_code == status, response.text
    assert uploads(service) == [] and service.job_queue.list_jobs() == []


def test_metadata_as_large_and_deep_as_allowed_is_taken(service: Service) -> None:
    deep = '{"a": ' + "[" * 7 + "]" * 7 + "}"
    assert upload(service, b"1", metadata=deep).status_code == 202
    large = '{"a":"' + "é" * ((16 * 1024 - 8) // 2) + '"}'
    assert upload(service, b"2", metadata=large).status_code == 202


def test_a_file_above_the_limit_is_refused_whether_announced_or_not(service: Service) -> None:
    content = b"x" * (LIMIT_BYTES + 1)
    assert upload(service, content).status_code == 413
    boundary = "b"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"\r\n\r\n'.encode()

    def endless() -> Iterator[bytes]:  # No Content-Length: sent in chunks.
        yield head
        for _ in range((LIMIT_BYTES + FORM_OVERHEAD_BYTES) // 1000 + 10):
            yield b"x" * 1000

    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    assert service.client.post("/videos", content=endless(), headers=kind).status_code == 413
    announced = {**kind, "Content-Length": str(10**15)}
    assert service.client.post("/videos", content=head, headers=announced).status_code == 413
    assert service.client.post("/videos", content=head, headers=kind).status_code == 400  # Cut off.
    assert uploads(service) == [] and service.job_queue.list_jobs() == []


def test_forms_that_are_not_well_formed_are_refused(service: Service) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n'
    for body, kind, status in [
        (part + b"--b--\r\n", "multipart/form-data", 400),
        (part + b"--b--\r\n", "multipart/form-data; boundary=" + "b" * 300, 400),
        (b"no form at all", "multipart/form-data; boundary=b", 400),
        (part, "multipart/form-data; boundary=b", 400),
        (part + part + b"--b--\r\n", "multipart/form-data; boundary=b", 422),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 422),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422),
        (b"", "multipart/form-data; boundary=b", 400),
    ]:
        response = service.client.post("/videos", content=body, headers={"Content-Type": kind})
        assert response.status_code == status, (body, response.text)
    assert uploads(service) == []


def test_an_upload_whose_client_goes_away_leaves_no_file_and_no_error(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []
    messages = [
        {"type": "http.request", "body": b"--b\r\nContent-Disposition: form-data; name", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/videos",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=b")],
    }
    assert service.client.portal is not None
    service.client.portal.call(service.app, scope, receive, send)
    assert sent[0]["status"] == 400 and uploads(service) == []
    assert not caplog.records


def test_the_same_bytes_again_answer_the_same_id_and_keep_no_second_file(service: Service) -> None:
    add_video(service.catalog, "old", b"bytes")
    for response in (upload(service, b"bytes"), upload(service, b"bytes", "?wait=true")):
        assert response.status_code == 200
        assert response.json() == {"job": None, "video": {"id": "old"}}
        assert response.headers["location"] == "/videos/old"
    first, second = upload(service, b"other"), upload(service, b"other")
    assert first.status_code == second.status_code == 202 and first.json() == second.json()
    assert len(uploads(service)) == 1


def test_a_request_with_an_id_that_is_sent_again_gets_the_same_job_and_then_the_same_video(
    service: Service,
) -> None:
    path = service.directory.parent / "allowed" / "a.mp4"
    path.write_bytes(b"bytes")
    body = {"uri": str(path), "id": "mine", "title": "A"}
    first = service.client.post("/videos", json=body)
    again = service.client.post("/videos", json=body)
    assert (first.status_code, again.status_code, again.json()) == (202, 202, first.json())
    job = service.job_queue.lease("worker", 60)
    assert job is not None
    add_video(service.catalog, "mine", b"bytes")
    service.job_queue.finish(job.id, "mine")
    again = service.client.post("/videos", json=body)
    assert (again.status_code, again.json()) == (200, {"job": None, "video": {"id": "mine"}})
    path.write_bytes(b"other bytes")
    assert service.client.post("/videos", json=body).status_code == 409


def test_more_jobs_than_may_wait_are_refused_before_their_body_is_read(tmp_path: Path) -> None:
    with running(tmp_path / "index", max_queued_jobs=2) as service:
        assert [upload(service, content).status_code for content in (b"1", b"2")] == [202, 202]

        async def receive() -> Any:
            pytest.fail("the body was read")

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"multipart/form-data; boundary=b"), (b"content-length", b"1000")]
        scope = {"type": "http", "method": "POST", "path": "/videos", "query_string": b"", "headers": headers}
        assert service.client.portal is not None
        service.client.portal.call(service.app, scope, receive, send)
        assert sent[0]["status"] == 503
        for response in (upload(service, b"3"), service.client.post("/videos", json={"uri": "/a"})):
            assert response.status_code == 503 and response.json()["type"].endswith(":overloaded")
            assert int(response.headers["retry-after"]) > 0
        assert len(uploads(service)) == 2
        assert service.client.get("/stats").status_code == 200
        assert service.job_queue.lease("worker", 60) is not None
        assert upload(service, b"3").status_code == 202


def test_of_many_concurrent_requests_no_more_get_in_than_may_wait(tmp_path: Path) -> None:
    with (
        running(tmp_path / "index", max_queued_jobs=3) as service,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        responses = list(pool.map(lambda number: upload(service, b"%d" % number), range(8)))
        assert sorted(response.status_code for response in responses) == [202] * 3 + [503] * 5
        assert len(uploads(service)) == service.job_queue.counts()["queued"] == 3


def test_the_same_bytes_from_many_concurrent_clients_make_one_job(service: Service) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda _: upload(service, b"the same"), range(6)))
    assert len({response.json()["job"]["id"] for response in responses}) == 1
    assert len(uploads(service)) == len(service.job_queue.list_jobs()) == 1


def test_a_cancelled_upload_that_waited_is_deleted_and_one_in_place_is_not(service: Service) -> None:
    path = service.directory.parent / "allowed" / "a.mp4"
    path.write_bytes(b"in place")
    answers = [upload(service, b"bytes"), service.client.post("/videos", json={"uri": str(path)})]
    for response in answers:
        assert service.client.delete(response.headers["location"]).json()["state"] == "failed"
    assert uploads(service) == [] and path.exists()
    assert upload(service, b"bytes").json()["job"]["state"] == "queued", "it may be sent again"


def test_a_disk_that_is_full_when_the_upload_is_closed_too_leaves_no_file(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    store = service.directory / "uploads"

    def open_full(path: Path, mode: str) -> Any:
        if path.parent == store:
            path.touch()
            return open("/dev/full", "wb")  # noqa: PTH123
        return really_open(path, mode)

    really_open = Path.open
    monkeypatch.setattr(Path, "open", open_full)
    response = upload(service, b"bytes")
    monkeypatch.undo()
    assert response.status_code == 507 and uploads(service) == []
    assert service.job_queue.list_jobs() == []


def test_a_catalog_without_room_for_the_job_answers_507_and_keeps_no_file(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_fields: Any) -> None:
        raise IndexFullError("the disk is full")

    monkeypatch.setattr("indexer.store.sqlite.jobs.JobQueue.admit", refuse)
    response = upload(service, b"bytes")
    assert response.status_code == 507 and uploads(service) == []


@contextlib.contextmanager
def working(service: Service, end: Callable[[Job], Any]) -> Iterator[None]:
    """A worker that takes one job and ends it with `end`."""

    def work() -> None:
        deadline = time.monotonic() + 5
        while (job := service.job_queue.lease("worker", 60)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        end(job)

    worker = threading.Thread(target=work)
    worker.start()
    yield
    worker.join()


def test_waiting_ends_with_201_when_the_video_is_there(service: Service) -> None:
    with working(service, lambda job: service.job_queue.finish(job.id, job.video_id)):
        response = upload(service, b"bytes", "?wait=true")
    assert response.status_code == 201 and response.json()["job"]["state"] == "done"
    assert response.headers["location"] == f"/videos/{response.json()['video']['id']}"


def test_waiting_for_a_job_that_fails_answers_its_reason(service: Service) -> None:
    with working(service, lambda job: service.job_queue.fail(job.id, "a PNG image, not a video")):
        response = upload(service, b"bytes", "?wait=true")
    assert response.status_code == 422
    problem = response.json()
    assert problem["detail"] == "a PNG image, not a video" and problem["job"]["state"] == "failed"


def test_waiting_is_bounded(service: Service) -> None:
    started = time.monotonic()
    response = upload(service, b"bytes", "?wait=true")
    assert response.status_code == 202 and response.json()["job"]["state"] == "queued"
    assert 0.3 <= time.monotonic() - started < 3


def test_a_uri_inside_an_allowed_root_becomes_a_job_that_leaves_the_file_alone(service: Service) -> None:
    path = service.directory.parent / "allowed" / "ein clip é.mp4"
    path.write_bytes(b"bytes")
    body = {"uri": str(path), "title": "🎬", "metadata": {"a": {"b": [1]}}, "id": "mein-clip-é"}
    response = service.client.post("/videos", json=body)
    assert response.status_code == 202 and response.json()["video"]["id"] == "mein-clip-é"
    job = service.job_queue.get(response.json()["job"]["id"])
    assert (job.source_path, job.uri, job.delete_source) == (str(path), path.as_uri(), False)
    assert job.metadata == {"a": {"b": [1]}}
    path.write_bytes(b"other bytes")
    again = service.client.post("/videos", json=body)
    assert again.status_code == 409
    without_id = service.client.post("/videos", json={"uri": path.as_uri()})
    assert without_id.status_code == 202 and without_id.json()["job"]["title"] == "ein clip é"


def test_a_uri_names_a_file_whose_name_is_not_utf_8_by_its_bytes(service: Service) -> None:
    folder = service.directory.parent / "allowed"
    Path(folder, os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"bytes")
    uri = f"{folder.as_uri()}/caf%E9.mp4"
    response = service.client.post("/videos", json={"uri": uri})
    assert response.status_code == 202 and response.json()["job"]["title"] == "caf\ufffd"
    job = service.job_queue.get(response.json()["job"]["id"])
    assert job.source_path == job.uri == uri
    assert local_path(job.source_path) == Path(folder, os.fsdecode(b"caf\xe9.mp4"))


@pytest.mark.parametrize("metadata", [{"a": "x\0"}, {"a\0": 1}, {"a": [{"b": "\0"}]}])
def test_metadata_with_a_zero_character_is_refused(service: Service, metadata: dict[str, Any]) -> None:
    answer = service.client.post("/videos", json={"uri": "/x.mp4", "metadata": metadata})
    assert answer.status_code == 422 and "U+0000" in answer.json()["detail"]


def test_a_uri_above_the_size_limit_is_refused(service: Service) -> None:
    path = service.directory.parent / "allowed" / "large.mp4"
    path.write_bytes(b"x" * (LIMIT_BYTES + 1))
    assert service.client.post("/videos", json={"uri": str(path)}).status_code == 413


def test_no_uri_leads_out_of_the_allowed_roots(tmp_path: Path) -> None:
    root, outside = tmp_path / "allowed", tmp_path / "allowed-not"
    root.mkdir()
    outside.mkdir()
    (root / "a.mp4").write_bytes(b"x")
    (outside / "b.mp4").write_bytes(b"x")
    (root / "link.mp4").symlink_to(outside / "b.mp4")
    (root / "folder").symlink_to(outside)
    (root / "good-link.mp4").symlink_to(root / "a.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    os.mkfifo(root / "pipe.mp4")
    allowed = [
        str(root / "a.mp4"),
        f"file://{root}/a.mp4",
        f"{root}/../allowed/a.mp4",
        str(root / "good-link.mp4"),
    ]
    for uri in allowed:
        assert resolve_uri(uri, [root]) == root / "a.mp4"
        assert resolve_uri(uri, []) is None
    for uri in [
        str(outside / "b.mp4"),
        str(root / "link.mp4"),
        str(root / "folder" / "b.mp4"),
        str(root / "loop.mp4"),
        str(root / "pipe.mp4"),
        str(root),
        str(root / "missing.mp4"),
        f"{root}/../allowed-not/b.mp4",
        f"file://{root}/%2e%2e/allowed-not/b.mp4",
        f"file://elsewhere{root}/a.mp4",
        f"file://{root}/a.mp4?x",
        f"http://localhost{root}/a.mp4",
        "a.mp4",
        "file:a.mp4",
        "file:///%00",
        f"{root}/a.mp4\0",
        f"{root}/" + "a" * 5000,
        "concat:/etc/passwd",
    ]:
        assert resolve_uri(uri, [root]) is None, uri


def test_files_that_crashes_left_are_deleted_and_no_others(service: Service) -> None:
    store = MediaStore(service.directory)
    old = time.time() - STALE_UPLOAD_SECONDS - 10
    names = {name: store.new_upload_path() for name in ("stale", "arriving", "waiting")}
    for path in names.values():
        path.write_bytes(b"x")
    os.utime(names["stale"], (old, old))
    os.utime(names["waiting"], (old, old))
    enqueue(service.job_queue, "2" * 32, str(names["waiting"]))
    names["ended"] = store.new_upload_path()
    names["ended"].write_bytes(b"x")
    ended = enqueue(service.job_queue, None, str(names["ended"]), delete_source=True)
    service.job_queue.cancel(ended.id)
    for number in "012":
        (store.media_directory / f"{number * 32}.mp4").write_bytes(b"x")
    add_video(service.catalog, "0" * 32)
    assert delete_orphans(store, service.catalog, service.job_queue) == 3
    assert not names["stale"].exists() and not names["ended"].exists()
    assert names["arriving"].exists() and names["waiting"].exists()
    assert sorted(path.stem[0] for path in store.media_directory.iterdir()) == ["0", "2"]
