"""How many searches run and wait, whose turn it is, and who is refused."""

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

from indexer.errors import SearchCancelledError
from indexer.store.cancellation import cancellable, raise_if_cancelled
from service.admission import SearchLimiter
from service.auth.access import CLIENT
from service.auth.keys import add_key
from service.errors import OverloadedError, TooManyRequestsError
from tests.service.routes.test_errors import check_problem
from tests.support.servers.server_process import wait_until
from tests.support.servers.service_fakes import Service, add_video, running


def has_inside(limiter: SearchLimiter, count: int) -> bool:
    return limiter.num_inside == count


@contextlib.contextmanager
def full_queue(
    directory: Path, *, headers: dict[str, str] | None = None, **settings: Any
) -> Iterator[Service]:
    """A service with one search that runs, until the end of the block, and one that waits behind it."""
    with running(directory, num_search_threads=1, max_waiting_searches=1, **settings) as service:
        add_video(service.catalog, "known")
        service.searcher.hold = threading.Event()
        limiter = service.app.state.service.search_limiter
        with ThreadPoolExecutor() as pool:
            try:
                searches = []
                for num_inside in (1, 2):
                    ask = partial(service.client.post, "/search", json={"query": "a dog"}, headers=headers)
                    searches.append(pool.submit(ask))
                    wait_until(partial(has_inside, limiter, num_inside), 10)
                yield service
            finally:
                service.searcher.hold.set()
            assert [search.result().status_code for search in searches] == [200, 200]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/search", {"query": "a dog"}),
        ("GET", "/videos/known/similar", None),
        ("POST", "/videos/known/texts", {"texts": ["a dog"]}),
    ],
)
def test_a_search_that_finds_the_queue_full_is_refused_immediately(
    method: str, path: str, body: Any, tmp_path: Path
) -> None:
    with full_queue(tmp_path) as service:
        response = service.client.request(method, path, json=body)
        assert check_problem(response, 503)["type"].endswith(":overloaded")
        assert response.headers["Retry-After"] == "1"
        assert 'xclip_searches_shed_total{problem="overloaded"} 1.0' in service.client.get("/metrics").text


def test_a_search_that_would_be_refused_is_not_read(tmp_path: Path) -> None:
    broken: Any = {"content": b"not JSON", "headers": {"content-type": "application/json"}}
    with full_queue(tmp_path) as service:
        response = service.client.post("/search", **broken)
        assert check_problem(response, 503)["type"].endswith(":overloaded")
        assert 'xclip_searches_shed_total{problem="overloaded"} 1.0' in service.client.get("/metrics").text
    with running(tmp_path / "other") as service:
        assert service.client.post("/search", **broken).status_code == 400


def test_a_full_queue_keeps_nothing_else_waiting(tmp_path: Path) -> None:
    with full_queue(tmp_path) as service:
        assert service.client.get("/videos/known").status_code == 200
        assert service.client.get("/search").status_code == 405
        assert service.client.get("/readyz").status_code == 200


def test_with_keys_only_those_who_may_search_learn_that_the_queue_is_full(tmp_path: Path) -> None:
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


def test_a_client_with_fewer_searches_waiting_is_still_admitted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = (
        {"Authorization": f"Bearer {add_key(path, name, 'read')}"} for name in ("first", "second")
    )
    settings = {"num_search_threads": 1, "max_waiting_searches": 2, "keys_file": path}
    with running(tmp_path / "index", **settings) as service, ThreadPoolExecutor() as pool:
        service.searcher.hold = threading.Event()
        limiter = service.app.state.service.search_limiter

        def ask(headers: dict[str, str]) -> Any:
            return pool.submit(service.client.post, "/search", json={"query": "a cat"}, headers=headers)

        waiting = []
        for num_inside in (1, 2, 3):
            waiting.append(ask(first))
            wait_until(partial(has_inside, limiter, num_inside), 10)
        newcomer = ask(second)
        assert check_problem(waiting[2].result(10), 429)["type"].endswith(":too-many-requests")
        service.searcher.hold.set()
        assert [search.result(10).status_code for search in (*waiting[:2], newcomer)] == [200] * 3


