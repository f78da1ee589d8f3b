"""From scored segments to what a client sees: records, times and features of a page, all still there.

From stored features to scores, moments and explanations, by the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.search.feature_cache import FeatureMemory, ScorableSegments
from indexer.search.ordering import OrderedResults, ScoredSegments
from indexer.search.types import NUM_MOMENTS, Explanation, Moment, SearchResult, Segment
from indexer.store.records import SegmentInfo, VideoRecord
from indexer.store.sqlite.catalog import Catalog
from model.features import SCORE_NAMES, TextFeatures

if TYPE_CHECKING:
    from model.xclip import XClip


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


@torch.inference_mode()
def score_segments(model: XClip, text: TextFeatures, features: ScorableSegments) -> ScoredSegments:
    """All scores of one text with N segments."""
    if not len(features):
        return ScoredSegments.none()
    scores = model.score(text, features.videos)
    columns = [getattr(scores, name)[0] for name in SCORE_NAMES]
    table = torch.stack([*columns, scores.total[0]], dim=1).float().cpu().numpy()
    return ScoredSegments(features.segment_ids, features.video_numbers, table[:, -1], table[:, :-1])


@torch.inference_mode()
def find_moments(
    model: XClip,
    text: TextFeatures,
    features: ScorableSegments,
    frame_times: Sequence[NDArray[np.float64]],
    num_moments: int = NUM_MOMENTS,
) -> list[list[Moment]]:
    """For each of N segments its best real frames, best first, no time twice, at most `num_moments`.

    frame_times: for each segment float64 [num_frames], seconds.
    """
    if not len(features):
        return []
    matches = model.frame_matches(text, features.videos)[0].float().cpu().numpy()
    return [best_moments(times, row, num_moments) for times, row in zip(frame_times, matches, strict=True)]


def best_moments(
    times: NDArray[np.float64], matches: NDArray[np.float32], num_moments: int = NUM_MOMENTS
) -> list[Moment]:
    """The best of the frames at `times`, best first, no time twice, at most `num_moments`.

    matches: one for each time, and perhaps more for padding.
    """
    found: dict[float, float] = {}
    for place in np.argsort(-matches[: len(times)], kind="stable"):
        found.setdefault(float(times[place]), float(matches[place]))
        if len(found) == num_moments:
            break
    return [Moment(time, score) for time, score in found.items()]


@torch.inference_mode()
def explain_segments(
    model: XClip,
    query: str,
    text: TextFeatures,
    features: ScorableSegments,
    frame_times: Sequence[NDArray[np.float64]],
) -> list[Explanation]:
    """For each of N segments which words of `query`, whose features are `text`, met which frames."""
    if not len(features):
        return []
    similarity = model.word_frame_similarity(text, features.videos)[0].float().cpu().numpy()  # [V, W, F]
    tokens = model.tokenizer.pieces(query)
    return [
        Explanation(tokens, times.tolist(), table[: len(tokens), : len(times)].tolist())
        for times, table in zip(frame_times, similarity, strict=True)
    ]
