"""Text to videos: candidates from the coarse index, the full score on them, grouped into a page of
results."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.catalog import Catalog
from indexer.catalog_records import SegmentInfo, VideoRecord
from indexer.coarse_building import leave_room_for_searches
from indexer.coarse_index import CoarseIndex
from indexer.coarse_vectors import KindChoice
from indexer.errors import FingerprintMismatchError
from indexer.feature_memory import FeatureMemory, ScorableSegments
from indexer.filter_matches import FilterMatches
from indexer.filters import parse_filter
from indexer.fingerprint import index_fingerprint
from indexer.ranking import RunningBest, ScoredSegments, best, num_groups
from indexer.search_types import (
    Explanation,
    SearchAnswer,
    SearchQuery,
    SearchResult,
    Segment,
    Timings,
)
from indexer.segment_scoring import explain_segments, find_moments, score_segments
from model.features import SCORE_NAMES, TextFeatures

if TYPE_CHECKING:
    from model.xclip import XClip

__all__ = ["SearchAnswer", "SearchQuery", "SearchResult", "Searcher"]

logger = logging.getLogger(__name__)

MAX_TRIES = 5
"""Times a search starts again because videos that it found were deleted before the page was together."""

SPARE_RESULTS = 32
"""Results kept beyond the page's end, to stand in for deleted ones."""


