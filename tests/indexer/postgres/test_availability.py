"""A database that is away: errors come soon, and all goes on by itself when it is there again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest

from indexer.errors import IndexStorageError, IndexUnavailableError
from indexer.store.postgres.catalog import PostgresCatalog
from indexer.store.postgres.outage.availability import Availability
from tests.indexer.postgres.test_writers import at_once
from tests.support.catalog_builders import add_video, make_segment
from tests.support.postgres import AWAY, PostgresServer
from tests.support.stores import StoreFactory

LIMIT_SECONDS = 1.5
pytestmark = pytest.mark.store("postgres")


@pytest.fixture
def catalog(own_postgres: PostgresServer, tmp_path: object) -> Iterator[PostgresCatalog]:
    factory = StoreFactory("postgres", own_postgres.folder, own_postgres.address)
    made: PostgresCatalog = factory.create()
    made.silence_limit_seconds = LIMIT_SECONDS
    yield made
    factory.close()


def seconds_until_unavailable(call: Callable[[], object]) -> float:
    started = time.monotonic()
    with pytest.raises(IndexUnavailableError, match="does not answer"):
        call()
    return time.monotonic() - started


def wait_until_available(catalog: PostgresCatalog, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not catalog.is_available:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("way", AWAY)
def test_a_database_that_is_away_is_an_error_within_two_seconds_and_is_used_again_by_itself(
    own_postgres: PostgresServer, catalog: PostgresCatalog, way: str
) -> None:
    leave, come_back = AWAY[way]
    assert catalog.num_videos == 0
    leave(own_postgres)
    try:
        # Reading and writing, with connections that were open and with new ones.
        works = [lambda: seconds_until_unavailable(lambda: catalog.num_videos)] * 3
        works.append(lambda: seconds_until_unavailable(lambda: catalog.delete_video("video-1")))
        assert max(at_once(*works)) < 2.0
        assert not catalog.is_available
        assert seconds_until_unavailable(lambda: catalog.num_videos) < 0.2, "it is known by now"
    finally:
        come_back(own_postgres)
    wait_until_available(catalog)
    add_video(catalog, 1, [make_segment(np.random.default_rng(0))])
    assert catalog.num_videos == 1


def test_a_statement_that_takes_long_is_not_taken_for_a_server_that_is_silent(
    catalog: PostgresCatalog,
) -> None:
    catalog.silence_limit_seconds = 0.6
    assert catalog.connections.rows("SELECT 1 FROM pg_sleep(1.5)") == [(1,)]
    assert catalog.is_available


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        ("FATAL:  sorry, too many clients already", True),
        ('FATAL:  too many connections for database "videos"', True),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", True),
        ("FATAL:  the database system is starting up", False),
        ("connection timeout expired", False),
    ],
)
def test_a_server_without_a_connection_left_answers(said: str, answers: bool) -> None:
    asked = threading.Event()

    def connect() -> None:
        asked.set()
        raise psycopg.OperationalError(said)

    availability = Availability(connect, "here")
    availability.ask()
    assert asked.wait(5)
    time.sleep(0.1)
    assert (availability.away_since is None) == answers
    availability.close()


def test_what_the_database_refuses_is_no_outage(catalog: PostgresCatalog) -> None:
    with pytest.raises(IndexStorageError, match="refuses") as caught:
        catalog.connections.rows("SET ROLE pg_read_all_data; COPY (SELECT 1) TO '/nowhere'")
    assert not isinstance(caught.value, IndexUnavailableError) and catalog.is_available
