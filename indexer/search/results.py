"""From scored segments to results: what the catalog says of a page, and the model's scores, moments and
explanations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer.features.scorable import ScorableSegments, SegmentsInPlace
from indexer.search.folding import Results, read_copies
from indexer.search.ordering import ScoredSegments
from indexer.search.types import (
    DEFAULT_MOMENTS,
    NOT_WEIGHT,
    Copy,
    Explanation,
    Match,
    Moment,
    SearchResult,
    Segment,
)
from indexer.store.cancellation import raise_if_cancelled
from indexer.store.records import SegmentInfo, VideoRecord
from indexer.store.store import SearchedStore
from model.features import TextFeatures
from model.score_names import SCORE_NAMES
from model.tokenization import words_of

if TYPE_CHECKING:
    from model.xclip import XClip

_FUNCTION_WORDS = frozenset(
    (
        "a",
        "an",
        "the",
        "and",
        "of",
        "in",
        "on",
        "at",
        "to",
        "from",
        "by",
        "with",
        "is",
        "are",
        "it",
        "its",
        "that",
    )
)


@dataclass(frozen=True, eq=False)
class Page:
    """What is needed to show the results of a page, all in its order.

    copies, num_copies: what was folded into each, and how much was. has_gaps: results in front of the page's
    end were deleted, so that a page which is not full may have missed some.
    """

    hits: ScoredSegments
    features: ScorableSegments
    records: Sequence[tuple[SegmentInfo, VideoRecord]]
    copies: Sequence[Sequence[Copy]]
    num_copies: Sequence[int]
    has_gaps: bool

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def frame_times(self) -> list[NDArray[np.float64]]:
        """For each result the times of its segment's frames, in seconds."""
        return [info.frame_times for info, _ in self.records]


@dataclass(frozen=True)
class Relevance:
    """Of each result of a page `SearchResult.percentile` and `match`."""

    percentiles: Sequence[float | None]
    matches: Sequence[Match | None]


def read_page(
    results: Results,
    page: slice,
    catalog: SearchedStore,
    read_features: Callable[[NDArray[np.int64]], ScorableSegments],
) -> Page:
    """What the catalog says about the results of a page; those deleted by now are replaced by the next.

    read_features: as `FeatureReader.get`.
    """
    ordered, has_gaps = results.ordered, False
    while True:
        hits = ordered[page]
        ids = hits.segment_ids
        records = catalog.segments_and_videos(ids)
        read = read_features(ids)
        # Two reads, and a video may be deleted between them.
        present = [segment_id for segment_id in read.segment_ids.tolist() if segment_id in records]
        if len(present) == len(ids):
            of_page = [records[segment_id] for segment_id in present]
            counts = [len(results.copies.get(segment_id, ())) for segment_id in present]
            copies: list[list[Copy]] = [[] for _ in present]
            if results.copies:
                copies = read_copies(catalog, results, present)
            return Page(hits, read, of_page, copies, counts, has_gaps)
        has_gaps = True
        ordered = ordered.without(np.setdiff1d(ids, present))


def make_results(
    page: Page,
    moments: Sequence[Sequence[Moment]],
    *,
    first_rank: int,
    relevance: Relevance | None = None,
    explanations: Sequence[Explanation] | None = None,
) -> list[SearchResult]:
    """The results of a page. moments, relevance, explanations: in its order; None where there are none."""
    return [
        SearchResult(
            id=video.id,
            segment_id=info.segment_id,
            rank=first_rank + row,
            score=float(page.hits.total[row]),
            scores=named_scores(page.hits.parts[row]),
            title=video.title,
            uri=video.uri,
            duration_seconds=video.duration_seconds,
            recorded_at=video.recorded_at,
            metadata=video.metadata,
            segment=Segment(info.start_seconds, info.end_seconds),
            moments=moments[row],
            explanation=None if explanations is None else explanations[row],
            percentile=None if relevance is None else relevance.percentiles[row],
            match=None if relevance is None else relevance.matches[row],
            media_start_seconds=video.media_start_seconds,
            copies=page.copies[row],
            num_copies=page.num_copies[row],
        )
        for row, (info, video) in enumerate(page.records)
    ]


def named_scores(parts: NDArray[np.float32]) -> dict[str, float | None]:
    """The four scores by name; None for NaN. parts: float32 [4]."""
    return {
        name: None if np.isnan(part) else float(part) for name, part in zip(SCORE_NAMES, parts, strict=True)
    }


@dataclass(frozen=True, eq=False)
class AskedTexts:
    """The text of a query, and perhaps one that is not wanted, whose scores are subtracted.

    features: of T = 1 or 2 texts, the wanted one first.
    """

    features: TextFeatures

    @property
    def wanted(self) -> TextFeatures:
        """Of the query alone, T = 1."""
        return self.features[:1]

    def combine(self, rows: Tensor) -> Tensor:
        """What holds for the query, [...], of what holds for each of its texts, float [T, ...]."""
        return rows[0] if len(rows) == 1 else rows[0] - NOT_WEIGHT * rows[1]


