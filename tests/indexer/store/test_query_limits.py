"""A query under way can be ended: by a limit, and by cancelling the work that it is for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from indexer.errors import QueryTimeoutError, SearchCancelledError
from indexer.store.cancellation import cancellable
from indexer.store.filters import parse_filter
from indexer.store.sqlite.catalog import Catalog
from tests.support.catalog_builders import (
    COSTLY_FILTER,
    LONG_METADATA,
    add_video,
    create_catalog,
    make_segment,
)

CHOSEN = parse_filter(COSTLY_FILTER)
ASKS: list[Callable[[Catalog], Any]] = [
    lambda catalog: catalog.matching(CHOSEN),
    lambda catalog: catalog.list_videos(10, chosen=CHOSEN),
]
SOON_SECONDS = 5.0
"""A fraction of what the filter takes, and far more than the steps between two checks."""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    random = np.random.default_rng(0)
    with create_catalog(tmp_path_factory.mktemp("long") / "index") as catalog:
        for number in range(60):
            add_video(catalog, number, [make_segment(random)], metadata=LONG_METADATA)
        yield catalog


@pytest.mark.parametrize("ask", ASKS)
def test_a_filter_ends_at_its_limit_and_the_next_query_is_answered(
    ask: Callable[[Catalog], Any], catalog: Catalog
) -> None:
    catalog.filter_limit_seconds = 0.05
    started = time.monotonic()
    with pytest.raises(QueryTimeoutError, match=r"takes longer than 0\.05 seconds"):
        ask(catalog)
    assert time.monotonic() - started < SOON_SECONDS
    assert catalog.num_videos == 60
    assert len(catalog.list_videos(5, chosen=parse_filter({"id": {"in": ["video-1", "video-2"]}}))) == 2


@pytest.mark.parametrize("ask", ASKS)
def test_a_filter_ends_when_the_work_is_cancelled(ask: Callable[[Catalog], Any], catalog: Catalog) -> None:
    catalog.filter_limit_seconds = 60.0
    cancelled = threading.Event()
    threading.Timer(0.1, cancelled.set).start()
    started = time.monotonic()
    with cancellable(cancelled), pytest.raises(SearchCancelledError):
        ask(catalog)
    assert time.monotonic() - started < SOON_SECONDS


def test_features_read_by_other_threads_end_with_the_work_too(catalog: Catalog) -> None:
    seen = []

    def read(connection: Any, ids: Any) -> Any:
        seen.append(threading.get_ident())
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"
        ).fetchone()

    cancelled = threading.Event()
    threading.Timer(0.1, cancelled.set).start()
    with cancellable(cancelled), pytest.raises(SearchCancelledError):
        catalog.connections.read_rows(read, range(1000))
    assert len(set(seen)) > 1


def test_a_change_that_is_cancelled_changes_nothing(catalog: Catalog) -> None:
    cancelled, before = threading.Event(), catalog.sequence
    with (
        cancellable(cancelled),
        pytest.raises(SearchCancelledError),
        catalog.connections.transaction() as open,
    ):
        open.execute("UPDATE totals SET num_videos = 0")
        cancelled.set()
        open.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"
        ).fetchone()
    assert (catalog.num_videos, catalog.sequence) == (60, before)
