"""Changing over to another generation while serving: no search fails, none mixes, changes are never lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_fakes import FakeSearcher, add_video, make_catalog
from starlette.testclient import TestClient

from indexer.catalog import Catalog
from indexer.errors import FingerprintMismatchError
from indexer.generations import name_generation
from indexer.succession import Succession, write_succession
from service import app as application
from service import generation_watch
from service.app import create_app
from service.settings import ServiceSettings

OTHER = "e" * 64


def switch(index: Path, source: Catalog) -> Catalog:
    """Make a second generation with one more video the current one, by the steps of `indexer.reindexing`."""
    later = Catalog.create(
        index,
        fingerprint=OTHER,
        model_spec="none",
        embedding_dim=4,
        num_frames=2,
        sampling_json='{"num_frames": 2}',
        generation=2,
        successor_of=1,
    )
    for name in ("first", "second"):
        add_video(later, name)
    with source.connections.transaction() as connection:
        write_succession(connection, Succession(2, epoch=1))
    later.take_over(Succession(1, epoch=0))
    name_generation(index, 2)
    return later


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Loading gives a FakeSearcher of the current generation, or raises what is put here as `error`."""
    behaviour: dict[str, Any] = {"error": None, "searchers": []}

    def load_searcher(index: Path, *values: Any, **named: Any) -> FakeSearcher:
        if behaviour["error"] is not None:
            raise behaviour["error"]
        searcher = FakeSearcher(Catalog.open(index))
        behaviour["searchers"].append(searcher)
        return searcher

    monkeypatch.setattr(application, "load_searcher", load_searcher)
    monkeypatch.setattr(generation_watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(generation_watch, "RETRY_SECONDS", 0.02)
    return behaviour


@pytest.fixture
def client(tmp_path: Path, load: dict[str, Any]) -> Iterator[TestClient]:
    with make_catalog(tmp_path) as catalog:
        add_video(catalog, "first")
    settings = ServiceSettings(tmp_path, start_worker=False)
    app = create_app(
        settings, take_picture=lambda path, seconds, width: b"", make_clip=lambda path, seconds: b""
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fingerprint(client: TestClient) -> str:
    return str(client.get("/stats").json()["fingerprint"])


def test_searches_go_on_without_an_error_while_the_new_generation_takes_over(
    tmp_path: Path, client: TestClient, load: dict[str, Any]
) -> None:
    answers: list[tuple[int, int, int]] = []
    ended = threading.Event()

    def search() -> None:
        while not ended.is_set():
            answer = client.post("/search", json={"query": "a dog"})
            body = answer.json()
            answers.append((answer.status_code, body.get("num_videos"), len(body.get("results", ()))))

    thread = threading.Thread(target=search)
    thread.start()
    try:
        wait_until(lambda: len(answers) > 3)
        with Catalog.open(tmp_path) as source, switch(tmp_path, source):
            wait_until(lambda: fingerprint(client) == OTHER)
            seen = len(answers)
            wait_until(lambda: len(answers) > seen + 3)
    finally:
        ended.set()
        thread.join()
    assert {status for status, *_ in answers} == {200}
    assert {(total, shown) for _, total, shown in answers} == {(1, 1), (2, 2)}, "one generation at a time"
    assert client.get("/readyz").json()["status"] == "ok" and len(load["searchers"]) == 2


def test_a_generation_that_cannot_be_loaded_leaves_the_former_one_serving_reads(
    tmp_path: Path, client: TestClient, load: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    load["error"] = FingerprintMismatchError(expected="0" * 64, found=OTHER)
    with Catalog.open(tmp_path) as source, switch(tmp_path, source):
        wait_until(lambda: client.get("/readyz").json()["status"] == "outdated")
        assert client.post("/search", json={"query": "a dog"}).json()["num_videos"] == 1
        refused = client.delete("/videos/first")
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
        wait_until(lambda: OTHER in caplog.text and "0" * 64 in caplog.text)
        load["error"] = None
        wait_until(lambda: client.get("/readyz").json()["status"] == "ok")
        assert fingerprint(client) == OTHER
        assert client.delete("/videos/first").status_code == 204