def test_a_request_that_had_a_turn_is_not_refused_its_next_one() -> None:
    async def main() -> None:
        limiter, go = SearchLimiter(1, 1), threading.Event()
        held = [asyncio.create_task(limiter.run(partial(go.wait, 10))) for _ in range(2)]
        while limiter.num_inside < 2:
            await asyncio.sleep(0.001)
        next_turn = asyncio.create_task(limiter.run(lambda: "answer", begun=True))
        await asyncio.sleep(0.01)
        assert limiter.num_waiting == 2
        with pytest.raises(OverloadedError):
            await limiter.run(lambda: "answer")
        go.set()
        assert await asyncio.gather(*held, next_turn) == [True, True, "answer"]

    asyncio.run(main())


# The queue of searches


class Searches:
    """Searches that end when they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = threading.Event()

    def __call__(self, name: str) -> Any:
        def search() -> str:
            self.begun.append(name)
            while not self.go.wait(0.005):
                raise_if_cancelled()
            return name

        return search


async def ask(limiter: SearchLimiter, searches: Searches, client: str, name: str) -> str:
    CLIENT.set(client)
    answer: str = await limiter.run(searches(name))
    return answer


def start(limiter: SearchLimiter, searches: Searches, *names: str) -> list[asyncio.Task[str]]:
    """One search for each name; its first letter is the client."""
    return [asyncio.create_task(ask(limiter, searches, name[0], name)) for name in names]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.002)


def test_clients_are_served_by_turns() -> None:
    async def main() -> list[str]:
        limiter, searches = SearchLimiter(1, 10), Searches()
        tasks = start(limiter, searches, "a0", "a1", "a2", "a3", "b1", "c1", "b2")
        await settle()
        assert (limiter.num_running, limiter.num_waiting) == (1, 6)
        searches.go.set()
        await asyncio.gather(*tasks)
        await settle()
        assert limiter.num_inside == 0
        return searches.begun

    assert asyncio.run(main()) == ["a0", "b1", "c1", "a1", "b2", "a2", "a3"]


def test_a_full_queue_sends_away_the_last_of_whoever_has_most() -> None:
    async def main() -> None:
        limiter, searches = SearchLimiter(1, 3), Searches()
        tasks = start(limiter, searches, "a0", "a1", "a2", "a3")
        await settle()
        with pytest.raises(OverloadedError):
            await ask(limiter, searches, "a", "a4")
        newcomer = start(limiter, searches, "b1")
        await settle()
        with pytest.raises(TooManyRequestsError):
            await tasks[3]
        with pytest.raises(TooManyRequestsError):
            await ask(limiter, searches, "a", "a5")
        searches.go.set()
        assert await asyncio.gather(*tasks[:3], *newcomer) == ["a0", "a1", "a2", "b1"]
        assert dict(limiter.num_shed) == {"overloaded": 1, "too-many-requests": 2}

    asyncio.run(main())


def test_a_cancelled_search_stops_and_holds_no_thread() -> None:
    async def main() -> None:
        limiter, searches = SearchLimiter(1, 3), Searches()
        (first,) = start(limiter, searches, "a0")
        await settle()
        waiting, next_one = start(limiter, searches, "a1", "b1")
        await settle()
        waiting.cancel()
        first.cancel()
        await settle()
        assert searches.begun == ["a0", "b1"] and limiter.num_waiting == 0
        searches.go.set()
        assert await next_one == "b1"
        for _ in range(200):
            if limiter.num_inside == 0:
                break
            await asyncio.sleep(0.01)
        assert limiter.num_inside == 0

    asyncio.run(main())


def prepared_search(limiter: SearchLimiter, prepared: list[str], name: str) -> asyncio.Task[Any]:
    """Its answer is the name, and what it was given of what was prepared."""

    def prepare() -> str:
        prepared.append(name)
        return f"prepared {name}"

    def search(*given: str) -> tuple[str, ...]:
        return (name, *given)

    return asyncio.create_task(limiter.run(search, prepare=prepare))


def test_what_a_search_that_waits_prepares_is_given_to_it() -> None:
    async def main() -> None:
        limiter, searches = SearchLimiter(1, 10), Searches()
        (running,) = start(limiter, searches, "a0")
        await settle()
        prepared: list[str] = []
        waiting = [prepared_search(limiter, prepared, name) for name in ("b", "c")]
        await settle()
        assert sorted(prepared) == ["b", "c"] and (limiter.num_running, limiter.num_waiting) == (1, 2)
        searches.go.set()
        assert await asyncio.gather(*waiting) == [("b", "prepared b"), ("c", "prepared c")]
        await running

    asyncio.run(main())


def test_a_search_that_finds_a_free_thread_prepares_nothing_in_another_one() -> None:
    async def main() -> None:
        limiter = SearchLimiter(1, 10)
        prepared: list[str] = []
        for name in "ab":
            assert await prepared_search(limiter, prepared, name) == (name,)
            await settle()
        assert prepared == []

    asyncio.run(main())


def test_an_error_while_a_search_prepares_is_its_own_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        limiter, searches = SearchLimiter(1, 10), Searches()
        (running,) = start(limiter, searches, "a0")
        await settle()

        def fail() -> None:
            raise ValueError("cannot be encoded")

        with pytest.raises(ValueError, match="cannot be encoded"):
            await limiter.run(lambda: "never", prepare=fail)
        assert limiter.num_inside == 1
        searches.go.set()
        assert await running == "a0"

    asyncio.run(main())


def test_a_search_that_is_cancelled_or_sent_away_while_it_prepares_is_told_to_stop() -> None:
    async def main() -> None:
        limiter, searches = SearchLimiter(1, 3), Searches()
        stopped = threading.Semaphore(0)

        def prepare() -> None:
            try:
                while not searches.go.wait(0.005):
                    raise_if_cancelled()
            except SearchCancelledError:
                stopped.release()
                raise

        (running,) = start(limiter, searches, "a0")
        await settle()
        CLIENT.set("a")
        waiting = [asyncio.create_task(limiter.run(lambda *given: "done", prepare=prepare)) for _ in range(3)]
        await settle()
        waiting[0].cancel()
        await settle()
        again, newcomer = start(limiter, searches, "a4", "b1")  # The queue is full: one of a has to go.
        await settle()
        assert [
            type(task.exception()) for task in (*waiting, again) if task.done() and not task.cancelled()
        ] == [TooManyRequestsError]
        assert stopped.acquire(timeout=10)
        searches.go.set()
        await asyncio.gather(running, newcomer, *waiting, again, return_exceptions=True)
        await settle()
        assert limiter.num_inside == 0

    asyncio.run(main())


def test_thousands_that_disconnect_together_hold_no_thread() -> None:
    async def main() -> None:
        limiter, searches = SearchLimiter(1, 3000), Searches()
        tasks = start(limiter, searches, "a0", *("b" for _ in range(2500)))
        await settle()
        assert limiter.num_inside == 2501
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        searches.go.set()
        (last,) = start(limiter, searches, "c0")
        assert await last == "c0"

    asyncio.run(main())


def test_a_search_that_does_not_stop_keeps_its_thread_until_it_ends() -> None:
    async def main() -> None:
        limiter, go = SearchLimiter(1, 3), threading.Event()
        begun: list[int] = []

        def deaf(number: int) -> Any:
            def search() -> None:
                begun.append(number)
                go.wait(10)

            return search

        for number in range(3):
            task = asyncio.create_task(limiter.run(deaf(number)))
            await settle()
            task.cancel()
            await settle()
        assert begun == [0] and limiter.num_waiting == 0
        go.set()
        for _ in range(200):
            if limiter.num_inside == 0:
                break
            await asyncio.sleep(0.01)
        assert limiter.num_inside == 0 and begun == [0]

    asyncio.run(main())


def test_stopping_happens_only_where_somebody_said_so() -> None:
    raise_if_cancelled()
    event = threading.Event()
    with cancellable(event):
        raise_if_cancelled()
        event.set()
        with pytest.raises(SearchCancelledError):
            raise_if_cancelled()
    raise_if_cancelled()


def test_a_search_past_its_deadline_is_a_504_and_the_next_one_is_answered(tmp_path: Path) -> None:
    with running(tmp_path, request_timeout_seconds=0.3, num_search_threads=1) as service:
        service.searcher.hold = threading.Event()
        response = service.client.post("/search", json={"query": "x"})
        assert response.status_code == 504 and response.json()["type"].endswith("deadline-exceeded")
        service.searcher.hold.set()
        service.searcher.hold = None
        assert service.client.post("/search", json={"query": "x"}).status_code == 200
