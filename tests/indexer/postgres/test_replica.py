"""Features from a real hot standby: as fresh as the primary's, and from there where the standby is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from indexer.errors import IndexNotFoundError
from indexer.store.postgres import features as features_module
from indexer.store.postgres.address import PostgresAddress
from indexer.store.postgres.catalog import PostgresCatalog
from indexer.store.records import IndexFacts
from indexer.store.store import create_store
from tests.support.catalog_builders import add_video, make_segment
from tests.support.postgres import DATABASE, USER, PostgresServer, find_programs, running_server

pytestmark = pytest.mark.cluster

FACTS = IndexFacts(fingerprint="f" * 64, model_spec="demo", embedding_dim=8, num_frames=4, sampling_json="{}")


@pytest.fixture(scope="module")
def servers(postgres: PostgresServer) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary and its standby."""
    programs = find_programs()
    assert programs is not None
    with running_server(programs) as primary, running_server(programs, standby_of=primary) as standby:
        yield primary, standby


@pytest.fixture
def catalog(servers: tuple[PostgresServer, PostgresServer]) -> Iterator[Any]:
    """Five videos, which the standby has."""
    primary, standby = servers
    conninfo = f"postgresql://{USER}@/{DATABASE}?host={standby.folder}"
    with create_store(f"{primary.address()}&replica={quote(conninfo, safe='')}", FACTS) as catalog:
        random = np.random.default_rng(0)
        for number in range(5):
            add_video(catalog, number, [make_segment(random), make_segment(random)])
        wait_until(lambda: reads_from_standby(catalog))
        yield catalog


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def reads_from_standby(catalog: PostgresCatalog) -> bool:
    assert catalog._replica is not None
    before = catalog._replica.num_reads
    catalog.segment_features([1])
    return catalog._replica.num_reads > before


def test_features_come_from_the_standby_and_are_those_of_the_primary(catalog: PostgresCatalog) -> None:
    with catalog.snapshot() as at_primary:
        expected = at_primary.segment_features(range(1, 11))
    found = catalog.segment_features(range(1, 11))
    assert len(found) == 10 and np.array_equal(found.frames, expected.frames)
    assert [len(block) for block in catalog.iterate_features(4)] == [4, 4, 2]
    ids, features = next(catalog.iterate_video_features())
    assert np.array_equal(features, expected.video) and ids.tolist() == list(range(1, 11))
    assert reads_from_standby(catalog)


def test_what_was_just_written_is_read_though_the_standby_is_behind(
    servers: tuple[PostgresServer, PostgresServer], catalog: PostgresCatalog
) -> None:
    _, standby = servers
    standby.execute("SELECT pg_wal_replay_pause()")
    try:
        add_video(catalog, 6, [make_segment(np.random.default_rng(6))])
        assert len(catalog.segment_features([11])) == 1
        catalog.delete_video("video-0")
        assert len(catalog.segment_features([1, 2, 3])) == 1
        assert not reads_from_standby(catalog)
    finally:
        standby.execute("SELECT pg_wal_replay_resume()")
    wait_until(lambda: reads_from_standby(catalog))
    assert len(catalog.segment_features([1, 2, 3])) == 1


def test_a_standby_that_is_away_is_passed_over_and_used_again(
    servers: tuple[PostgresServer, PostgresServer],
    catalog: PostgresCatalog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features_module, "RETRY_SECONDS", 0.2)
    _, standby = servers
    standby.stop()
    try:
        assert len(catalog.segment_features([1, 2])) == 2 and not reads_from_standby(catalog)
    finally:
        standby.start()
    wait_until(lambda: reads_from_standby(catalog))


def test_a_replica_is_named_by_an_address_without_a_password() -> None:
    with pytest.raises(IndexNotFoundError, match="password"):
        PostgresAddress.parse("postgresql:///videos").completed(replica="postgresql://a:secret@b/videos")
    with pytest.raises(IndexNotFoundError, match="named by an address"):
        PostgresAddress.parse("postgresql:///videos").completed(replica="db2.example")
