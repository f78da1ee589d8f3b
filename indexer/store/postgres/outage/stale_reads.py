"""Searching an index whose database does not answer: as it was when it last did.

What searches ask is answered from this machine: the coarse index is in memory, features are in the feature
file, rows are kept (`kept_rows`, here), and what filters that were used lately match is remembered by the
searcher. Words of titles and transcripts, other filters and all changes need the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexUnavailableError
from indexer.store.filters import Filter
from indexer.store.postgres.catalog import PostgresCatalog
from indexer.store.postgres.outage.kept_rows import KeptRows
from indexer.store.records import Matches, SegmentFeatures, SegmentInfo, StoreState, VideoRecord

SegmentIds = Sequence[int] | NDArray[np.int64]
_Answer = TypeVar("_Answer")


class StaleCatalog(PostgresCatalog):
    """A catalog whose segments and records can be read for a while though its database does not answer.

    What cannot be had from this machine raises IndexUnavailableError, as does everything after
    `stale_reads_seconds` of its address.
    """

    needs_copies = True

    def __init__(self, catalog: PostgresCatalog) -> None:
        """catalog: which it shares its connections with, and closes."""
        super().__init__(catalog._address, catalog.generation, catalog.connections)
        self._kept = KeptRows(self.directory)

    def close(self) -> None:
        """Close all connections and the kept rows."""
        super().close()
        self._kept.close()

    # While the database does not answer

    @property
    def stale_seconds(self) -> float | None:
        """For how long the database has not answered; None where it does, or rows are not read any more."""
        away_since = self.connections.availability.away_since
        if away_since is None or self._kept.state() is None:
            return None
        seconds = time.monotonic() - away_since
        return seconds if seconds <= self._address.stale_reads_seconds else None

    def must_keep_rows(self, sequence: int) -> bool:
        """Whether the kept rows are behind. sequence: of the store's last change."""
        return self._kept.needs_update(sequence)

    def keep_rows(self) -> None:
        """Bring the kept rows in line with the store."""
        self._kept.update(self.connections)

    def _or_kept(self, read: Callable[[], _Answer], kept: Callable[[], _Answer]) -> _Answer:
        try:
            return read()
        except IndexUnavailableError:
            if self.stale_seconds is None:
                raise
            return kept()

    def state(self, since: int | None = None, limit: int = 10_000) -> StoreState:
        """The last change and the totals; without the database those of the kept rows, and how old they are.
        Changes come from the database alone."""
        if since is not None:
            return super().state(since, limit)
        return self._or_kept(super().state, self._kept_state)

    def _kept_state(self) -> StoreState:
        state = self._kept.state()
        assert state is not None, "it was there just now"
        return replace(state, stale_seconds=self.stale_seconds or 0.0)

    def segments_and_videos(self, segment_ids: SegmentIds) -> dict[int, tuple[SegmentInfo, VideoRecord]]:
        """Those of `segment_ids` that exist, with the records of their videos, by segment id."""
        return self._or_kept(
            lambda: PostgresCatalog.segments_and_videos(self, segment_ids),
            lambda: self._kept.segments_and_videos(segment_ids),
        )

    def owners_of_segments(
        self, segment_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of these segments that exist, with their videos."""
        return self._or_kept(
            lambda: PostgresCatalog.owners_of_segments(self, segment_ids),
            lambda: self._kept.owners_of_segments(segment_ids),
        )

    def segment_features(self, segment_ids: SegmentIds) -> SegmentFeatures:
        """Features of `segment_ids`; without the database of none, as what is here was looked for before."""
        return self._or_kept(
            lambda: PostgresCatalog.segment_features(self, segment_ids), lambda: self._features.none()
        )

    def video_features(self, segment_ids: SegmentIds) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and video features; without the database of none, as what is here was looked for before."""
        return self._or_kept(
            lambda: PostgresCatalog.video_features(self, segment_ids),
            lambda: (np.empty(0, np.int64), np.empty((0, self.embedding_dim), np.float32)),
        )

    def matching(self, chosen: Filter, former: Matches | None = None) -> Matches:
        """The segments whose videos fulfil a filter; without the database what it let through before, if that
        is known."""
        try:
            return super().matching(chosen, former)
        except IndexUnavailableError:
            if former is None or self.stale_seconds is None:
                raise
            return former
