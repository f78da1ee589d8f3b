"""From scored segments to what a client sees: records, times and features of a page, all still there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog
from indexer.catalog_records import SegmentInfo, VideoRecord
from indexer.feature_memory import FeatureMemory, ScorableSegments
from indexer.ranking import ScoredSegments
from indexer.result_order import OrderedResults
from indexer.search_types import Explanation, Moment, SearchResult, Segment
from model.features import SCORE_NAMES


@dataclass(frozen=True, eq=False)
class Page:
    """What is needed to show the results of a page, all in its order."""

    hits: ScoredSegments
    features: ScorableSegments
    infos: Sequence[SegmentInfo]
    videos: Sequence[VideoRecord]

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def frame_times(self) -> list[NDArray[np.float64]]:
        """For each result the times of its segment's frames, in seconds."""
        return [info.frame_times for info in self.infos]


def read_page(
    ordered: OrderedResults, offset: int, limit: int, catalog: Catalog, features: FeatureMemory
) -> tuple[Page, OrderedResults, bool]:
    """What the catalog says about results `offset` to `offset + limit`; those deleted by now give way to the
    next. Also the results without those deleted, and whether any was.
    """
    num_before = len(ordered)
    while True:
        hits = ordered.scored[offset : offset + limit]
        infos = catalog.segment_infos(hits.segment_ids)
        read = features.get(hits.segment_ids)
        videos = catalog.get_videos([info.video_id for info in infos.values()])
        # Three readings, and a video may be deleted between any two of them.
        deleted = set(hits.segment_ids.tolist()) - infos.keys()
        deleted |= set(hits.segment_ids.tolist()) - set(read.segment_ids.tolist())
        deleted |= {info.segment_id for info in infos.values() if info.video_id not in videos}
        if not deleted:
            in_order = [infos[segment_id] for segment_id in hits.segment_ids.tolist()]
            page = Page(hits, read, in_order, [videos[info.video_id] for info in in_order])
            return page, ordered, len(ordered) < num_before
        ordered = ordered.without(list(deleted))


def make_results(
    page: Page,
    moments: Sequence[Sequence[Moment]],
    *,
    first_rank: int,
    percentiles: Sequence[float | None],
    explanations: Sequence[Explanation] | None = None,
) -> list[SearchResult]:
    """The results of a page. moments, percentiles, explanations: in its order."""
    results = [
        SearchResult(
            id=video.id,
            segment_id=info.segment_id,
            rank=first_rank + place,
            score=float(page.hits.total[place]),
            scores=named_scores(page.hits.parts[place]),
            title=video.title,
            uri=video.uri,
            duration_seconds=video.duration_seconds,
            metadata=video.metadata,
            segment=Segment(info.start_seconds, info.end_seconds),
            moments=moments[place],
            percentile=percentiles[place],
        )
        for place, (info, video) in enumerate(zip(page.infos, page.videos, strict=True))
    ]
    if explanations is None:
        return results
    return [
        replace(result, explanation=explanation)
        for result, explanation in zip(results, explanations, strict=True)
    ]


def named_scores(parts: NDArray[np.float32]) -> dict[str, float | None]:
    """The four scores by name; None for NaN. parts: float32 [4]."""
    return {
        name: None if np.isnan(part) else float(part) for name, part in zip(SCORE_NAMES, parts, strict=True)
    }
