"""The service while its database is away: a problem within two seconds, and no restart afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from indexer.ingest.encoding import index_facts
from indexer.media.sampling import Sampling
from indexer.store.store import create_store
from model import XClip
from service.app import create_app
from service.settings import Settings
from tests.support.postgres import AWAY, PostgresServer
from tests.support.servers.service_fakes import NO_DECODERS
from tests.support.small_searchers import fill

LIMIT_SECONDS = 2.0


@contextlib.contextmanager
def serving(own_postgres: PostgresServer, model_directory: Path, **settings: Any) -> Iterator[TestClient]:
    """A service of nine videos, ready."""
    model = XClip.load(str(model_directory))
    facts = index_facts(model, str(model_directory), Sampling(num_frames=8))
    address = own_postgres.address()
    with create_store(address, facts) as store:
        fill(store, range(9))  # type: ignore[arg-type]
    app = create_app(
        Settings(index=address, start_worker=False, warm_up=False, **settings), decoders=NO_DECODERS
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        yield client


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def search(client: TestClient) -> httpx.Response:
    return client.post("/search", json={"query": "a dog", "limit": 5})


def in_time(request: Callable[[], httpx.Response]) -> httpx.Response:
    started = time.monotonic()
    answer = request()
    assert time.monotonic() - started < LIMIT_SECONDS
    return answer


@pytest.mark.parametrize("way", AWAY)
def test_what_needs_the_database_is_answered_503_in_time_and_goes_on_without_a_restart(
    own_postgres: PostgresServer, model_directory: Path, way: str
) -> None:
    leave, come_back = AWAY[way]
    with serving(own_postgres, model_directory) as client:
        before = [result["id"] for result in search(client).json()["results"]]
        leave(own_postgres)
        try:
            requests: list[Callable[[], httpx.Response]] = [
                lambda: search(client),
                lambda: client.get("/videos"),
                lambda: client.delete("/videos/video-1"),
                lambda: client.get("/videos/video-1/similar"),
                lambda: client.get("/readyz"),
            ]
            for request in requests:
                answer = in_time(request)
                assert answer.status_code == 503
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["type"].endswith(":index-unavailable")
                assert int(answer.headers["Retry-After"]) > 0
            assert in_time(lambda: client.get("/healthz")).status_code == 200, "the process lives"
            figures = in_time(lambda: client.get("/metrics"))
            assert figures.status_code == 200 and "xclip_index_available 0.0" in figures.text
        finally:
            come_back(own_postgres)
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert [result["id"] for result in search(client).json()["results"]] == before
        assert client.delete("/videos/video-1").status_code == 204


@pytest.mark.parametrize("way", AWAY)
def test_searches_are_answered_from_memory_where_the_setting_allows_it_and_say_so(
    own_postgres: PostgresServer, model_directory: Path, way: str
) -> None:
    leave, come_back = AWAY[way]
    with serving(own_postgres, model_directory, stale_reads_seconds=600) as client:
        before = search(client)
        service = client.app.state.service  # type: ignore[attr-defined]
        service.searcher._refresher.wait()
        leave(own_postgres)
        try:
            answer = in_time(lambda: search(client))
            assert answer.status_code == 200 and int(answer.headers["X-Index-Stale-Seconds"]) >= 0
            assert [r["id"] for r in answer.json()["results"]] == [r["id"] for r in before.json()["results"]]
            assert any("has not answered" in warning for warning in answer.json()["warnings"])
            several = client.post("/search", json={"queries": ["a dog", "a cat"], "limit": 5})
            assert several.status_code == 200 and "X-Index-Stale-Seconds" in several.headers
            assert in_time(lambda: client.get("/readyz")).json() == {"status": "stale"}
            assert in_time(lambda: client.get("/videos")).status_code == 503
        finally:
            come_back(own_postgres)
        wait_for(lambda: client.get("/readyz").json() == {"status": "ok"})
        again = search(client)
        assert "X-Index-Stale-Seconds" not in again.headers and not again.json()["warnings"]
        assert "X-Index-Stale-Seconds" not in before.headers
