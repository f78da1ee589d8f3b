"""Searches in plain Python and NumPy: what an answer has to be, from a dict of videos and float64 sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.search.types import SearchAnswer, SearchQuery, SearchResult
from model import XClip
from model.score_names import SCORE_NAMES

Array = NDArray[np.float64]

SAME_SCORE = 2e-3
"""Scores, which reach 100, are the same within this: float32 and float16 against float64. Different ones in
these tests are further apart, but for a few that may then come in any order."""


@dataclass(frozen=True, eq=False)
class PlainSegment:
    """Features as they are stored: video [D], frames [F, D], the first `num_frames` of them real."""

    video: NDArray[np.float32]
    frames: NDArray[np.float16]
    num_frames: int


@dataclass(eq=False)
class PlainVideo:
    """What is in the catalog of a video. segments: segment id to (start in seconds, features)."""

    id: str
    title: str | None
    metadata: Mapping[str, Any]
    duration_seconds: float
    segments: dict[int, tuple[float, PlainSegment]] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """A result: segments of the same rank may stand for each other.

    is_reranked: in the rerank window. order_by: what results of its part are ordered by, the score or behind
    the window the coarse product. segment_ids: those of the video that are the best, within SAME_SCORE.
    """

    is_reranked: bool
    order_by: float
    score: float
    video_id: str
    segment_ids: frozenset[int]


class PlainScores:
    """All scores of a model, pair by pair (the formulas of arXiv:2207.07285 sections 3.2 to 3.4)."""

    def __init__(self, model: XClip) -> None:
        self._model = model
        self._scale = model.logit_scale_exp
        self._matrices = {name: _float64(value) for name, value in model.matrices.named_parameters()}
        self._texts: dict[str, tuple[Array, Array, NDArray[np.bool_], NDArray[np.float32]]] = {}
        self._scores: dict[tuple[str, PlainSegment], tuple[dict[str, float], Array]] = {}

    def coarse_product(self, text: str, segment: PlainSegment) -> np.float32:
        """As the coarse index computes it, but for float32 rounding."""
        query = self._text(text)[3]
        return np.float32((segment.video.astype(np.float64) * query.astype(np.float64)).sum())

    def scores(self, text: str, segment: PlainSegment) -> dict[str, float]:
        """The four scores and `total`."""
        return self._score(text, segment)[0]

    def frame_matches(self, text: str, segment: PlainSegment) -> Array:
        """How well each real frame matches."""
        return self._score(text, segment)[1]

    def _text(self, text: str) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.float32]]:
        if text not in self._texts:
            with torch.inference_mode():
                features = self._model.encode_text([text])
                query = self._model.coarse_query(features)[0].float().numpy()
            mask = features.word_mask[0].numpy()
            self._texts[text] = _float64(features.sentence[0]), _float64(features.words[0]), mask, query
        return self._texts[text]

    def _score(self, text: str, segment: PlainSegment) -> tuple[dict[str, float], Array]:
        key = (text, segment)
        if key not in self._scores:
            self._scores[key] = self._compute(text, segment)
        return self._scores[key]

    def _compute(self, text: str, segment: PlainSegment) -> tuple[dict[str, float], Array]:
        sentence, words, word_mask, _ = self._text(text)
        video, frames = segment.video.astype(np.float64), segment.frames.astype(np.float64)
        frame_mask = np.arange(len(frames)) < segment.num_frames
        of = self._matrices
        similarity = words @ of["local_matrix"] @ frames.T  # [W, F]
        per_word = np.array([_attend(row, of["frame"], frame_mask) for row in similarity])
        per_frame = np.array([_attend(column, of["word"], word_mask) for column in similarity.T])
        by_words = _attend(per_word, of["word_second"], word_mask)
        by_frames = _attend(per_frame, of["frame_second"], frame_mask)
        scores = {
            "video_sentence": float(sentence @ of["global_matrix"] @ video),
            "video_word": _attend(words @ video, of["word_logit"], word_mask),
            "sentence_frame": _attend(frames @ sentence, of["frame_logit"], frame_mask),
            "frame_word": (by_words + by_frames) / 2,
        }
        scores = {name: self._scale * score for name, score in scores.items()}
        scores["total"] = sum(scores.values()) / 4
        matches = self._scale * (frames @ sentence + per_frame) / 2
        return scores, matches[: segment.num_frames]


def _float64(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().double().numpy()
    return array


def _attend(similarity: Array, matrix: Array, mask: NDArray[np.bool_]) -> float:
    """AOSM at temperature 0.01 over what `mask` lets through."""
    weights = np.where(mask, np.exp((similarity - similarity[mask].max()) / 0.01), 0)
    return float(weights / weights.sum() @ matrix @ np.where(mask, similarity, 0))


def settled_candidates(
    scores: PlainScores,
    videos: Mapping[str, PlainVideo],
    texts: Sequence[str],
    candidates: int,
    fulfils: Callable[[PlainVideo], bool],
) -> int:
    """`candidates`, raised until no text's window ends between segments of one coarse product: which of those
    are in it is not said."""
    segments = [s for video in videos.values() if fulfils(video) for _, s in video.segments.values()]
    settled = 0
    while settled != candidates:  # Raised for one text, it may end between equals of another.
        settled = candidates
        for text in texts:
            products = sorted((float(scores.coarse_product(text, s)) for s in segments), reverse=True)
            while candidates < len(products) and products[candidates - 1] - products[candidates] < 1e-5:
                candidates += 1
    return candidates


def expected_results(
    scores: PlainScores,
    videos: Mapping[str, PlainVideo],
    query: SearchQuery,
    fulfils: Callable[[PlainVideo], bool],
) -> list[Expected]:
    """All results of a query, on all its pages, in order. fulfils: what its filter says."""
    segments = {
        segment_id: (video, segment)
        for video in videos.values()
        if fulfils(video)
        for segment_id, (_, segment) in video.segments.items()
    }
    product = {i: float(scores.coarse_product(query.text, segment)) for i, (_, segment) in segments.items()}
    by_product = sorted(segments, key=lambda i: (-product[i], i))
    num_reranked = query.candidates if query.mode == "rerank" else len(segments)
    name = "video_sentence" if query.mode == "coarse" else "total"
    score = {i: scores.scores(query.text, segment)[name] for i, (_, segment) in segments.items()}
    found: list[Expected] = []
    for is_reranked, ids, order_by in (
        (True, by_product[:num_reranked], score),
        (False, by_product[num_reranked:], product),
    ):
        if not is_reranked and query.min_score is not None:
            break
        seen = {result.video_id for result in found}
        groups: dict[Any, list[int]] = {}
        for segment_id in ids:
            video_id = segments[segment_id][0].id
            if query.group_by == "segment" or video_id not in seen:
                group = video_id if query.group_by == "video" else segment_id
                groups.setdefault(group, []).append(segment_id)
        part = []
        for of_group in groups.values():
            first = max(of_group, key=order_by.__getitem__)
            if query.min_score is None or score[first] >= query.min_score:
                best = frozenset(i for i in of_group if order_by[i] > order_by[first] - SAME_SCORE)
                part.append(Expected(is_reranked, order_by[first], score[first], segments[first][0].id, best))
        found += sorted(part, key=lambda result: -result.order_by)
    return found


def assert_page(
    answer: SearchAnswer,
    expected: Sequence[Expected],
    query: SearchQuery,
    scores: PlainScores,
    videos: Mapping[str, PlainVideo],
) -> None:
    """The answer is the page of `expected` that is asked for; results of the same score in any order."""
    wanted = expected[query.offset : query.offset + query.limit]
    assert answer.num_videos == len(videos)
    assert len(answer.results) == len(wanted), (query, len(answer.results), len(wanted))
    if query.mode == "exhaustive":
        assert not answer.truncated
    given: set[Any] = set()
    for rank, (result, right) in enumerate(zip(answer.results, wanted, strict=True), query.offset + 1):
        assert result.rank == rank
        assert abs(result.score - right.score) < SAME_SCORE, (query, rank, result.score, right)
        alike = [
            other
            for other in expected
            if other.is_reranked == right.is_reranked
            and abs(other.order_by - right.order_by) < 2 * SAME_SCORE
        ]
        assert any(result.segment_id in other.segment_ids for other in alike), (query, rank, result, alike)
        given.add(result.id if query.group_by == "video" else result.segment_id)
        assert_result(result, query, scores, videos)
    assert len(given) == len(wanted), "nothing comes twice"


def assert_result(
    result: SearchResult, query: SearchQuery, scores: PlainScores, videos: Mapping[str, PlainVideo]
) -> None:
    """What a result says of its video and segment is right."""
    video = videos[result.id]
    start, segment = video.segments[result.segment_id]
    assert (result.title, dict(result.metadata)) == (video.title, dict(video.metadata))
    assert (result.duration_seconds, result.segment.start_seconds) == (video.duration_seconds, start)
    of_segment = scores.scores(query.text, segment)
    for name in SCORE_NAMES:
        reported = result.scores[name]
        if query.mode == "coarse" and name != "video_sentence":
            assert reported is None
        else:
            assert reported is not None and abs(reported - of_segment[name]) < SAME_SCORE, (name, of_segment)
    assert (
        abs(result.score - of_segment["video_sentence" if query.mode == "coarse" else "total"]) < SAME_SCORE
    )
    matches = scores.frame_matches(query.text, segment)
    reported_times = [moment.time_seconds for moment in result.moments]
    assert len(set(reported_times)) == len(reported_times) == min(query.num_moments, segment.num_frames)
    for moment, best in zip(result.moments, sorted(matches, reverse=True), strict=False):
        assert abs(moment.score - best) < SAME_SCORE
        assert abs(matches[round(moment.time_seconds - start)] - moment.score) < SAME_SCORE
