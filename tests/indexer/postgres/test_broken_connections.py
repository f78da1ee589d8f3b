"""A network between store and database that drops, cuts and delays: what a relay in between can do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import IndexUnavailableError
from indexer.ingest.encoding import index_fingerprint
from indexer.search.searcher import Searcher, SearchQuery
from indexer.store.job import NewJob
from indexer.store.postgres.catalog import PostgresCatalog
from indexer.store.store import open_store
from tests.support.catalog_builders import add_and_finish, add_video, make_segment, new_video, sha256_of
from tests.support.postgres import PostgresServer
from tests.support.small_searchers import D, F, fill, tiny_model
from tests.support.stores import StoreFactory

pytestmark = pytest.mark.store("postgres")
LIMIT_SECONDS = 1.5
QUERY = SearchQuery("a dog runs", limit=5)


class Relay:
    """Forwards TCP connections to the Unix socket of a server, as long as it shall.

    is_dropping: nothing comes through, neither way; new connections are accepted, and hear nothing.
    num_dropped_alone: so many connections, the first ones, hear nothing more; others are as ever.
    delay_seconds: of all that is forwarded, each way.
    bytes_until_cut: of answers; then all connections are reset. None: never.
    loses_commits: what says COMMIT comes through, and its connection is reset instead of an answer.
    num_round_trips: how often something was asked after an answer, or at first.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self.is_dropping = False
        self.num_dropped_alone = 0
        self.delay_seconds = 0.0
        self.bytes_until_cut: int | None = None
        self.loses_commits = False
        self.num_lost_commits = 0
        self.num_round_trips = 0
        self._is_answered = True
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._num_connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._target))
                number = self._num_connections
                self._num_connections += 1
                with self._lock:
                    self._sockets += [client, server]
                lost = threading.Event()
                for work in (self._ask, self._answer):
                    threading.Thread(target=work, args=(client, server, number, lost), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, number: int, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                self._hold(number)
                self.num_round_trips += self._is_answered
                self._is_answered = False
                if self.loses_commits and b"COMMIT" in data:
                    self.num_lost_commits += 1
                    lost.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(
        self, client: socket.socket, server: socket.socket, number: int, lost: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                self._hold(number)
                self._is_answered = True
                if lost.is_set():
                    time.sleep(0.3)  # It has been made by now.
                    reset(client)
                    return
                if self.bytes_until_cut is not None:
                    client.sendall(data[: self.bytes_until_cut])
                    self.bytes_until_cut -= len(data)
                    if self.bytes_until_cut <= 0:
                        self.bytes_until_cut = None
                        self.cut()
                        return
                else:
                    client.sendall(data)
        with contextlib.suppress(OSError):
            client.close()

    def _hold(self, number: int) -> None:
        time.sleep(self.delay_seconds)
        while self.is_dropping or number < self.num_dropped_alone:
            time.sleep(0.01)

    def drop_open_connections(self) -> None:
        """From now on, as where a firewall has forgotten them."""
        self.num_dropped_alone = self._num_connections

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for one in sockets:
            reset(one)

    def close(self) -> None:
        self._listening.close()
        self.is_dropping, self.num_dropped_alone = False, 0
        self.cut()


def reset(one: socket.socket) -> None:
    """Close a connection without a farewell: the other side gets RST."""
    with contextlib.suppress(OSError):
        if one.family == socket.AF_INET:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RD)
    one.close()


@pytest.fixture
def relay(postgres: PostgresServer) -> Iterator[Relay]:
    made = Relay(postgres.folder / ".s.PGSQL.5432")
    yield made
    made.close()


@pytest.fixture
def address(postgres: PostgresServer, relay: Relay, tmp_path: Path) -> str:
    """Of an index behind the relay that is not there yet."""
    direct = postgres.address(folder=tmp_path)
    return direct.replace("@/", f"@127.0.0.1:{relay.port}/").replace(f"host={postgres.folder}&", "")


@pytest.fixture
def catalog(address: str, tmp_path: Path) -> Iterator[PostgresCatalog]:
    factory = StoreFactory("postgres", tmp_path, lambda: address)
    fingerprint = index_fingerprint(tiny_model(), "{}")
    made: PostgresCatalog = factory.create(embedding_dim=D, num_frames=F, fingerprint=fingerprint)
    made.silence_limit_seconds = LIMIT_SECONDS
    yield made
    factory.close()


@pytest.fixture
def searcher(catalog: PostgresCatalog) -> Iterator[Searcher]:
    fill(catalog, range(30))  # type: ignore[arg-type]
    with Searcher(str(catalog.address), tiny_model(), feature_file=False) as searcher:
        searcher.catalog.silence_limit_seconds = LIMIT_SECONDS
        searcher.prepare()
        searcher._refresher.wait()
        yield searcher


def results_of(searcher: Searcher) -> list[Any]:
    return [replace(result, percentile=None, match=None) for result in searcher.search(QUERY).results]


def seconds_until_unavailable(call: Callable[[], object]) -> float:
    started = time.monotonic()
    with pytest.raises(IndexUnavailableError):
        call()
    return time.monotonic() - started


def until_it_works(call: Callable[[], Any], seconds: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except IndexUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def segments(number: int) -> list[Any]:
    return [make_segment(np.random.default_rng(number), D, F)]


def test_where_packets_are_dropped_a_search_is_refused_within_two_seconds_and_works_again_by_itself(
    relay: Relay, searcher: Searcher
) -> None:
    expected = results_of(searcher)
    relay.is_dropping = True
    assert seconds_until_unavailable(lambda: searcher.search(QUERY)) < 2.0
    assert seconds_until_unavailable(lambda: searcher.search(QUERY)) < 0.2, "it is known by now"
    relay.is_dropping = False
    assert until_it_works(lambda: results_of(searcher)) == expected


def test_connections_that_were_forgotten_on_the_way_are_told_from_slow_statements_and_replaced(
    relay: Relay, searcher: Searcher
) -> None:
    expected = results_of(searcher)
    relay.drop_open_connections()
    for _ in range(3):  # The pool may hold several.
        started = time.monotonic()
        with contextlib.suppress(IndexUnavailableError):
            if results_of(searcher) == expected:
                break
        assert time.monotonic() - started < 2.0
    assert until_it_works(lambda: results_of(searcher)) == expected
    slow = searcher.catalog.connections.rows("SELECT 1 FROM pg_sleep(3)")  # type: ignore[attr-defined]
    assert slow == [(1,)], "a statement that is at work is waited for"


@pytest.mark.parametrize("num_bytes", [0, 1, 100, 5_000, 20_000])
def test_an_answer_that_is_cut_off_is_an_error_at_once_and_the_next_search_is_whole(
    relay: Relay, searcher: Searcher, num_bytes: int
) -> None:
    expected = results_of(searcher)
    relay.bytes_until_cut = num_bytes
    started = time.monotonic()
    with contextlib.suppress(IndexUnavailableError):
        for _ in range(100):
            assert results_of(searcher) == expected
            assert relay.bytes_until_cut is not None, "cut, and nobody noticed"
    assert time.monotonic() - started < 2.0
    assert until_it_works(lambda: results_of(searcher)) == expected


def test_a_slow_network_is_no_outage(relay: Relay, searcher: Searcher) -> None:
    expected = results_of(searcher)
    relay.delay_seconds = 0.03
    assert results_of(searcher) == expected
    add_video(searcher.catalog, 99, segments(99))
    assert searcher.catalog.is_available and searcher.catalog.num_videos == 31


def test_a_short_video_is_added_with_two_round_trips_and_many_with_a_few(
    relay: Relay, catalog: PostgresCatalog
) -> None:
    add_video(catalog, 1, segments(1))
    before = relay.num_round_trips
    add_video(catalog, 2, segments(2), title="A title", metadata={"n": 1})
    assert relay.num_round_trips - before == 2
    many = [new_video(number, segments(number), title="A title") for number in range(3, 103)]
    before = relay.num_round_trips
    catalog.add_videos(many)
    # The lock, five tables that are begun and ended, the totals, the commit; and what a buffer does not hold.
    assert relay.num_round_trips - before < 30


def test_a_video_whose_commit_was_not_answered_may_be_sent_again_and_is_there_once(
    relay: Relay, catalog: PostgresCatalog
) -> None:
    relay.loses_commits = True
    with pytest.raises(IndexUnavailableError, match="not known whether"):
        add_video(catalog, 1, segments(1), id="first")
    relay.loses_commits = False
    assert relay.num_lost_commits == 1
    again = until_it_works(lambda: add_video(catalog, 1, segments(1), id="second"))
    assert (again.video_id, again.created) == ("first", False), "it had been made"
    assert catalog.totals() == (1, 1) and catalog.sequence == 1
    assert list(catalog.damages()) == []


def test_many_videos_whose_commit_was_not_answered_are_there_once_each_when_sent_again(
    relay: Relay, catalog: PostgresCatalog
) -> None:
    videos = [new_video(number, segments(number)) for number in range(40)]
    relay.loses_commits = True
    with pytest.raises(IndexUnavailableError, match="not known whether"):
        catalog.add_videos(videos)
    relay.loses_commits = False
    outcomes = until_it_works(lambda: catalog.add_videos(videos))
    assert not any(outcome.created for outcome in outcomes) and catalog.totals() == (40, 40)


@pytest.mark.parametrize("num_bytes", [0, 60, 200])
def test_a_write_that_is_cut_off_is_made_or_not_and_whole_when_it_is_made_again(
    relay: Relay, catalog: PostgresCatalog, num_bytes: int
) -> None:
    add_video(catalog, 1, segments(1))
    relay.bytes_until_cut = num_bytes
    with pytest.raises(IndexUnavailableError):
        for number in range(2, 100):
            add_video(catalog, number, segments(number))
    until_it_works(lambda: [add_video(catalog, number, segments(number)) for number in range(2, 12)])
    assert catalog.num_videos >= 11 and list(catalog.damages()) == []
    assert [change.sequence for change in catalog.changes_since(0)] == [*range(1, catalog.sequence + 1)]


def test_a_job_whose_end_was_not_answered_is_done_and_no_worker_does_it_again(
    relay: Relay, catalog: PostgresCatalog
) -> None:
    catalog.jobs.enqueue(NewJob(source_path="/films/1.mp4", video_id="video-1", content_sha256=sha256_of(1)))
    job = catalog.jobs.lease("worker", 60.0)
    assert job is not None
    relay.loses_commits = True
    with pytest.raises(IndexUnavailableError, match="not known whether"):
        add_and_finish(catalog, 1, segments(1), job)  # type: ignore[arg-type]
    relay.loses_commits = False
    assert until_it_works(lambda: catalog.jobs.get(job.id)).state == "done"
    assert catalog.jobs.lease("another", 60.0) is None and catalog.totals() == (1, 1)


def test_a_commit_that_is_not_answered_on_a_connection_that_seems_whole_is_not_known_to_be_made(
    catalog: PostgresCatalog,
) -> None:
    with (
        pytest.raises(IndexUnavailableError, match="not known whether"),
        catalog.transaction() as transaction,
    ):
        add_video(catalog, 1, segments(1), transaction=transaction)
        transaction.connection.pgconn.send_query(b"SELECT 1")  # Nobody reads its answer.
    assert until_it_works(lambda: add_video(catalog, 1, segments(1))).created


def test_while_packets_are_dropped_nothing_waits_longer_than_it_may_and_what_opens_says_so(
    relay: Relay, catalog: PostgresCatalog, address: str
) -> None:
    assert catalog.num_videos == 0
    relay.is_dropping = True
    assert seconds_until_unavailable(lambda: add_video(catalog, 1, segments(1))) < 2.0
    assert seconds_until_unavailable(lambda: open_store(address)) < 10.0
    relay.is_dropping = False
    assert until_it_works(lambda: add_video(catalog, 1, segments(1))).created
