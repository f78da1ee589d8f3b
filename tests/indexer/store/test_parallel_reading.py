"""Reading many segments by several threads gives what reading them by one gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import IndexDamagedError
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.connections import MIN_ROWS, NUM_READERS
from tests.support.catalog_builders import add_video, create_catalog, make_segment

N = 5 * MIN_ROWS


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    random = np.random.default_rng(0)
    with create_catalog(tmp_path / "index") as catalog:
        for number in range(N):
            add_video(catalog, number, [make_segment(random)])
        yield catalog


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("catalog-reading")]


@pytest.mark.parametrize("count", [0, 1, MIN_ROWS - 1, MIN_ROWS, MIN_ROWS + 1, N])
def test_any_number_of_segments_come_as_if_read_one_by_one(catalog: Catalog, count: int) -> None:
    random = np.random.default_rng(1)
    catalog.delete_video("video-3")
    asked = random.permutation(np.arange(1, N + 20))[:count]
    asked = np.concatenate([asked, asked[: count // 4]])  # Some twice.
    there = [number for number in asked.tolist() if number <= N and number != 4]
    features = catalog.segment_features(asked)
    assert features.segment_ids.tolist() == there
    one_by_one = [catalog.segment_features([number]) for number in there]
    assert features.frames.tobytes() == b"".join(one.frames.tobytes() for one in one_by_one)
    assert features.video.tobytes() == b"".join(one.video.tobytes() for one in one_by_one)
    ids, vectors = catalog.video_features(asked)
    assert ids.tolist() == sorted(set(there))
    positions = np.searchsorted(ids, features.segment_ids)
    assert vectors[positions].tobytes() == features.video.tobytes()


@pytest.mark.parametrize("segment_id", [1, N // 2, N])
def test_damage_is_noticed_whoever_reads_it(catalog: Catalog, segment_id: int) -> None:
    with catalog.connections.transaction() as connection:
        connection.execute(
            "UPDATE segment_frames SET frame_features_crc32 = 1 WHERE segment_id = ?", (segment_id,)
        )
    with pytest.raises(IndexDamagedError, match=f"segment {segment_id} "):
        catalog.segment_features(np.arange(1, N + 1))


def test_a_row_that_is_hidden_is_noticed_whoever_misses_it(catalog: Catalog) -> None:
    with catalog.connections.reading() as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("DELETE FROM segments WHERE id = ?", (N - 1,))
        connection.execute("PRAGMA foreign_keys = ON")
    with pytest.raises(IndexDamagedError, match=f"segment {N - 1} has frame features"):
        catalog.segment_features(np.arange(1, N + 1))


def test_threads_are_begun_when_needed_and_end_with_the_catalog(catalog: Catalog) -> None:
    catalog.segment_features(np.arange(1, MIN_ROWS))
    assert not reading_threads()
    catalog.segment_features(np.arange(1, N + 1))
    assert 1 <= len(reading_threads()) < NUM_READERS
    catalog.close()
    assert not reading_threads()
    with pytest.raises(RuntimeError, match="closed"):
        catalog.segment_features(np.arange(1, N + 1))
