"""Texts by how well they fit one video, the other direction of the paper's retrieval (video to text); and
warnings about texts that the model does not read as they were meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.errors import InvalidQueryError, VideoNotFoundError
from indexer.features.reader import FeatureReader
from indexer.features.scorable import ScorableSegments
from indexer.search.baseline import Baseline
from indexer.search.results import best_moments, named_scores
from indexer.search.text_encoding import TextEncoder
from indexer.search.types import (
    MAX_BATCH_TEXTS,
    Moment,
    RankedText,
    Segment,
    StageTimes,
    TextsAnswer,
    TextTimings,
    check_text,
)
from indexer.store.cancellation import raise_if_cancelled
from indexer.store.records import SegmentInfo
from indexer.store.store import SearchedStore
from model.features import TextFeatures
from model.score_names import SCORE_NAMES

if TYPE_CHECKING:
    from model.xclip import XClip


_SEGMENTS_AT_ONCE: Final = 256


def rank_texts(
    encoder: TextEncoder,
    catalog: SearchedStore,
    features: FeatureReader,
    video_id: str,
    texts: Sequence[str],
    baseline: Baseline | None,
) -> TextsAnswer:
    """Every text with the video's best segment for it, by the full score.

    Args:
        encoder, catalog, features: Of the index.
        video_id: The video.
        texts: 1 to MAX_BATCH_TEXTS.
        baseline: For the percentiles, None for results without them.

    Returns:
        The answer, without warnings.

    Raises:
        VideoNotFoundError: No video of this id.
        InvalidQueryError: A text is no query, or there are too many; the message says which.
    """
    if not 1 <= len(texts) <= MAX_BATCH_TEXTS:
        raise InvalidQueryError(f"texts must be 1 to {MAX_BATCH_TEXTS}")
    for number, text in enumerate(texts):
        check_text(f"texts[{number}]", text)
    times = StageTimes()
    infos = catalog.video_segments(video_id)
    segments = features.get(np.array([info.segment_id for info in infos], np.int64))
    if len(segments) < len(infos):
        raise VideoNotFoundError(video_id)  # Deleted between the two reads.
    model = encoder.model
    with times.measuring("encode"):
        encoded = encoder.encode(texts)
    with times.measuring("rerank"):
        total, parts, positions = _best_segments(model, encoded, segments)
        moments = _moments(model, encoded, segments, infos, positions)
    percentiles: Sequence[float | None] = [None] * len(texts)
    if baseline is not None:
        percentiles = baseline.percentiles("exhaustive", total)
    results = [
        RankedText(
            rank=rank,
            index=row,
            text=texts[row],
            score=float(total[row]),
            scores=named_scores(parts[row]),
            percentile=percentiles[row],
            segment=Segment(infos[positions[row]].start_seconds, infos[positions[row]].end_seconds),
            moments=moments[row],
        )
        for rank, row in enumerate(np.argsort(-total, kind="stable").tolist(), start=1)
    ]
    timings = TextTimings(times.seconds("encode"), times.seconds("rerank"), times.total_seconds)
    return TextsAnswer(video_id, [], timings, results)


@torch.inference_mode()
def _best_segments(
    model: XClip, texts: TextFeatures, segments: ScorableSegments
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """For each of T texts its highest total float32 [T], the four scores [T, 4], its segment's position."""
    best = np.full(len(texts), -np.inf, np.float32)
    parts = np.zeros((len(texts), len(SCORE_NAMES)), np.float32)
    positions = np.zeros(len(texts), np.int64)
    rows = np.arange(len(texts))
    for first in range(0, len(segments), _SEGMENTS_AT_ONCE):
        raise_if_cancelled()
        scores = model.score(texts, segments.videos[first : first + _SEGMENTS_AT_ONCE])
        total = scores.total.float().cpu().numpy()  # [T, V]
        four = np.stack([getattr(scores, name).float().cpu().numpy() for name in SCORE_NAMES], axis=2)
        nearest = total.argmax(axis=1)
        better = total[rows, nearest] > best
        best[better] = total[rows, nearest][better]
        parts[better] = four[rows, nearest][better]
        positions[better] = first + nearest[better]
    return best, parts, positions


@torch.inference_mode()
def _moments(
    model: XClip,
    texts: TextFeatures,
    segments: ScorableSegments,
    infos: Sequence[SegmentInfo],
    positions: NDArray[np.int64],
) -> list[list[Moment]]:
    """For each text the best frames of its best segment, at its position."""
    moments: list[list[Moment]] = [[] for _ in range(len(texts))]
    for position in np.unique(positions).tolist():
        rows = np.flatnonzero(positions == position).tolist()
        matches = (
            model.frame_matches(texts[rows], segments.videos[position : position + 1])[:, 0]
            .float()
            .cpu()
            .numpy()
        )
        for row, of_frames in zip(rows, matches, strict=True):
            moments[row] = best_moments(infos[position].frame_times, of_frames)
    return moments
