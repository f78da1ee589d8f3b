"""Text to videos: candidates from the coarse index, the full score on them, grouped into pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.coarse.exact import KindChoice
from indexer.coarse.index import CoarseIndex
from indexer.errors import FingerprintMismatchError
from indexer.ingest.encoding import index_fingerprint
from indexer.search.background import Background, BackgroundScores
from indexer.search.cancellation import raise_if_cancelled
from indexer.search.feature_cache import FeatureMemory
from indexer.search.filter_cache import FilterMatches
from indexer.search.ordering import (
    SPARE_CANDIDATES,
    CandidateTiers,
    CoarseOrder,
    ExhaustiveOrder,
    Ordered,
    OrderedResults,
    ScoredSegments,
    first_num_tiers,
    order_candidates,
)
from indexer.search.refresh import IndexUpkeep
from indexer.search.results import (
    Page,
    explain_segments,
    find_moments,
    make_results,
    read_page,
    score_segments,
)
from indexer.search.search_cursor import RELATIVE_TOLERANCE, Cursor, Horizon, Place
from indexer.search.similar import find_similar
from indexer.search.text_ranking import rank_texts, text_warnings
from indexer.search.types import (
    SearchAnswer,
    SearchAnswers,
    SearchQuery,
    SearchResult,
    SimilarAnswer,
    StageTimes,
    TextsAnswer,
    Timings,
    check_batch,
    check_page,
)
from indexer.store.filters import parse_filter
from indexer.store.sqlite.catalog import Catalog
from model.features import SCORE_NAMES, TextFeatures

if TYPE_CHECKING:
    from model.xclip import XClip

__all__ = ["SearchAnswer", "SearchQuery", "SearchResult", "Searcher"]

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

        coarse_kind: of the coarse index, see `indexer.coarse.approximate`; `auto` goes by its size.
        block_size: segments scored at once; bounds memory (at 12 frames x 512, about 40 KB each).
        feature_memory_bytes: how much of what the full score reads is kept, see
        `indexer.search.feature_cache`.
        Raises IndexNotFoundError, IndexDamagedError, IndexVersionError, and FingerprintMismatchError where
        the index was made by another model.
        """
        if block_size < 1:
            raise ValueError("block_size is at least 1")
        self.catalog = Catalog.open(index_directory)
        self.model = model
        self._block_size = block_size
        try:
            expected = index_fingerprint(model, self.catalog.sampling_json)
            if expected != self.catalog.fingerprint:
                raise FingerprintMismatchError(expected=expected, found=self.catalog.fingerprint)
            self._index = CoarseIndex.open(self.catalog, kind=coarse_kind, device=model.device)
            self._features = FeatureMemory(self.catalog, size_bytes=feature_memory_bytes, device=model.device)
            self._filter_matches = FilterMatches(self.catalog)
        except BaseException:
            self.catalog.close()
            raise
        self._background = BackgroundScores(model, self._index, self._features)
        self._upkeep = IndexUpkeep(self._index, self._background, self.catalog.directory)
        self._upkeep.start_where_needed(after_search=False)

    def close(self) -> None:
        """Finish saving, close the catalog. Searches raise RuntimeError from now on."""
        self._upkeep.close()
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Searching

    def search(self, query: SearchQuery) -> SearchAnswer:
        """Answer a query. Raises InvalidCursorError, IndexDamagedError, and RuntimeError after `close`."""
        return self.search_all([query]).answers[0]

    def search_all(self, queries: Sequence[SearchQuery]) -> SearchAnswers:
        """The answers that `search` gives to each query, quicker: the texts go through the model together.

        queries: 1 to MAX_BATCH_TEXTS, which differ in their texts alone; one with a cursor stands alone. Each
        answer's timings count an equal share of what was done for all. Raises InvalidQueryError and what
        `search` raises.
        """
        check_batch(queries)
        together = StageTimes()
        with together.measuring("encode"), torch.inference_mode():
            texts = self.model.encode_text([query.text for query in queries])
            vectors = self.model.coarse_query(texts).float().cpu().numpy()
        # Before following the catalog: whatever is below the horizon is then known to the coarse index.
        start = self._start(queries[0])
        first: Sequence[Ordered | None] = [None] * len(queries)
        with together.measuring("coarse"):
            self._index.follow()
            allowed = self._allowed(queries[0])
            if len(queries) > 1 and queries[0].mode != "exhaustive":
                num_tiers = first_num_tiers(queries[0].num_wanted + 1, queries[0].candidates)
                count = self._tiers(queries[0], vectors[0], allowed, start).num_needed(num_tiers)
                products, ids = self._index.search(vectors, count + SPARE_CANDIDATES, allowed)
                first = list(zip(products, ids, strict=True))
        shared = together.total_seconds / len(queries)
        answers: list[SearchAnswer] = []
        for row, query in enumerate(queries):
            raise_if_cancelled()
            stages = StageTimes()
            for stage in ("encode", "coarse"):
                stages.add(stage, together.seconds(stage) / len(queries))
            one = _Search(query, texts[row : row + 1], vectors[row], allowed, start, stages)
            answers.append(self._answer(one, first[row], shared))
        self._upkeep.start_where_needed(after_search=True)
        parts = [answer.timings for answer in answers]
        timings = Timings(
            encode_seconds=together.seconds("encode"),
            coarse_seconds=sum(part.coarse_seconds for part in parts),
            rerank_seconds=sum(part.rerank_seconds for part in parts),
            total_seconds=together.total_seconds,
        )
        return SearchAnswers(answers, timings)

    def _start(self, query: SearchQuery) -> _Start:
        if query.cursor is not None:
            cursor = Cursor.from_text(query.cursor, query, self.catalog)
            return _Start(cursor.horizon, cursor.least_score, cursor.place, self._background.now)
        background, least_score = self._background.now, query.min_score
        horizon = Horizon.of(self.catalog)
        if query.min_percentile is not None:
            self._index.follow()
            background = self._background.make(only_first=True)
            of_percentile = background.least_score(query.mode, query.min_percentile)
            if of_percentile is not None:
                least_score = of_percentile if least_score is None else max(of_percentile, least_score)
        return _Start(horizon, least_score, None, background)

    def _answer(self, search: _Search, known: Ordered | None, shared_seconds: float) -> SearchAnswer:
        query, stages = search.query, search.stages
        for attempt in range(MAX_TRIES):
            if attempt > 0:  # What was deleted left the page short: a new search may find more.
                known = None
                with stages.measuring("coarse"):
                    search = self._anew(search)
            ordered = self._order(search, known)
            page, ordered, had_deleted = read_page(
                ordered, query.offset, query.limit, self.catalog, self._features
            )
            if not had_deleted or len(page) == query.limit:
                break
        start = search.start
        num_given = 0 if start.place is None else start.place.num_results
        moments = find_moments(self.model, search.text, page.features, page.frame_times, query.num_moments)
        percentiles: Sequence[float | None] = [None] * len(page)
        if start.background is not None:
            percentiles = start.background.percentiles(query.mode, page.hits.total)
        explanations = None
        if query.explain:
            explanations = explain_segments(
                self.model, query.text, search.text, page.features, page.frame_times
            )
        results = make_results(
            page,
            moments,
            first_rank=num_given + query.offset + 1,
            percentiles=percentiles,
            explanations=explanations,
        )
        warnings = text_warnings(self.model, query.text)
        if query.min_percentile is not None and start.background is not None and start.background.is_empty:
            warnings.append("the index is too small for percentiles: nothing was left out by min_percentile")
        num_searched = self._index.num_segments if search.allowed is None else len(search.allowed)
        return SearchAnswer(
            query=query.text,
            mode=query.mode,
            num_videos=self.catalog.num_videos,
            truncated=query.mode != "exhaustive" and ordered.num_looked_at < num_searched,
            warnings=warnings,
            timings=Timings(
                encode_seconds=stages.seconds("encode"),
                coarse_seconds=stages.seconds("coarse"),
                rerank_seconds=stages.seconds("rerank"),
                total_seconds=shared_seconds + stages.total_seconds,
            ),
            results=results,
            next=self._next(search, ordered, page),
        )

    def _anew(self, search: _Search) -> _Search:
        """The search on what there is now. Further pages stay with what there was at the first."""
        query, start = search.query, search.start
        if query.cursor is None:
            start = replace(start, horizon=Horizon.of(self.catalog))
        self._index.follow()
        return replace(search, start=start, allowed=self._allowed(query))

    def _allowed(self, query: SearchQuery) -> NDArray[np.int64] | None:
        """Ids of the segments that the query's filter lets through, or None where it has none."""
        return None if query.filter is None else self._filter_matches.segment_ids(parse_filter(query.filter))

    def _next(self, search: _Search, ordered: OrderedResults, page: Page) -> str | None:
        num_given = search.query.offset + len(page)
        if not len(page) or len(ordered) <= num_given:
            return None
        cursor = Cursor(search.start.horizon, search.start.least_score, ordered.place_behind(num_given))
        return cursor.to_text(search.query, self.catalog.fingerprint)

    # The order

    def _order(self, search: _Search, known: Ordered | None) -> OrderedResults:
        """Results best first, at least one more than the page's end where there are so many."""
        query, start = search.query, search.start
        tolerance = RELATIVE_TOLERANCE * self.model.logit_scale_exp
        if query.mode == "exhaustive":
            # A few more than the page needs stand in for those that are deleted meanwhile.
            keep = query.num_wanted + 1 + SPARE_RESULTS
            everything = ExhaustiveOrder(keep, query.group_by, start.place, tolerance)
            with search.stages.measuring("rerank"):
                ids = self._index.segment_ids() if search.allowed is None else search.allowed
                ids = ids[ids <= start.horizon.max_segment_id]
                for features in self._features.blocks(ids, self._block_size):
                    raise_if_cancelled()
                    everything.add(score_segments(self.model, search.text, features))
            return everything.result(start.least_score)
        tiers = self._tiers(query, search.vector, search.allowed, start)
        if query.mode == "coarse":
            tolerance = self.model.logit_scale_exp * RELATIVE_TOLERANCE * float(np.linalg.norm(search.vector))
        before = search.stages.seconds("rerank")
        with search.stages.measuring("coarse"):
            ordered = order_candidates(
                tiers,
                query.candidates,
                partial(self._score_coarsely if query.mode == "coarse" else self._score_fully, search),
                self.catalog,
                num_wanted=query.num_wanted + 1,
                group_by=query.group_by,
                least_score=start.least_score,
                place=start.place,
                tolerance=tolerance,
                known=known,
            )
        search.stages.add("coarse", before - search.stages.seconds("rerank"))
        return ordered

    def _tiers(
        self,
        query: SearchQuery,
        vector: NDArray[np.float32],
        allowed: NDArray[np.int64] | None,
        start: _Start,
    ) -> CandidateTiers:
        order = CoarseOrder(self._index, vector, allowed, start.horizon.max_segment_id)
        return CandidateTiers(order, query.candidates, start.place)

    def _score_coarsely(
        self, search: _Search, segment_ids: NDArray[np.int64], products: NDArray[np.float32]
    ) -> ScoredSegments:
        infos = self.catalog.segment_infos(segment_ids)
        exists = np.array([segment_id in infos for segment_id in segment_ids.tolist()], bool)
        segment_ids = segment_ids[exists]
        total = products[exists] * np.float32(self.model.logit_scale_exp)
        parts = np.full((len(total), len(SCORE_NAMES)), np.nan, np.float32)
        parts[:, SCORE_NAMES.index("video_sentence")] = total
        numbers = np.array([infos[segment_id].video_number for segment_id in segment_ids.tolist()], np.int64)
        return ScoredSegments(segment_ids, numbers, total, parts)

    def _score_fully(
        self, search: _Search, segment_ids: NDArray[np.int64], products: NDArray[np.float32]
    ) -> ScoredSegments:
        blocks = [ScoredSegments.none()]
        with search.stages.measuring("rerank"):
            for first in range(0, len(segment_ids), self._block_size):
                raise_if_cancelled()
                features = self._features.get(segment_ids[first : first + self._block_size])
                blocks.append(score_segments(self.model, search.text, features))
        return ScoredSegments.cat(blocks)

    # Other searches

    def similar(
        self, video_id: str, *, limit: int = 10, offset: int = 0, filter: Mapping[str, Any] | None = None
    ) -> SimilarAnswer:
        """Videos that look like a video of the index, best first, see `indexer.search.similar`.

        limit, offset, filter: as in `SearchQuery`. Raises VideoNotFoundError, InvalidQueryError.
        """
        check_page(limit, offset)
        chosen = None if filter is None else parse_filter(filter)
        self._index.follow()
        allowed = None if chosen is None else self._filter_matches.segment_ids(chosen)
        answer = find_similar(
            self.catalog,
            self._index,
            self._features,
            video_id,
            limit=limit,
            offset=offset,
            allowed=allowed,
        )
        self._upkeep.start_where_needed(after_search=False)
        return answer

    def rank_texts(
        self, video_id: str, texts: Sequence[str], *, warn_of: Sequence[str] | None = None
    ) -> TextsAnswer:
        """Texts by how well they fit a video: each by the full score with the video's best segment for it.

        texts: 1 to MAX_BATCH_TEXTS, each as in `SearchQuery`. warn_of: the texts that warnings are about, by
        default these. Raises VideoNotFoundError, InvalidQueryError.
        """
        scored = (self.model, self.catalog, self._features, self._background.now)
        answer = rank_texts(*scored, video_id, texts, texts if warn_of is None else warn_of)
        self._index.follow()
        self._upkeep.start_where_needed(after_search=True)
        return answer

    # Facts and upkeep

    def stats(self) -> dict[str, Any]:
        """Numbers about the index, fit for JSON: num_videos, num_segments, sequence (last change),
        fingerprint, model_spec, embedding_dim, num_frames, score_names (the averaged scores), created_at
        (seconds since 1970), catalog_size_bytes (with its log), coarse_sequence (last change that searches
        see), coarse_num_segments, coarse_num_pending, coarse_kind, feature_memory_bytes.
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
            "score_names": list(self.model.config.score_names),
            "created_at": catalog.created_at,
            "catalog_size_bytes": catalog.size_bytes,
            "coarse_sequence": self._index.sequence,
            "coarse_num_segments": self._index.num_segments,
            "coarse_num_pending": self._index.num_pending,
            "coarse_kind": self._index.kind,
            "feature_memory_bytes": self._features.held_bytes,
        }

    def prepare(self) -> None:
        """Do now what the first searches would otherwise wait for or go without: the background scores."""
        self._index.follow()
        self._background.make(only_first=True)


@dataclass(frozen=True, eq=False)
class _Start:
    """Where a search begins. least_score: what min_score and min_percentile come to."""

    horizon: Horizon
    least_score: float | None
    place: Place | None
    background: Background | None


@dataclass(frozen=True, eq=False)
class _Search:
    """One query on its way. vector: float32 [D], the coarse query. allowed: what its filter lets through."""

    query: SearchQuery
    text: TextFeatures
    vector: NDArray[np.float32]
    allowed: NDArray[np.int64] | None
    start: _Start
    stages: StageTimes