class Searcher:
    """Searches one index with the model that made it. Safe to use from several threads.

    Every search first follows the catalog: videos that any process has committed are found, deleted ones are
        not.
    """

    def __init__(
        self,
        index_directory: str | Path,
        model: XClip,
        *,
        coarse_kind: KindChoice = "auto",
        block_size: int = 1024,
        feature_memory_bytes: int = 0,
    ) -> None:
        """Open an index.

        coarse_kind: of the coarse index, see `indexer.coarse_approximation`; `auto` goes by its size.
        block_size: segments scored at once; bounds memory (at 12 frames x 512, about 40 KB each).
        feature_memory_bytes: how much of what the full score reads is kept, see `indexer.feature_memory`.
        Raises IndexNotFoundError, IndexDamagedError, IndexVersionError, and FingerprintMismatchError where
        the index was made by another model.
        """
        if block_size < 1:
            raise ValueError("block_size is at least 1")
        self.catalog = Catalog.open(index_directory)
        self.model = model
        self._block_size = block_size
        self._closed = False
        self._can_save = True
        try:
            expected = index_fingerprint(model, self.catalog.sampling_json)
            if expected != self.catalog.fingerprint:
                raise FingerprintMismatchError(expected=expected, found=self.catalog.fingerprint)
            self._index = CoarseIndex.open(self.catalog, kind=coarse_kind)
            self._features = FeatureMemory(self.catalog, size_bytes=feature_memory_bytes, device=model.device)
            self._filter_matches = FilterMatches(self.catalog)
        except BaseException:
            self.catalog.close()
            raise
        self._upkeep_lock = threading.Lock()
        self._upkeep: threading.Thread | None = None
        self._keep_up()

    def close(self) -> None:
        """Finish saving, close the catalog. Searches raise RuntimeError from now on."""
        with self._upkeep_lock:
            self._closed = True
            upkeep = self._upkeep
        if upkeep is not None:
            upkeep.join()
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Searching

    def search(self, query: SearchQuery) -> SearchAnswer:
        """Answer a query. Raises IndexDamagedError, and RuntimeError after `close`."""
        started = time.perf_counter()
        stages = _Stages()
        with stages.measuring("encode"), torch.inference_mode():
            text = self.model.encode_text([query.text])
        for _ in range(MAX_TRIES):
            with stages.measuring("coarse"):
                self._index.follow()
            ranked, truncated = self._rank(query, text, stages)
            page, is_full = self._read_page(query, ranked)
            if is_full:
                break
        results = self._results(query, text, page)
        num_videos = self.catalog.num_videos
        self._keep_up()
        return SearchAnswer(
            query=query.text,
            mode=query.mode,
            num_videos=num_videos,
            truncated=truncated,
            warnings=self._warnings(query.text),
            timings=Timings(
                encode_seconds=stages.seconds["encode"],
                coarse_seconds=stages.seconds["coarse"],
                rerank_seconds=stages.seconds["rerank"],
                total_seconds=time.perf_counter() - started,
            ),
            results=results,
        )

    def _rank(self, query: SearchQuery, text: TextFeatures, stages: _Stages) -> tuple[ScoredSegments, bool]:
        """Results best first, at least up to the page's end where there are so many, and `truncated`."""
        allowed: NDArray[np.int64] | None = None
        if query.filter is not None:
            with stages.measuring("coarse"):
                allowed = self._filter_matches.segment_ids(parse_filter(query.filter))
        if query.mode == "exhaustive":
            ranked, truncated = self._rank_all(query, text, allowed, stages), False
        else:
            ranked, truncated = self._rank_candidates(query, text, allowed, stages)
        if query.min_score is not None:
            ranked = ranked[ranked.total >= query.min_score]
        return ranked, truncated

    def _rank_all(
        self, query: SearchQuery, text: TextFeatures, allowed: NDArray[np.int64] | None, stages: _Stages
    ) -> ScoredSegments:
        # A few more than the page needs stand in for those that are deleted meanwhile.
        running = RunningBest(query.num_wanted + SPARE_RESULTS, query.group_by)
        with stages.measuring("rerank"):
            segment_ids = self._index.segment_ids() if allowed is None else allowed
            for features in self._features.blocks(segment_ids, self._block_size):
                running.add(score_segments(self.model, text, features))
        return running.result()

    def _rank_candidates(
        self, query: SearchQuery, text: TextFeatures, allowed: NDArray[np.int64] | None, stages: _Stages
    ) -> tuple[ScoredSegments, bool]:
        with stages.measuring("coarse"), torch.inference_mode():
            coarse_query = self.model.coarse_query(text).float().cpu().numpy()
        scored, seen = ScoredSegments.none(), np.empty(0, np.int64)
        num_candidates = max(query.candidates, query.num_wanted)
        while True:
            with stages.measuring("coarse"):
                products, segment_ids = (
                    rows[0] for rows in self._index.search(coarse_query, num_candidates, allowed)
                )
                new = ~np.isin(segment_ids, seen)
            if query.mode == "coarse":
                with stages.measuring("coarse"):
                    more = self._score_coarsely(segment_ids[new], products[new])
            else:
                with stages.measuring("rerank"):
                    more = self._score_fully(segment_ids[new], text)
            scored, seen = ScoredSegments.cat([scored, more]), np.union1d(seen, segment_ids)
            # Many segments may belong to few videos: ask for more until the page is full or nothing is left.
            if len(segment_ids) < num_candidates or num_groups(scored, query.group_by) >= query.num_wanted:
                break
            num_candidates *= 2
        num_searched = self._index.num_segments if allowed is None else len(allowed)
        return best(scored, query.group_by), len(seen) < num_searched

    def _score_coarsely(
        self, segment_ids: NDArray[np.int64], products: NDArray[np.float32]
    ) -> ScoredSegments:
        infos = self.catalog.segment_infos(segment_ids)
        exists = np.array([segment_id in infos for segment_id in segment_ids.tolist()], bool)
        segment_ids = segment_ids[exists]
        total = products[exists] * np.float32(self.model.logit_scale_exp)
        parts = np.full((len(total), len(SCORE_NAMES)), np.nan, np.float32)
        parts[:, SCORE_NAMES.index("video_sentence")] = total
        numbers = np.array([infos[segment_id].video_number for segment_id in segment_ids.tolist()], np.int64)
        return ScoredSegments(segment_ids, numbers, total, parts)

    def _score_fully(self, segment_ids: NDArray[np.int64], text: TextFeatures) -> ScoredSegments:
        blocks = [ScoredSegments.none()]
        for first in range(0, len(segment_ids), self._block_size):
            features = self._features.get(segment_ids[first : first + self._block_size])
            blocks.append(score_segments(self.model, text, features))
        return ScoredSegments.cat(blocks)

    # The page

    def _read_page(self, query: SearchQuery, ranked: ScoredSegments) -> tuple[_Page, bool]:
        """What the catalog says about the results of the page; those deleted by now give way to the next.

        False where that left the page short, though a new search may find more.
        """
        num_deleted = 0
        while True:
            top = ranked[: query.num_wanted]
            hits = top[query.offset :]
            infos = self.catalog.segment_infos(top.segment_ids)
            features = self._features.get(hits.segment_ids)
            videos = self.catalog.get_videos([info.video_id for info in infos.values()])
            # Three readings, and a video may be deleted between any two of them.
            deleted = set(top.segment_ids.tolist()) - infos.keys()
            deleted |= set(hits.segment_ids.tolist()) - set(features.segment_ids.tolist())
            deleted |= {info.segment_id for info in infos.values() if info.video_id not in videos}
            if not deleted:
                in_order = [infos[segment_id] for segment_id in hits.segment_ids.tolist()]
                page = _Page(hits, features, in_order, [videos[info.video_id] for info in in_order])
                return page, num_deleted == 0 or len(top) == query.num_wanted
            num_deleted += len(deleted)
            ranked = ranked[~np.isin(ranked.segment_ids, list(deleted))]

    def _results(self, query: SearchQuery, text: TextFeatures, page: _Page) -> list[SearchResult]:
        times = [info.frame_times for info in page.infos]
        moments = find_moments(self.model, text, page.features, times)
        explanations: list[Explanation] | list[None] = [None] * len(times)
        if query.explain:
            explanations = explain_segments(self.model, query.text, text, page.features, times)
        return [
            SearchResult(
                id=video.id,
                segment_id=info.segment_id,
                rank=query.offset + place + 1,
                score=float(page.hits.total[place]),
                scores=_named_scores(page.hits.parts[place]),
                title=video.title,
                uri=video.uri,
                duration_seconds=video.duration_seconds,
                metadata=video.metadata,
                segment=Segment(info.start_seconds, info.end_seconds),
                moments=moments[place],
                explanation=explanations[place],
            )
            for place, (info, video) in enumerate(zip(page.infos, page.videos, strict=True))
        ]

    def _warnings(self, text: str) -> list[str]:
        warnings = []
        if unknown := self.model.unknown_words(text):
            warnings.append(f"the model does not know these words: {', '.join(unknown)}")
        num_tokens, num_read = self.model.tokenizer.num_tokens(text), self.model.num_words - 2
        if num_tokens > num_read:
            warnings.append(
                f"the query is too long: the model reads the first {num_read} of its {num_tokens} tokens"
            )
        return warnings

    # Facts and upkeep

    def stats(self) -> dict[str, Any]:
        """Numbers about the index, fit for JSON.

        num_videos, num_segments, sequence (last change), fingerprint, model_spec, embedding_dim, num_frames,
        score_names (the averaged scores), created_at (seconds since 1970), catalog_size_bytes (with its log),
        coarse_sequence (last change that searches see), coarse_num_segments, coarse_num_pending,
        coarse_kind.
        """
        catalog = self.catalog
        num_videos, num_segments = catalog.totals()
        return {
            "num_videos": num_videos,
            "num_segments": num_segments,
            "sequence": catalog.sequence,
            "fingerprint": catalog.fingerprint,
            "model_spec": catalog.model_spec,
            "embedding_dim": catalog.embedding_dim,
            "num_frames": catalog.num_frames,
            "score_names": list(self.model.score_names),
            "created_at": catalog.created_at,
            "catalog_size_bytes": catalog.size_bytes,
            "coarse_sequence": self._index.sequence,
            "coarse_num_segments": self._index.num_segments,
            "coarse_num_pending": self._index.num_pending,
            "coarse_kind": self._index.kind,
        }

    def _keep_up(self) -> None:
        """Compact and save the coarse index in a thread of its own, where it is time for it."""
        if not (self._index.needs_compaction or (self._can_save and self._index.needs_saving)):
            return
        with self._upkeep_lock:
            if self._closed or (self._upkeep is not None and self._upkeep.is_alive()):
                return
            self._upkeep = threading.Thread(target=self._do_upkeep, name="coarse-index-upkeep")
            self._upkeep.start()

    def _do_upkeep(self) -> None:
        leave_room_for_searches()
        if self._index.needs_compaction:
            self._index.compact()
        try:
            self._index.save()
        except OSError as error:
            # Only the next start is slower for it.
            self._can_save = False
            logger.warning("the coarse index of %s cannot be saved: %s", self.catalog.directory, error)


@dataclass(frozen=True, eq=False)
class _Page:
    """What is needed to show the results of a page, all in its order."""

    hits: ScoredSegments
    features: ScorableSegments
    infos: list[SegmentInfo]
    videos: list[VideoRecord]


class _Stages:
    """Seconds spent in each stage of a search, which may come by turns."""

    def __init__(self) -> None:
        self.seconds = {"encode": 0.0, "coarse": 0.0, "rerank": 0.0}

    @contextlib.contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


def _named_scores(parts: NDArray[np.float32]) -> dict[str, float | None]:
    return {
        name: None if np.isnan(part) else float(part) for name, part in zip(SCORE_NAMES, parts, strict=True)
    }
