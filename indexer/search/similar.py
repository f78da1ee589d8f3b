"""Videos that look like one video, a picture or a clip, by the cosines of their segments' features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from indexer.coarse.exact import SegmentSet
from indexer.coarse.index import CoarseIndex
from indexer.errors import VideoNotFoundError
from indexer.features.reader import FeatureReader
from indexer.search.folding import fold_results
from indexer.search.ordering import ScoredSegments, best
from indexer.search.results import Page, best_moments, make_results, read_page
from indexer.search.types import GroupBy, Moment, SimilarAnswer, SimilarQuery
from indexer.store.cancellation import raise_if_cancelled
from indexer.store.store import SearchedStore
from model.features import VideoFeatures
from model.score_names import SCORE_NAMES

MAX_ASKED_SEGMENTS: Final = 16
"""A longer video is compared by this many of its segments, evenly spread: each is one search."""

SPARE_SEGMENTS: Final = 32
"""Found beyond the wanted ones at first: a video may have several segments among the nearest."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What is searched with: S segments of one video, or of a picture or a clip that is not in the index.

    videos: their features, on the model's device. id, segment_ids: of the video, and of all its segments,
    which are not found; None, and none, for what is not in the index.
    """

    videos: VideoFeatures
    id: str | None = None
    segment_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of_video(cls, catalog: SearchedStore, features: FeatureReader, video_id: str) -> Self:
        """A video of the index; a long one by some of its segments. Raises VideoNotFoundError."""
        own_ids = np.array([info.segment_id for info in catalog.video_segments(video_id)], np.int64)
        own = features.get(_evenly(own_ids, MAX_ASKED_SEGMENTS))
        if not len(own):
            raise VideoNotFoundError(video_id)
        return cls(own.videos, video_id, own_ids)


class SimilarSearch:
    """Finds the videos nearest to something: by their nearest pair of segments, best first.

    Where the coarse index is approximate some videos may be missed. Moments are the frames nearest to any of
    what was asked with, by their cosine.
    """

    def __init__(self, catalog: SearchedStore, index: CoarseIndex, features: FeatureReader) -> None:
        self._catalog = catalog
        self._index = index
        self._features = features

    def find(self, asked: Asked, query: SimilarQuery, allowed: SegmentSet | None) -> SimilarAnswer:
        """The page that `query` asks for. allowed: the only segments to consider; None for all."""
        rows = slice(query.offset, query.num_wanted)

        def order(num_wanted: int) -> ScoredSegments:
            return self._nearest(asked, query.group_by, num_wanted, allowed).at_least(query.min_score)

        results = fold_results(order, self._features, query.num_wanted, query.fold_threshold)
        page = read_page(results, rows, self._catalog, self._features.get)
        moments = _moments(page, asked.videos, query.num_moments)
        found = make_results(page, moments, first_rank=rows.start + 1)
        return SimilarAnswer(asked.id, self._catalog.num_videos, found)

    def _nearest(
        self, asked: Asked, group_by: GroupBy, num_wanted: int, allowed: SegmentSet | None
    ) -> ScoredSegments:
        count = num_wanted + len(asked.segment_ids) + SPARE_SEGMENTS
        vectors = asked.videos.video.cpu().numpy()
        while True:
            raise_if_cancelled()
            products, ids = self._index.search(vectors, count, allowed)  # [T, k]
            is_all = ids.shape[1] < count
            nearest = _nearest_segments(self._catalog, products.ravel(), ids.ravel(), asked.segment_ids)
            ordered = best(nearest, group_by)
            if not is_all:
                # A segment that no search has found is farther from each asked one than the last that was
                # found for it, so only what is nearer than all of those is surely in order.
                ordered = ordered[ordered.total > products[:, -1].max()]
            if is_all or len(ordered) >= num_wanted:
                return ordered
            count *= 2


def _nearest_segments(
    catalog: SearchedStore,
    products: NDArray[np.float32],
    segment_ids: NDArray[np.int64],
    own_ids: NDArray[np.int64],
) -> ScoredSegments:
    """Each other segment once, with its highest product."""
    order = np.lexsort((-products, segment_ids))
    ids, first_rows = np.unique(segment_ids[order], return_index=True)
    highest = products[order][first_rows]
    found, numbers = catalog.owners_of_segments(ids[~np.isin(ids, own_ids)])
    total = highest[np.searchsorted(ids, found)]
    return ScoredSegments(found, numbers, total, np.full((len(total), len(SCORE_NAMES)), np.nan, np.float32))


def _moments(page: Page, asked: VideoFeatures, num_moments: int) -> list[list[Moment]]:
    asked_frames = asked.frames[asked.frame_mask].float()  # [real frames, D]
    moments = []
    for row, times in enumerate(page.frame_times):
        frames = page.features.videos.frames[row, : len(times)].float()
        nearest = (frames @ asked_frames.T).amax(dim=1).cpu().numpy()
        moments.append(best_moments(times, nearest, num_moments))
    return moments


def _evenly(ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the ids, the first and the last among them."""
    if len(ids) <= count:
        return ids
    return ids[np.linspace(0, len(ids) - 1, count).round().astype(np.int64)]
