"""Videos that look like one video, by the cosines of their segments' features."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from indexer.coarse.exact import SegmentSet
from indexer.coarse.index import CoarseIndex
from indexer.errors import VideoNotFoundError
from indexer.search.caches import FeatureCache, ScorableSegments
from indexer.search.ordering import ScoredSegments, best
from indexer.search.results import Page, best_moments, make_results, read_page
from indexer.search.types import Moment, SimilarAnswer
from indexer.store.sqlite.connections import raise_if_cancelled
from indexer.store.store import SearchedStore
from model.score_names import SCORE_NAMES

MAX_ASKED_SEGMENTS: Final = 16
"""A longer video is compared by this many of its segments, evenly spread: each is one search."""

SPARE_SEGMENTS: Final = 32
"""Found beyond the wanted ones at first: a video may have several segments among the nearest."""


def find_similar(
    catalog: SearchedStore,
    index: CoarseIndex,
    features: FeatureCache,
    video_id: str,
    rows: slice,
    allowed: SegmentSet | None,
) -> SimilarAnswer:
    """The videos nearest to a video: by their nearest pair of segments, best first.

    Args:
        catalog, index, features: Of the index.
        video_id: The video, which is not among the results.
        rows: Of all results, those of the page.
        allowed: The only segments to consider; None for all.

    Returns:
        The page. Where the coarse index is approximate some videos may be missed. Moments are the frames
        nearest to any of the video's, by their cosine.

    Raises:
        VideoNotFoundError: No video of this id.
    """
    own_ids = np.array([info.segment_id for info in catalog.video_segments(video_id)], np.int64)
    own = features.get(_evenly(own_ids, MAX_ASKED_SEGMENTS))
    if not len(own):
        raise VideoNotFoundError(video_id)
    ordered = _nearest_videos(catalog, index, own, own_ids, rows.stop, allowed)
    page = read_page(ordered, rows, catalog, features)
    results = make_results(page, _moments(page, own), first_rank=rows.start + 1)
    return SimilarAnswer(video_id, catalog.num_videos, results)


def _nearest_videos(
    catalog: SearchedStore,
    index: CoarseIndex,
    own: ScorableSegments,
    own_ids: NDArray[np.int64],
    num_wanted: int,
    allowed: SegmentSet | None,
) -> ScoredSegments:
    count = num_wanted + len(own_ids) + SPARE_SEGMENTS
    own_vectors = own.videos.video.cpu().numpy()
    while True:
        raise_if_cancelled()
        products, ids = index.search(own_vectors, count, allowed)  # [T, k]
        is_all = ids.shape[1] < count
        nearest = _nearest_segments(catalog, products.ravel(), ids.ravel(), own_ids)
        by_video = best(nearest, "video")
        if not is_all:
            # A segment that no search has found is farther from each asked one than the last that was found
            # for it, so only what is nearer than all of those is surely in order.
            by_video = by_video[by_video.total > products[:, -1].max()]
        if is_all or len(by_video) >= num_wanted:
            return by_video
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


def _moments(page: Page, own: ScorableSegments) -> list[list[Moment]]:
    own_frames = own.videos.frames[own.videos.frame_mask].float()  # [real frames, D]
    moments = []
    for row, times in enumerate(page.frame_times):
        frames = page.features.videos.frames[row, : len(times)].float()
        moments.append(best_moments(times, (frames @ own_frames.T).amax(dim=1).cpu().numpy()))
    return moments


def _evenly(ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the ids, the first and the last among them."""
    if len(ids) <= count:
        return ids
    return ids[np.linspace(0, len(ids) - 1, count).round().astype(np.int64)]
