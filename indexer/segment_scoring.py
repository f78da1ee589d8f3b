"""From stored features to scores, moments and explanations, by the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.feature_memory import ScorableSegments
from indexer.ranking import ScoredSegments
from indexer.search_types import NUM_MOMENTS, Explanation, Moment
from model.features import SCORE_NAMES, TextFeatures

if TYPE_CHECKING:
    from model.xclip import XClip


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
