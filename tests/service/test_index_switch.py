"""Changing over to another generation while serving: no search fails, none mixes, changes are never lost."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from indexer.errors import FingerprintMismatchError, IndexBusyError, IndexSupersededError, MediaError
from indexer.store.records import IndexFacts, NewVideo
from indexer.store.store import create_store, generations_of, open_store
from service import app as application
from service import index_switch as generation_watch
from service.app import create_app
from service.ingest.media_store import MediaStore
from service.ingest.worker import Worker
from service.settings import Settings
from tests.faults.dying_worker import read_by_rote
from tests.support.catalog_builders import enqueue
from tests.support.servers.service_fakes import NO_DECODERS, FakeSearcher, add_video
from tests.support.stores import StoreFactory

OTHER = "e" * 64


FACTS = IndexFacts(
    fingerprint="f" * 64,
    model_spec="none",
    embedding_dim=4,
    num_frames=2,
    sampling_json='{"num_frames": 2}',
)


def switch(index: Path | str, source: Any) -> Any:
    """Make a second generation with one more video the current one, by the steps of
    `indexer.maintenance.reindexing`."""
    generations = generations_of(index)
    later = generations.create(replace(FACTS, fingerprint=OTHER), successor_of=1)
    for name in ("first", "second"):
        add_video(later, name)
    with source.transaction() as transaction:
        source.carry_over(later, transaction)
        source.hand_over(later, transaction)
    generations.open_current().close()
    return later


@pytest.fixture
def index(store_factory: StoreFactory) -> Path | str:
    """Where no index is yet."""
    return store_factory.address()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Loading gives a FakeSearcher of the current generation, or raises what is put here as `error`."""
    behaviour: dict[str, Any] = {"error": None, "searchers": []}

    def load_searcher(settings: Settings) -> FakeSearcher:
        if behaviour["error"] is not None:
            raise behaviour["error"]
        searcher = FakeSearcher(open_store(settings.index_address))
        behaviour["searchers"].append(searcher)
        return searcher

    monkeypatch.setattr(application, "load_searcher", load_searcher)
    monkeypatch.setattr(generation_watch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(generation_watch, "RETRY_SECONDS", 0.02)
    return behaviour


@pytest.fixture
def client(index: Path | str, load: dict[str, Any]) -> Iterator[TestClient]:
    with create_store(index, FACTS) as catalog:
        add_video(catalog, "first")
    settings = Settings(index=index, start_worker=False)
    app = create_app(settings, decoders=NO_DECODERS)
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
    index: Path | str, client: TestClient, load: dict[str, Any]
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
        with open_store(index) as source, switch(index, source):
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
    index: Path | str, client: TestClient, load: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    load["error"] = FingerprintMismatchError(expected="0" * 64, found=OTHER)
    with open_store(index) as source, switch(index, source):
        wait_until(lambda: client.get("/readyz").json()["status"] == "outdated")
        assert client.post("/search", json={"query": "a dog"}).json()["num_videos"] == 1
        refused = client.delete("/videos/first")
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
        wait_until(lambda: OTHER in caplog.text and "0" * 64 in caplog.text)
        load["error"] = None
        wait_until(lambda: client.get("/readyz").json()["status"] == "ok")
        assert fingerprint(client) == OTHER
        assert client.delete("/videos/first").status_code == 204


def test_a_poll_that_fails_for_any_reason_is_not_the_last_one(
    index: Path | str,
    client: TestClient,
    load: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [sqlite3.OperationalError("out of memory"), IndexBusyError("somebody writes")]
    look = generation_watch._read_successor

    def fail_first(service: Any) -> Any:
        if errors:
            raise errors.pop()
        return look(service)

    monkeypatch.setattr(generation_watch, "_read_successor", fail_first)
    wait_until(lambda: not errors and "out of memory" in caplog.text)
    with open_store(index) as source, switch(index, source):
        wait_until(lambda: fingerprint(client) == OTHER)


def test_a_page_begun_before_the_switch_is_refused_after_it_and_new_ones_go_on(
    index: Path | str, client: TestClient, load: dict[str, Any]
) -> None:
    with open_store(index) as source:
        add_video(source, "second")
        old = client.get("/videos", params={"limit": 1}).json()["next"]
        assert [v["id"] for v in client.get("/videos", params={"after": old}).json()["videos"]] == ["first"]
        with switch(index, source):
            wait_until(lambda: fingerprint(client) == OTHER)
            refused = client.get("/videos", params={"limit": 1, "after": old})
            assert (refused.status_code, refused.json()["type"].split(":")[-1]) == (422, "invalid-cursor")
            found: list[str] = []
            after: int | None = None
            while not found or after is not None:
                given = {} if after is None else {"after": after}
                page = client.get("/videos", params={"limit": 1, **given}).json()
                found += [video["id"] for video in page["videos"]]
                after = page["next"]
            assert found == ["second", "first"]
            assert client.get("/videos", params={"after": 2**63 - 1}).status_code == 422


@pytest.mark.parametrize("fails", [False, True], ids=["it can be read", "it cannot be read the first time"])
def test_a_worker_leaves_a_superseded_generation_and_the_job_under_way_is_done_in_the_next(
    index: Path | str, fails: bool
) -> None:
    content = b"\x00\x00\x00\x18ftypmp42" + bytes(1000)
    settings = Settings(index=index, poll_seconds=0.01)
    store = MediaStore(settings.index_directory)
    store.prepare()
    stop = threading.Event()
    with create_store(index, FACTS) as former:
        path = store.new_upload_path()
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        job = enqueue(former.jobs, None, str(path), content_sha256=sha256, delete_source=True)
        later: list[Any] = []

        def read(path: Path, cancelled: threading.Event) -> NewVideo:
            later.append(switch(index, former))
            if fails:
                raise MediaError("this reason must reach no client")
            return read_by_rote(path)

        with pytest.raises(IndexSupersededError):
            Worker(settings, former, store, read).run(stop)
        assert path.exists() and former.num_videos == 0
        waiting = later[0].jobs.get(job.id)
        assert (waiting.state, waiting.attempts, waiting.lease_expires_at) == ("queued", 1, None)
        with pytest.raises(IndexSupersededError):  # An idle one learns of it too.
            Worker(settings, former, store, read_by_rote).run(stop)

    def stop_at_the_end() -> None:
        wait_until(lambda: later[0].jobs.get(job.id).ended)
        stop.set()

    thread = threading.Thread(target=stop_at_the_end)
    thread.start()
    Worker(settings, later[0], store, read_by_rote).run(stop)
    thread.join()
    assert later[0].jobs.get(job.id).state == "done"
    assert store.locate(later[0].get_video(job.video_id)) is not None
    later[0].close()


def test_a_server_that_ends_waits_for_its_worker_to_end_its_job(
    tmp_path: Path, load: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(tmp_path / "index", FACTS).close()
    program = f"""
import pathlib, signal, sys, time
folder = pathlib.Path({str(tmp_path)!r})
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), (folder / "ended").touch(), sys.exit(0)))
(folder / "ready").touch()
time.sleep(60)
"""
    monkeypatch.setattr(application, "worker_command", lambda settings: [sys.executable, "-c", program])
    app = create_app(
        Settings(index=tmp_path / "index"),
        decoders=NO_DECODERS,
    )
    with TestClient(app) as client:
        wait_until((tmp_path / "ready").exists)
        assert client.portal is not None
        client.portal.call(app.state.drain.begin)
        time.sleep(0.2)  # All requests are answered long before the worker has ended.
    assert (tmp_path / "ended").exists()
