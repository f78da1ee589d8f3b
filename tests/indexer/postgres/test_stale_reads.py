"""Searches while the database is away, from what this machine keeps: as it was, and saying so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from indexer.errors import IndexUnavailableError
from indexer.ingest.encoding import index_fingerprint
from indexer.search.searcher import Searcher, SearchQuery
from indexer.store.postgres.outage.kept_rows import FILE_NAME
from indexer.store.records import IndexFacts
from indexer.store.store import Store, create_store, open_store
from tests.support.postgres import PostgresServer
from tests.support.small_searchers import D, F, fill, tiny_model

TEXT = "a dog runs"
MODES = ("rerank", "coarse", "exhaustive")


@pytest.fixture
def store(own_postgres: PostgresServer) -> Iterator[Store[Any]]:
    """Twenty videos of two segments."""
    facts = IndexFacts(
        fingerprint=index_fingerprint(tiny_model(), "{}"),
        model_spec="tiny",
        embedding_dim=D,
        num_frames=F,
        sampling_json="{}",
    )
    with create_store(own_postgres.address(), facts) as store:
        fill(store, range(20), segments_each=2)  # type: ignore[arg-type]
        store.delete_video("video-3")
        yield store


def searcher_of(store: Store[Any], stale_limit_seconds: float = 600.0) -> Searcher:
    searcher = Searcher(f"{store.address}&stale_reads_seconds={stale_limit_seconds}", tiny_model())
    searcher.catalog.silence_limit_seconds = 1.0
    return searcher


def results_of(searcher: Searcher, query: SearchQuery) -> list[Any]:
    return [replace(result, percentile=None, match=None) for result in searcher.search(query).results]


def wait_until_available(searcher: Searcher) -> None:
    deadline = time.monotonic() + 10
    while not searcher.catalog.is_available:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_searches_give_what_they_gave_before_say_so_and_are_fresh_again_by_themselves(
    own_postgres: PostgresServer, store: Store[Any]
) -> None:
    queries = [SearchQuery(TEXT, limit=7, offset=3, mode=mode) for mode in MODES]  # type: ignore[arg-type]
    filtered = replace(queries[0], filter={"metadata.number": {"lt": 10}}, offset=0)
    with searcher_of(store) as searcher:
        expected = [results_of(searcher, query) for query in (*queries, filtered)]
        assert all(expected)
        searcher._refresher.wait()
        own_postgres.pause()
        try:
            assert [results_of(searcher, query) for query in (*queries, filtered)] == expected
            answer = searcher.search(queries[0])
            assert answer.stale_seconds is not None and answer.num_videos == 19
            assert any("has not answered for" in warning for warning in answer.warnings)
            refused = (
                lambda: searcher.search(replace(filtered, filter={"metadata.number": {"lt": 11}})),
                lambda: searcher.search(replace(queries[0], text_match="boost")),
                lambda: searcher.similar("video-1"),
                lambda: searcher.catalog.delete_video("video-1"),
            )
            for call in refused:
                with pytest.raises(IndexUnavailableError):
                    call()
        finally:
            own_postgres.resume()
        wait_until_available(searcher)
        store.delete_video("video-4")
        answer = searcher.search(replace(queries[0], limit=50, offset=0))
        assert (answer.stale_seconds, answer.num_videos, answer.warnings) == (None, 18, [])
        assert "video-4" not in {result.id for result in answer.results}


def test_what_was_changed_before_the_outage_is_kept_too(
    own_postgres: PostgresServer, store: Store[Any]
) -> None:
    query = SearchQuery(TEXT, limit=50)
    with searcher_of(store) as searcher:
        searcher.search(query)
        searcher._refresher.wait()
        fill(store, [30], segments_each=2)  # type: ignore[arg-type]
        store.update_video("video-5", title="another title")
        store.delete_video("video-6")
        expected = results_of(searcher, query)
        searcher._refresher.wait()
        own_postgres.pause()
        try:
            found = results_of(searcher, query)
        finally:
            own_postgres.resume()
    assert found == expected
    titles = {result.id: result.title for result in found}
    assert titles["video-5"] == "another title" and "video-30" in titles and "video-6" not in titles


def test_after_the_limit_searches_are_refused(own_postgres: PostgresServer, store: Store[Any]) -> None:
    with searcher_of(store, stale_limit_seconds=1.0) as searcher:
        searcher.search(SearchQuery(TEXT))
        searcher._refresher.wait()
        own_postgres.pause()
        try:
            assert searcher.search(SearchQuery(TEXT)).stale_seconds is not None
            time.sleep(1.2)
            with pytest.raises(IndexUnavailableError):
                searcher.search(SearchQuery(TEXT))
        finally:
            own_postgres.resume()


@pytest.mark.parametrize("damage", ["no database", "a schema that is no text"])
def test_kept_rows_that_cannot_be_read_are_made_again(
    own_postgres: PostgresServer, store: Store[Any], damage: str
) -> None:
    with searcher_of(store) as searcher:
        searcher._refresher.wait()
        expected = results_of(searcher, SearchQuery(TEXT))
    path = store.directory / FILE_NAME
    content = path.read_bytes()
    assert b"tablesegments" in content
    for own in path.parent.glob(f"{FILE_NAME}*"):
        own.unlink()
    if damage == "no database":
        path.write_bytes(b"not a database" * 1000)
    else:
        path.write_bytes(content.replace(b"tablesegments", b"tablesegm\xf5nts"))
    with searcher_of(store) as searcher:
        searcher._refresher.wait()
        own_postgres.pause()
        try:
            assert results_of(searcher, SearchQuery(TEXT)) == expected
        finally:
            own_postgres.resume()


def test_without_the_setting_nothing_is_answered_from_memory(
    own_postgres: PostgresServer, store: Store[Any]
) -> None:
    with searcher_of(store, stale_limit_seconds=0.0) as searcher, open_store(store.address):
        searcher.search(SearchQuery(TEXT))
        own_postgres.pause()
        try:
            with pytest.raises(IndexUnavailableError):
                searcher.search(SearchQuery(TEXT))
        finally:
            own_postgres.resume()
