"""The Idempotency-Key: a request that is sent again does nothing again and is answered as before."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from indexer.store.sqlite.catalog import Catalog
from service.app import create_app
from service.ingest.idempotency import parse_key, request_sha256
from service.ingest.media_store import sweep
from tests.support.servers.service_fakes import FakeSearcher, Service, add_video, running

KEY = '"8e03978e-40d5-43dd-bc93-6894a57f9324"'
DAY_SECONDS = 24 * 3600.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "allowed").mkdir()
    with running(
        tmp_path / "index", allowed_roots=(tmp_path / "allowed",), wait_limit_seconds=0.2
    ) as service:
        yield service


def send(
    service: Service | TestClient,
    content: bytes = b"bytes",
    key: str | None = KEY,
    query: str = "",
    **fields: str,
) -> Any:
    client = service.client if isinstance(service, Service) else service
    parts = {"file": ("a clip.mp4", content), **{name: (None, value) for name, value in fields.items()}}
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(f"/videos{query}", files=parts, headers=headers)


def uploads(service: Service) -> list[Path]:
    return list((service.directory / "uploads").iterdir())


def num_keys(service: Service) -> int:
    with service.catalog.connections.reading() as connection:
        return int(connection.execute("SELECT count(*) FROM idempotency_keys").fetchone()[0])


@contextlib.contextmanager
def another_server(service: Service) -> Iterator[TestClient]:
    """The server after a restart: another application on the same index."""
    with Catalog.open(service.directory) as catalog:
        searcher: Any = FakeSearcher(catalog)
        app = create_app(service.settings, searcher=searcher, take_picture=service.take_picture)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (KEY, KEY.strip('"')),
        ("8e03978e-40d5", "8e03978e-40d5"),
        ("x" * 255, "x" * 255),
        ('"' + "x" * 255 + '"', "x" * 255),
        (r'"a\"b\\c"', r'a"b\c'),
        ("!#$%&'*+,-./:;<=>?@[]^_`{|}~", "!#$%&'*+,-./:;<=>?@[]^_`{|}~"),
        ("x" * 256, None),
        ('"' + "x" * 256 + '"', None),
        ("", None),
        ('""', None),
        ('"', None),
        ('"abc', None),
        ('abc"', None),
        ('"a"b"', None),
        (r'"a\b"', None),
        (r"a\b", None),
        ("a b", None),
        ('"a b"', None),
        ("a\tb", None),
        ('"a"; v=1', None),
        ("a\x7f", None),
        ("schlüssel", None),
    ],
)
def test_a_key_is_a_quoted_or_bare_string_of_visible_characters(value: str, key: str | None) -> None:
    assert parse_key(value) == key


@pytest.mark.parametrize("value", ["", '""', "a b", '"a', "x" * 300, b"\xc3\xa9"])
def test_anything_else_is_refused_with_400_before_the_body_is_read(service: Service, value: Any) -> None:
    response = service.client.post(
        "/videos", files={"file": ("a.mp4", b"x")}, headers=[("Idempotency-Key", value)]
    )
    assert response.status_code == 400 and "Idempotency-Key" in response.json()["detail"]
    assert uploads(service) == [] and service.job_queue.list_jobs() == []


def test_two_keys_are_refused(service: Service) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    response = service.client.post("/videos", files={"file": ("a.mp4", b"x")}, headers=headers)
    assert response.status_code == 400


def test_the_same_request_again_is_answered_with_the_same_job_in_each_of_its_states(service: Service) -> None:
    first = send(service, title="A dog", metadata='{"a": 1, "b": 2}')
    assert first.status_code == 202

    def again() -> Any:
        response = send(service, key=KEY.strip('"'), title="A dog", metadata='{"b": 2, "a": 1}')
        assert response.json()["job"]["id"] == first.json()["job"]["id"]
        assert response.json()["video"] == first.json()["video"]
        assert len(service.job_queue.list_jobs()) == 1 and len(uploads(service)) == 1
        return response

    assert again().json() == first.json() and again().headers["location"] == first.headers["location"]
    job = service.job_queue.lease("worker", 60)
    assert job is not None
    assert again().json()["job"]["state"] == "running"
    add_video(service.catalog, job.video_id, b"bytes", finish_job=job.id)
    assert (again().status_code, again().json()["job"]["state"]) == (202, "done")
    waited = send(service, query="?wait=true", title="A dog", metadata='{"a": 1, "b": 2}')
    assert waited.status_code == 201 and waited.json()["job"]["id"] == job.id
    assert send(service, key=None).status_code == 200, "without the key the bytes are known"


def test_the_answer_is_the_same_after_a_restart(service: Service) -> None:
    first = send(service)
    with another_server(service) as client:
        again = send(client)
        assert (again.status_code, again.json()) == (202, first.json())
        assert send(client, b"other bytes").status_code == 422
    assert len(service.job_queue.list_jobs()) == 1 and len(uploads(service)) == 1


def test_a_job_that_failed_is_not_tried_again_under_its_key(service: Service) -> None:
    first = send(service)
    job = service.job_queue.lease("worker", 60)
    assert job is not None
    service.job_queue.fail(job.id, "a PNG image, not a video")
    again = send(service, query="?wait=true")
    assert again.status_code == 422 and again.json()["job"]["id"] == first.json()["job"]["id"]
    assert send(service, key="another").json()["job"]["state"] == "queued"


def test_bytes_that_were_known_are_answered_as_before_even_when_the_video_is_gone(service: Service) -> None:
    add_video(service.catalog, "old", b"bytes")
    first = send(service)
    assert (first.status_code, first.json()) == (200, {"job": None, "video": {"id": "old"}})
    service.catalog.delete_video("old")
    again = send(service)
    assert (again.status_code, again.json()) == (200, first.json()) and uploads(service) == []


@pytest.mark.parametrize(
    "change",
    [{"content": b"other"}, {"title": "B"}, {"metadata": '{"a": 2}'}, {"metadata": "{}"}, {"title": ""}],
)
def test_another_request_with_the_key_is_refused_and_leaves_nothing(
    service: Service, change: dict[str, Any]
) -> None:
    same: dict[str, Any] = {"content": b"bytes", "title": "A", "metadata": '{"a": 1}'}
    assert send(service, **same).status_code == 202
    response = send(service, **{**same, **change})
    assert response.status_code == 422 and response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert len(service.job_queue.list_jobs()) == 1 and len(uploads(service)) == 1
    assert send(service, **same).status_code == 202


def test_a_uri_has_a_key_too(service: Service) -> None:
    path = service.directory.parent / "allowed" / "a.mp4"
    path.write_bytes(b"bytes")

    def post(**body: Any) -> Any:
        return service.client.post("/videos", json=body, headers={"Idempotency-Key": KEY})

    first = post(uri=str(path), id="mine")
    assert first.status_code == 202
    assert post(id="mine", uri=path.as_uri()).json() == first.json(), "the same place, said otherwise"
    assert post(uri=str(path), id="yours").status_code == 422
    assert post(uri=str(path)).status_code == 422
    assert send(service, title="a").status_code == 422, "an upload of the same bytes is another request"
    path.write_bytes(b"other")
    assert post(uri=str(path), id="mine").status_code == 422
    assert len(service.job_queue.list_jobs()) == 1


def test_refused_requests_leave_their_key_free(service: Service) -> None:
    path = service.directory.parent / "allowed" / "a.mp4"
    path.write_bytes(b"in place")
    add_video(service.catalog, "taken", b"something else")
    body = {"uri": str(path), "id": "taken"}
    headers = {"Idempotency-Key": KEY}
    assert service.client.post("/videos", json=body, headers=headers).status_code == 409
    assert send(service, metadata="{").status_code == 422
    assert num_keys(service) == 0
    assert send(service).status_code == 202 and num_keys(service) == 1


def test_an_upload_that_is_cut_off_leaves_neither_file_nor_job_nor_key(service: Service) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + b"x" * 2_000_000
    messages = [{"type": "http.request", "body": head, "more_body": True}, {"type": "http.disconnect"}]
    num_files_meanwhile: list[int] = []

    async def receive() -> Any:
        num_files_meanwhile.append(len(uploads(service)))
        return messages.pop(0)

    async def send_nowhere(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/videos",
        "query_string": b"",
        "headers": [
            (b"content-type", b"multipart/form-data; boundary=b"),
            (b"idempotency-key", KEY.encode()),
        ],
    }
    assert service.client.portal is not None
    service.client.portal.call(service.app, scope, receive, send_nowhere)
    assert num_files_meanwhile[-1] == 1, "it had begun"
    assert uploads(service) == [] and service.job_queue.list_jobs() == [] and num_keys(service) == 0
    assert send(service).status_code == 202


def test_many_at_once_with_one_key_make_one_job(service: Service) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        same = [pool.submit(send, service, b"bytes") for _ in range(6)]
        other = [pool.submit(send, service, b"other") for _ in range(2)]
    statuses = {future.result().status_code for future in same}
    assert {statuses.pop(), other[0].result().status_code} == {202, 422} and not statuses
    assert len(service.job_queue.list_jobs()) == len(uploads(service)) == num_keys(service) == 1


def test_a_known_key_is_answered_although_the_queue_is_full(tmp_path: Path) -> None:
    with running(tmp_path / "index", max_queued_jobs=1) as service:
        first = send(service)
        assert send(service, b"other", key="other").status_code == 503
        assert send(service, b"other", key=None).status_code == 503
        assert send(service).json() == first.json()
        assert num_keys(service) == 1


def test_keys_are_kept_for_a_day_and_then_swept_up(service: Service) -> None:
    now = service.catalog.clock()
    first = send(service).json()["job"]["id"]
    service.catalog.clock = lambda: now + DAY_SECONDS - 1
    sweep(service.app.state.service.media_store, service.catalog, service.job_queue)
    assert send(service).json()["job"]["id"] == first
    service.catalog.clock = lambda: now + DAY_SECONDS + 60
    sweep(service.app.state.service.media_store, service.catalog, service.job_queue)
    assert num_keys(service) == 0
    again = send(service, b"other bytes")
    assert again.status_code == 202 and again.json()["job"]["id"] != first


def test_a_key_goes_with_its_job(service: Service) -> None:
    job_id = send(service).json()["job"]["id"]
    service.job_queue.cancel(job_id)
    assert service.job_queue.forget_ended(before=service.catalog.clock() + 1) == 1 and num_keys(service) == 0


def test_the_order_of_keys_does_not_make_another_request_but_every_value_does() -> None:
    same = request_sha256(metadata={"a": 1, "b": [1, 2]}, title=None)
    assert same == request_sha256(title=None, metadata={"b": [1, 2], "a": 1})
    others: list[Any] = [{"a": 1, "b": [2, 1]}, {"a": "1", "b": [1, 2]}, {"a": True, "b": [1, 2]}]
    assert same not in {request_sha256(metadata=other, title=None) for other in others}
    assert same != request_sha256(metadata={"a": 1, "b": [1, 2]}, title="None")


def test_the_header_is_in_the_openapi_document(service: Service) -> None:
    post = service.client.get("/openapi.json").json()["paths"]["/videos"]["post"]
    assert {parameter["name"] for parameter in post["parameters"]} == {"wait", "Idempotency-Key"}