@torch.inference_mode()
def score_segments(
    model: XClip,
    asked: AskedTexts,
    features: ScorableSegments | SegmentsInPlace,
    wanted: Collection[str],
) -> ScoredSegments:
    """The wanted scores of a query with N segments, and their total where they suffice for it."""
    if not len(features):
        return ScoredSegments.none()
    scores = model.score(asked.features, features.videos, wanted)
    columns = [asked.combine(getattr(scores, name)) for name in (*SCORE_NAMES, "total")]
    table = torch.stack(columns, dim=1).float().cpu().numpy()
    return ScoredSegments(features.segment_ids, features.video_keys, table[:, -1], table[:, :-1])


def complete_scores(model: XClip, asked: AskedTexts, page: Page) -> Page:
    """The page with all scores of its results, also those that the total does not need, and with the total of
    results from behind the rerank window. What is known already stays: the order was made by it."""
    hits = page.hits
    is_unknown = np.isnan(hits.parts)
    unknown = np.flatnonzero(is_unknown.any(axis=1))
    if not len(unknown):
        return page
    # Of a result without a total no score is known, so that what is missing suffices for one.
    missing = [name for name, column in zip(SCORE_NAMES, is_unknown.T, strict=True) if column.any()]
    # Mostly of all results, whose features need no copy.
    features = page.features if len(unknown) == len(page) else page.features[unknown]
    scored = score_segments(model, asked, features, missing)
    total, parts = hits.total.copy(), hits.parts.copy()
    total[unknown] = np.where(np.isnan(total[unknown]), scored.total, total[unknown])
    parts[unknown] = np.where(np.isnan(parts[unknown]), scored.parts, parts[unknown])
    return replace(page, hits=replace(hits, total=total, parts=parts))


@torch.inference_mode()
def find_moments(
    model: XClip,
    text: TextFeatures,
    features: ScorableSegments,
    frame_times: Sequence[NDArray[np.float64]],
    num_moments: int = DEFAULT_MOMENTS,
) -> list[list[Moment]]:
    """For each of N segments its best real frames, best first, no time twice, at most `num_moments`.

    frame_times: for each segment float64 [num_frames], seconds.
    """
    if not len(features):
        return []
    matches = model.frame_matches(text, features.videos)[0].float().cpu().numpy()
    return [best_moments(times, row, num_moments) for times, row in zip(frame_times, matches, strict=True)]


def best_moments(
    times: NDArray[np.float64], matches: NDArray[np.float32], num_moments: int = DEFAULT_MOMENTS
) -> list[Moment]:
    """The best of the frames at `times`, best first, no time twice, at most `num_moments`.

    matches: one for each time, and perhaps more for padding.
    """
    found: dict[float, float] = {}
    for frame in np.argsort(-matches[: len(times)], kind="stable"):
        found.setdefault(float(times[frame]), float(matches[frame]))
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
    tokens = model.tokenizer.pieces(query)[: model.config.num_words]
    return [
        Explanation(tokens, times.tolist(), table[: len(tokens), : len(times)].tolist())
        for times, table in zip(frame_times, similarity, strict=True)
    ]


def text_warnings(model: XClip, text: str) -> list[str]:
    """Sentences about one query."""
    warnings = _about_unknown_words(model, [text])
    num_tokens, num_read = model.tokenizer.num_tokens(text), model.tokenizer.num_read
    if num_tokens > num_read:
        warnings.append(
            f"the query is too long: the model reads the first {num_read} of its {num_tokens} tokens"
        )
    if model.tokenizer.seems_foreign(text):
        warnings.append("the query does not look like English, the language that the model was trained on")
    return warnings


def texts_warnings(model: XClip, texts: Sequence[str]) -> list[str]:
    """Sentences about many texts together."""
    warnings = _about_unknown_words(model, texts)
    num_read = model.tokenizer.num_read
    num_cut = sum(model.tokenizer.num_tokens(text) > num_read for text in texts)
    if num_cut:
        warnings.append(f"{num_cut} of the texts are too long: the model reads their first {num_read} tokens")
    num_foreign = sum(model.tokenizer.seems_foreign(text) for text in texts)
    if num_foreign:
        warnings.append(
            f"{num_foreign} of the texts do not look like English, the language that the model was trained on"
        )
    return warnings


def knows_what_is_asked(model: XClip, text: str) -> bool:
    """False for a text of which the model knows nothing but articles, prepositions and the like."""
    unknown = {word.lower() for word in model.unknown_words(text)}
    if not unknown:
        return True
    return bool(set(words_of(text)) - unknown - _FUNCTION_WORDS)


def _about_unknown_words(model: XClip, texts: Sequence[str]) -> list[str]:
    unknown: dict[str, None] = {}
    for text in texts:
        raise_if_cancelled()
        unknown |= dict.fromkeys(model.unknown_words(text))
    return [f"the model does not know these words: {', '.join(unknown)}"] if unknown else []
