"""Searches that find the queue full: refused at once, whatever is in them; and nobody else is."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.admission import SearchGate
from service.auth.keys import add_key
from service.errors import OverloadedError
from service.http.shedding import SEARCHES
from tests.service.routes.test_errors import check_problem
from tests.support.servers.server_process import wait_until
from tests.support.servers.service_fakes import Service, add_video, running


def has_inside(gate: SearchGate, count: int) -> bool:
    return gate.num_inside == count


@contextlib.contextmanager
def full_queue(
    directory: Path, *, headers: dict[str, str] | None = None, **settings: Any
) -> Iterator[Service]:
    """A service with one search that runs, until the end of the block, and one that waits behind it."""
    with running(directory, num_search_threads=1, max_waiting_searches=1, **settings) as service:
        add_video(service.catalog, "known")
        service.searcher.hold = threading.Event()
        gate = service.app.state.service.search_gate
        with ThreadPoolExecutor() as pool:
            try:
                searches = []
                for num_inside in (1, 2):
                    ask = partial(service.client.post, "/search", json={"query": "a dog"}, headers=headers)
                    searches.append(pool.submit(ask))
                    wait_until(partial(has_inside, gate, num_inside), 10)
                yield service
            finally:
                service.searcher.hold.set()
            assert [search.result().status_code for search in searches] == [200, 200]


@pytest.mark.parametrize("template", SEARCHES)
def test_a_search_that_finds_the_queue_full_is_refused_before_it_is_read(
    template: str, tmp_path: Path
) -> None:
    method = SEARCHES[template][0]
    with full_queue(tmp_path) as service:
        path = template.format(video_id="known")
        response = service.client.request(method, path, content=b"no JSON")
        assert check_problem(response, 503)["type"].endswith(":overloaded")
        assert response.headers["Retry-After"] == "1"
        assert response.headers["X-Request-ID"] and response.headers["X-Content-Type-Options"] == "nosniff"
        metrics = service.client.get("/metrics").text
        assert (
            f'xclip_http_requests_total{{method="{method}",route="{template}",status="503"}} 1.0' in metrics
        )
        assert 'xclip_searches_shed_total{problem="overloaded"} 1.0' in metrics


def test_every_endpoint_that_waits_for_a_search_thread_is_refused_early() -> None:
    """Those whose code goes through the gate are those of the list."""
    routes = Path(__file__).resolve().parents[2] / "service" / "routes"
    through_the_gate = [
        path.stem for path in sorted(routes.glob("*.py")) if "search_gate.run(" in path.read_text()
    ]
    assert through_the_gate == sorted(template.rpartition("/")[2] for template in SEARCHES)


def test_a_full_queue_keeps_nothing_else_waiting(tmp_path: Path) -> None:
    with full_queue(tmp_path) as service:
        assert service.client.get("/videos/known").status_code == 200
        assert service.client.get("/search").status_code == 405
        assert service.client.get("/readyz").status_code == 200


def test_with_keys_only_those_who_may_search_are_told_that_the_queue_is_full(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = (
        {"Authorization": f"Bearer {add_key(path, name, 'read')}"} for name in ("first", "second")
    )
    with full_queue(tmp_path / "index", headers=first, keys_file=path) as service:

        def ask(headers: dict[str, str]) -> Any:
            return service.client.post("/search", json={"query": "a cat"}, headers=headers)

        assert check_problem(ask({}), 401)["type"].endswith(":unauthorized")
        assert check_problem(ask({"Authorization": "Bearer wrong"}), 401)["type"].endswith(":unauthorized")
        assert service.app.state.access.num_wrong_keys == 1
        assert check_problem(ask(first), 503)["type"].endswith(":overloaded")
        assert check_problem(ask(second), 503)["type"].endswith(":overloaded")


def test_a_client_with_fewer_searches_waiting_still_gets_a_place(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = (
        {"Authorization": f"Bearer {add_key(path, name, 'read')}"} for name in ("first", "second")
    )
    settings = {"num_search_threads": 1, "max_waiting_searches": 2, "keys_file": path}
    with running(tmp_path / "index", **settings) as service, ThreadPoolExecutor() as pool:
        service.searcher.hold = threading.Event()
        gate = service.app.state.service.search_gate

        def ask(headers: dict[str, str]) -> Any:
            return pool.submit(service.client.post, "/search", json={"query": "a cat"}, headers=headers)

        waiting = []
        for num_inside in (1, 2, 3):
            waiting.append(ask(first))
            wait_until(partial(has_inside, gate, num_inside), 10)
        newcomer = ask(second)
        assert check_problem(waiting[2].result(10), 429)["type"].endswith(":too-many-requests")
        service.searcher.hold.set()
        assert [search.result(10).status_code for search in (*waiting[:2], newcomer)] == [200] * 3


def test_a_request_that_had_a_turn_is_not_refused_its_next_one() -> None:
    async def main() -> None:
        gate, go = SearchGate(1, 1), threading.Event()
        held = [asyncio.create_task(gate.run(partial(go.wait, 10))) for _ in range(2)]
        while not gate.is_full:
            await asyncio.sleep(0.001)
        next_turn = asyncio.create_task(gate.run(lambda: "answer", begun=True))
        await asyncio.sleep(0.01)
        assert gate.num_waiting == 2
        with pytest.raises(OverloadedError):
            await gate.run(lambda: "answer")
        go.set()
        assert await asyncio.gather(*held, next_turn) == [True, True, "answer"]

    asyncio.run(main())
