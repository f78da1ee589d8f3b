"""What a process of tests/faults/crash_cycles.py does to an index until it is killed, and what it says of it.

Before each operation it writes a line to its channel, and another one as soon as the operation has come back:
the second is the acknowledgement. Lines are JSON objects, short enough that a pipe takes each whole.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from indexer.coarse.index import CoarseIndex
from indexer.errors import DuplicateIdError
from indexer.store.records import SegmentRecord
from indexer.store.sqlite.catalog import Catalog
from tests.support.catalog_builders import add_video, make_segment, sha256_of

D, F = 8, 4
WANTED_VIDEOS = 30
"""About this many exist: enough to mix everything, few enough to compare all of them after each kill."""

MAX_NUMBER = 1_000_000


def segments_of(number: int) -> list[SegmentRecord]:
    """One to three segments, always the same ones for the video of this number."""
    random = np.random.default_rng(number)
    return [
        make_segment(random, D, F, num_real_frames=1 + (number + position) % F, start_seconds=10.0 * position)
        for position in range(1 + number % 3)
    ]


def number_of(size_bytes: int) -> int:
    """The number of a video, which `catalog_builders.add_video` hides in its size."""
    return size_bytes - 1000


def are_best_segments(catalog: Catalog, query: Any, scores: Any, ids: Any) -> bool:
    """Whether these, float32 [k] and int64 [k], are the best segments of all that the catalog holds.

    Within the rounding of float32 sums, by plain float64 sums.
    """
    blocks = list(catalog.iterate_video_features())
    all_ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in blocks)])
    vectors = np.concatenate([np.empty((0, D), np.float32), *(vectors for _, vectors in blocks)])
    products = vectors.astype(np.float64) @ query.astype(np.float64)
    if not np.isin(ids, all_ids).all() or len(np.unique(ids)) != len(ids):
        return False
    found = products[np.searchsorted(all_ids, ids)]
    best = -np.sort(-products)[: len(ids)]
    return np.allclose(scores, found, rtol=0, atol=1e-5) and np.allclose(found, best, rtol=0, atol=1e-5)


class Worker:
    """Changes an index at random for ever. Of several, each changes only the videos of its share."""

    def __init__(self, directory: Path, channel: int, seed: list[int], share: int, num_shares: int) -> None:
        self._directory = directory
        self._channel = channel
        self._random = np.random.default_rng(seed)
        self._share, self._num_shares = share, num_shares
        self._mine: dict[str, int] = {}

    def run(self) -> None:
        """Until the process is killed; whatever goes wrong is said and ends it."""
        try:
            self._say(begin="open")
            self._catalog = Catalog.open(self._directory)
            self._index = CoarseIndex.open(self._catalog, max_pending=8)
            for record in self._catalog.list_videos(limit=100_000):
                number = number_of(record.size_bytes)
                if number % self._num_shares == self._share:
                    self._mine[record.id] = number
            self._say()
            operations: dict[Callable[[], None], float] = {
                self._add: 8.0,
                self._add_known_content: 1.0,
                self._add_under_a_taken_id: 1.0,
                self._delete: 6.0,
                self._update: 3.0,
                self._search: 4.0,
                self._compact: 2.0,
                self._save: 3.0,
                self._checkpoint: 1.0,
                self._forget_changes: 0.3,
            }
            chances = np.array(list(operations.values())) / sum(operations.values())
            while True:
                list(operations)[self._random.choice(len(chances), p=chances)]()
        except BaseException:
            self._say(wrong=traceback.format_exc()[-2000:])

    def _say(self, **words: Any) -> None:
        """Without words: what was begun is done."""
        os.write(self._channel, json.dumps(words or {"done": True}).encode() + b"\n")

    def _chosen(self) -> tuple[str, int]:
        video_id = sorted(self._mine)[self._random.integers(len(self._mine))]
        return video_id, self._mine[video_id]

    def _new_number(self) -> int:
        return int(self._random.integers(MAX_NUMBER)) * self._num_shares + self._share

    def _add(self) -> None:
        if len(self._mine) > WANTED_VIDEOS:
            return
        number = self._new_number()
        video_id = f"video-{number}" if self._random.random() < 0.5 else None
        title, metadata = f"title {number}", {"number": number}
        self._say(begin="add", number=number, id=video_id, title=title, metadata=metadata)
        outcome = add_video(
            self._catalog, number, segments_of(number), id=video_id, title=title, metadata=metadata
        )
        self._mine[outcome.video_id] = number
        self._say(done=True, id=outcome.video_id, created=outcome.created)

    def _add_known_content(self) -> None:
        if not self._mine:
            return
        video_id, number = self._chosen()
        self._say(begin="add", number=number, id=None, title="again", metadata={})
        outcome = add_video(self._catalog, number, segments_of(number), id=None, title="again")
        if outcome.created or outcome.video_id != video_id:
            self._say(wrong=f"the content of {video_id} was added again: {outcome}")
        self._say(done=True, id=outcome.video_id, created=outcome.created)

    def _add_under_a_taken_id(self) -> None:
        number = self._new_number()
        # Where the number is one that is there, the same content is found before the id is looked at.
        if not self._mine or self._catalog.find_by_sha256(sha256_of(number)) is not None:
            return
        video_id, _ = self._chosen()
        self._say(begin="refused add")
        try:
            add_video(self._catalog, number, segments_of(number), id=video_id)
        except DuplicateIdError:
            self._say()
        else:
            self._say(wrong=f"two videos have the id {video_id}")

    def _delete(self) -> None:
        if not self._mine:
            return
        video_id, number = self._chosen()
        self._say(begin="delete", number=number)
        self._catalog.delete_video(video_id)
        del self._mine[video_id]
        self._say()

    def _update(self) -> None:
        if not self._mine:
            return
        video_id, number = self._chosen()
        title, metadata = f"title {self._random.integers(1000)}", {"x": int(self._random.integers(1000))}
        self._say(begin="update", number=number, title=title, metadata=metadata)
        self._catalog.update_video(video_id, title=title, metadata=metadata)
        self._say()

    def _search(self) -> None:
        query = self._random.standard_normal(D).astype(np.float32)
        self._say(begin="search")
        self._index.follow()
        scores, ids = self._index.search(query[None], 5)
        if self._num_shares == 1:  # Else the other one may have changed something in between.
            num_found = min(5, self._catalog.num_segments)
            if len(ids[0]) != num_found or not are_best_segments(self._catalog, query, scores[0], ids[0]):
                self._say(wrong=f"{ids[0].tolist()} are not the {num_found} best")
        self._say()

    def _compact(self) -> None:
        self._say(begin="compact")
        self._index.follow()
        self._index.compact()
        self._say()

    def _save(self) -> None:
        self._say(begin="save")
        self._index.save()
        self._say()

    def _checkpoint(self) -> None:
        self._say(begin="checkpoint")
        with self._catalog.connections.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._say()

    def _forget_changes(self) -> None:
        self._say(begin="forget changes")
        self._catalog.forget_changes(self._catalog.sequence)
        self._say()
