"""Text to videos: candidates from the coarse index, the full score on them, grouped into pages.

Between searches a background thread keeps what they use in order (`IndexRefresher`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.coarse.exact import KindChoice, SegmentSet
from indexer.coarse.index import CoarseIndex
from indexer.errors import FingerprintMismatchError, IndexUnavailableError
from indexer.features import Precision
from indexer.features.reader import FeatureReader
from indexer.features.scorable import ScorableSegments, SegmentsInPlace
from indexer.ingest.encoding import index_fingerprint
from indexer.search.baseline import Baseline, BaselineScores, match_of_probability
from indexer.search.folding import LOOK_AHEAD, Results, fold_results
from indexer.search.ordering import (
    CoarseHits,
    CoarseOrder,
    ScoredSegments,
    best_of_blocks,
    num_coarse_hits,
    order_candidates,
)
from indexer.search.refreshing import IndexRefresher
from indexer.search.results import (
    AskedTexts,
    Page,
    Relevance,
    complete_scores,
    explain_segments,
    find_moments,
    knows_what_is_asked,
    make_results,
    read_page,
    score_segments,
    text_warnings,
    texts_warnings,
)
from indexer.search.similar import Asked, SimilarSearch
from indexer.search.text_encoding import NUM_RECENT_TEXTS, EncodedTexts, TextEncoder
from indexer.search.text_matching import find_text, fuse, num_by_meaning, text_hits, words_warnings
from indexer.search.text_ranking import rank_texts
from indexer.search.types import (
    SearchAnswer,
    SearchAnswers,
    SearchQuery,
    SearchResult,
    SimilarAnswer,
    SimilarQuery,
    StageTimes,
    TextsAnswer,
    Timings,
    as_filter,
    check_batch,
    texts_of,
)
from indexer.store.cancellation import raise_if_cancelled
from indexer.store.filters import Filter
from indexer.store.records import Matches, StoreState, WordMatches
from indexer.store.store import SearchedStore, open_store_for_searches
from model.features import TextFeatures
from model.kernels.threads import at_work
from model.score_names import SCORE_NAMES

if TYPE_CHECKING:
    from indexer.search.query_media import QueryMedia
    from model.xclip import XClip

logger = logging.getLogger(__name__)

__all__ = ["SearchAnswer", "SearchQuery", "SearchResult", "Searcher"]

Order = Callable[[int], ScoredSegments]
"""At least so many results, best first, or all that there are."""

MAX_TRIES = 5
"""Times a search is repeated because videos that it found were deleted before the page was read."""

SPARE_RESULTS = 32
"""Results kept beyond the page's end by an exhaustive search, to stand in for deleted ones."""


class Searcher:
    """Searches one index with the model that made it. Safe to use from several threads.

    Every search first takes in what has changed: videos that any process has committed are found, deleted
    ones are not.

    Example:
        with Searcher("my-index", XClip.load("demo")) as searcher:
            for result in searcher.search(SearchQuery("a red car", limit=3)).results:
                print(result.id, result.score, result.moments[0].time_seconds)
    """

    def __init__(
        self,
        index_directory: str | Path,
        model: XClip,
        *,
        coarse_kind: KindChoice = "auto",
        block_size: int = 1024,
        feature_memory_bytes: int = 0,
        feature_file: bool | Precision = True,
    ) -> None:
        """Open an index.

        Args:
            index_directory: Made by `Index.create` or `xclip-search index`.
            model: The one that encoded the index.
            coarse_kind: Of the coarse index, see `indexer.coarse.approximate`; `auto` goes by its size.
            block_size: Segments scored together; bounds memory (at 12 frames x 512, about 40 KB each).
            feature_memory_bytes: With the model on a GPU, how much of what the full score reads lives there.
                A processor reads the feature file through the operating system's cache, whatever this says.
            feature_file: Whether to keep that file (`indexer.features`); otherwise searches read the store. A
                precision: in which it keeps frames, `int8` for half the bytes; True leaves it as it is.

        Raises:
            IndexNotFoundError, IndexDamagedError, IndexVersionError: There is no index that can be used.
            FingerprintMismatchError: The index was made by another model.
        """
        if block_size < 1:
            raise ValueError("block_size is at least 1")
        self.catalog = open_store_for_searches(index_directory)
        self.model = model
        self.text_encoder = TextEncoder(model)
        self._text_warnings = lru_cache(NUM_RECENT_TEXTS)(partial(text_warnings, model))
        self._block_size = block_size
        try:
            expected = index_fingerprint(model, self.catalog.sampling_json)
            if expected != self.catalog.fingerprint:
                raise FingerprintMismatchError(expected=expected, found=self.catalog.fingerprint)
            self._index = CoarseIndex.open(self.catalog, kind=coarse_kind, device=model.device)
            self._features = FeatureReader(
                self.catalog,
                device=model.device,
                resident_bytes=0 if model.device.type == "cpu" else feature_memory_bytes,
                use_file=feature_file,
            )
            self._index.fetch = self._features.video_features
            self._filters = FilterCache(self.catalog)
        except BaseException:
            self.catalog.close()
            raise
        self._baseline = BaselineScores(model, self._index, self._features)
        self._refresher = IndexRefresher(self.catalog, self._index, self._features, self._baseline)
        self._refresher.start_where_needed(after_search=False)

    def close(self) -> None:
        """Finish saving, close the catalog. Searches raise RuntimeError from now on."""
        self._features.close()
        self._refresher.close()
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Searching

    def search(self, query: SearchQuery, encoded: EncodedTexts | None = None) -> SearchAnswer:
        """Answer a query. Raises IndexDamagedError, and RuntimeError after `close`.

        encoded: of its text, where `encode` was called before.
        """
        return self.search_all([query], encoded).answers[0]

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """The first step of searches, for callers that let texts wait together: those of other threads that
        wait meanwhile are encoded with them.

        Raises:
            TokenError, SearchCancelledError: As `TextEncoder.encode`.
        """
        started = time.perf_counter()
        features = self.text_encoder.encode(texts)
        return EncodedTexts(features, time.perf_counter() - started)

    @at_work()
    def search_all(
        self, queries: Sequence[SearchQuery], encoded: EncodedTexts | None = None
    ) -> SearchAnswers:
        """The answers that `search` gives to each query, quicker: the texts go through the model together.

        Args:
            queries: 1 to MAX_BATCH_TEXTS, which differ in their texts alone.
            encoded: Of their texts, where `encode` was called before; its time counts as theirs.

        Returns:
            An answer for each; its timings count an equal share of what was done for all.

        Raises:
            InvalidQueryError, and what `search` raises.
        """
        check_batch(queries)
        encoded = encoded or self.encode(texts_of(queries))
        first, asked = queries[0], _asked_texts(encoded.features, len(queries))
        together = StageTimes(encode_seconds=encoded.seconds)
        with together.measuring("encode"), torch.inference_mode():
            rows = [one.combine(self.model.coarse_query(one.features)) for one in asked]
            vectors = torch.stack(rows).float().cpu().numpy()
        with together.measuring("coarse"):
            state = self._sync(may_be_stale=True)
            allowed = self._allowed(first.filter)
            hits: list[CoarseHits | None] = [None] * len(queries)
            if first.mode != "exhaustive" and first.text_match != "only":
                count = num_coarse_hits(first, num_by_meaning(first, first.num_wanted))
                exact = not self._computes_exact_products(first)
                products, ids = self._index.search(vectors, count, allowed, exact=exact)
                hits = list(zip(products, ids, strict=True))
        # One baseline for all of them: it may be remade meanwhile, and their percentiles must be comparable.
        baseline, least_score = self._least_score(first)
        shared_seconds = together.total_seconds / len(queries)
        answers: list[SearchAnswer] = []
        for row, query in enumerate(queries):
            raise_if_cancelled()
            stages = StageTimes()
            for stage in ("encode", "coarse"):
                stages.add(stage, together.seconds(stage) / len(queries))
            search = _Search(query, asked[row], vectors[row], state, allowed, least_score, hits[row], stages)
            answers.append(self._answer(search, baseline, shared_seconds))
        if state.stale_seconds is None:
            self._refresher.start_where_needed(after_search=True)
        parts = [answer.timings for answer in answers]
        timings = Timings(
            encode_seconds=together.seconds("encode"),
            coarse_seconds=sum(part.coarse_seconds for part in parts),
            rerank_seconds=sum(part.rerank_seconds for part in parts),
            total_seconds=together.total_seconds,
        )
        return SearchAnswers(answers, timings)

    def _computes_exact_products(self, query: SearchQuery) -> bool:
        """Whether the full score computes the exact products of more candidates, for less than it takes to
        read their vectors before."""
        names = self.model.config.score_names
        return query.mode == "rerank" and "video_sentence" in names and self._features.are_at_hand

    def _sync(self, *, may_be_stale: bool = False) -> StoreState:
        """Take in what any process has committed; returns what the store says of itself.

        may_be_stale: whether that may be what it said before its database ceased to answer.
        """
        state = self.catalog.state()
        if state.stale_seconds is None:
            self._index.follow(state.sequence)
            self._features.sync(state.sequence)
        elif not may_be_stale:
            raise IndexUnavailableError("the database does not answer, and this is not answered without it")
        return state

    def _allowed(self, filter: Mapping[str, Any] | Filter | None) -> SegmentSet | None:
        """The segments that a filter matches; None where there is no filter."""
        chosen = as_filter(filter)
        return None if chosen is None else self._filters.matching(chosen)

    def _least_score(self, query: SearchQuery) -> tuple[Baseline | None, float | None]:
        """The baseline to compare with, and what min_score and min_percentile come to."""
        if query.min_percentile is None:
            return self._baseline.now, query.min_score
        baseline = self._baseline.make(only_first=True)
        bounds = (query.min_score, baseline.least_score(query.mode, query.min_percentile))
        return baseline, max((bound for bound in bounds if bound is not None), default=None)

    def _answer(self, search: _Search, baseline: Baseline | None, shared_seconds: float) -> SearchAnswer:
        query, stages = search.query, search.stages
        if query.text_match != "off":
            with stages.measuring("coarse"):
                search = replace(search, words=self.catalog.find_words(query.text))
        search, page = self._find_page(search)
        if query.mode != "coarse":
            with stages.measuring("rerank"):
                page = complete_scores(self.model, search.asked, page)
        text = search.asked.wanted
        moments = find_moments(self.model, text, page.features, page.frame_times, query.num_moments)
        num_searched = self._index.num_segments if search.allowed is None else len(search.allowed)
        relevance = self._relevance(search, page, baseline, num_searched)
        explanations = None
        if query.explain:
            explanations = explain_segments(self.model, query.text, text, page.features, page.frame_times)
        results = make_results(
            page,
            moments,
            first_rank=query.offset + 1,
            relevance=relevance,
            explanations=explanations,
        )
        warnings = list(self._text_warnings(query.text))
        if search.words is not None:
            hits = text_hits(self.catalog, search.words, page.records)
            results = [
                replace(result, text_hits=of_one) for result, of_one in zip(results, hits, strict=True)
            ]
            warnings += words_warnings(search.words)
        if query.without is not None:
            warnings += self._text_warnings(query.without)
        # It may have ceased to answer since.
        stale_seconds = self.catalog.stale_seconds or search.state.stale_seconds
        if stale_seconds is not None:
            warnings.append(
                f"the database of the index has not answered for {stale_seconds:.0f} seconds: these are"
                " results from the index as it was"
            )
        if query.min_percentile is not None and baseline is not None and baseline.is_empty:
            warnings.append("the index is too small for percentiles: nothing was left out by min_percentile")
        return SearchAnswer(
            query=query.text,
            mode=query.mode,
            num_videos=search.state.num_videos,
            stale_seconds=stale_seconds,
            truncated=query.mode != "exhaustive"
            and query.text_match != "only"
            and query.candidates < num_searched,
            warnings=warnings,
            timings=Timings(
                encode_seconds=stages.seconds("encode"),
                coarse_seconds=stages.seconds("coarse"),
                rerank_seconds=stages.seconds("rerank"),
                total_seconds=shared_seconds + stages.total_seconds,
            ),
            results=results,
        )

    def _relevance(
        self, search: _Search, page: Page, baseline: Baseline | None, num_searched: int
    ) -> Relevance | None:
        """Of each result of a page; None where a text is subtracted, or there is no baseline yet.

        Nothing matches a text of which the model knows no word, however far its score is from chance.
        """
        mode, total = search.query.mode, page.hits.total
        if search.query.without is not None:
            return None
        percentiles = None if baseline is None else baseline.percentiles(mode, total)
        if not knows_what_is_asked(self.model, search.query.text):
            return Relevance(percentiles or [None] * len(total), ["none"] * len(total))
        probabilities = self.model.probability(torch.from_numpy(total))
        if probabilities is not None:
            matches = [match_of_probability(probability) for probability in probabilities.tolist()]
            return Relevance(percentiles or [None] * len(total), matches)
        if baseline is None or percentiles is None:
            return None
        return Relevance(percentiles, baseline.matches(mode, total, num_searched))

    def _find_page(self, search: _Search) -> tuple[_Search, Page]:
        """The page of a query. Where deletions meanwhile left it short, the search is repeated: as such it
        comes back."""
        query = search.query
        rows = slice(query.offset, query.num_wanted)
        for _ in range(MAX_TRIES):
            page = read_page(self._order(search), rows, self.catalog, partial(self._page_features, search))
            # What was folded into a deleted result stands for it the next time.
            if not page.has_gaps or (len(page) == query.limit and query.fold_threshold is None):
                break
            with search.stages.measuring("coarse"):
                state = self._sync(may_be_stale=True)
                search = replace(search, state=state, allowed=self._allowed(query.filter), hits=None)
        return search, page

    def _page_features(self, search: _Search, ids: NDArray[np.int64]) -> ScorableSegments:
        """Features of the results of a page: of its candidates, where they were read all together."""
        for candidates in search.candidates:
            is_one = ids[:, None] == candidates.segment_ids
            if is_one.any(axis=1).all():
                return candidates[is_one.argmax(axis=1)]
        return self._features.get(ids)

    def _order(self, search: _Search) -> Results:
        """Results best first, to the page's end or all that there are."""
        query = search.query
        ways = {"off": self._by_meaning, "boost": self._by_both, "only": self._by_words}
        order = ways[query.text_match](search)
        if query.fold_threshold is None:
            return Results(order(query.num_wanted))
        return fold_results(order, self._features, query.num_wanted, query.fold_threshold)

    def _scores_of(self, search: _Search, ids: NDArray[np.int64]) -> ScoredSegments:
        """Segments with what their mode orders by as their total."""
        size = self._block_size
        blocks = (self._features.to_score(ids[row : row + size]) for row in range(0, len(ids), size))
        scored = ScoredSegments.cat([ScoredSegments.none(), *self._scored(search.asked, blocks)])
        if search.query.mode != "coarse":
            return scored
        column = SCORE_NAMES.index("video_sentence")
        parts = np.full_like(scored.parts, np.nan)
        parts[:, column] = scored.parts[:, column]
        return replace(scored, total=parts[:, column], parts=parts)

    def _by_words(self, search: _Search) -> Order:
        query, words, score = search.query, search.words, partial(self._scores_of, search)
        assert words is not None, "they were looked for"

        def order(num_wanted: int) -> ScoredSegments:
            with search.stages.measuring("rerank"):
                found = find_text(self.catalog, query, words, search.allowed, score, num_wanted)
                return found.at_least(search.least_score)

        return order

    def _by_both(self, search: _Search) -> Order:
        query = search.query
        text, by_meaning = self._by_words(search)(query.num_wanted), self._by_meaning(search)
        return lambda num_wanted: fuse(by_meaning(num_by_meaning(query, num_wanted)), text, query)

    def _by_meaning(self, search: _Search) -> Order:
        query, stages, size = search.query, search.stages, self._block_size
        if query.mode == "exhaustive":
            return partial(self._score_everything, search)
        coarse = CoarseOrder(
            self._index, self.catalog, search.vector, search.allowed, self.model.logit_scale_exp
        )
        first_count = num_coarse_hits(query, num_by_meaning(query, query.num_wanted))
        with stages.measuring("coarse"):
            first = search.hits or coarse.top(first_count)
        window = ScoredSegments.none()
        if query.mode == "rerank":
            with stages.measuring("rerank"):
                ids = first[1]
                blocks = (self._features.to_score(ids[row : row + size]) for row in range(0, len(ids), size))
                window = ScoredSegments.cat([window, *self._scored(search.asked, self._kept(search, blocks))])
                # More may have been found, see `exact` of `CoarseIndex.search`.
                window, first = window.nearest(first_count), (first[0][:first_count], ids[:first_count])

        def order(num_wanted: int) -> ScoredSegments:
            with stages.measuring("coarse"):
                count = num_coarse_hits(query, num_wanted)
                hits = first if count == first_count else coarse.top(count)
                return order_candidates(coarse, query, hits, window, search.least_score, num_wanted)

        return order

    def _score_everything(self, search: _Search, num_wanted: int) -> ScoredSegments:
        query = search.query
        keep = num_wanted + SPARE_RESULTS
        if query.fold_threshold is not None:
            keep = max(keep, min(query.candidates, LOOK_AHEAD))
        with search.stages.measuring("rerank"):
            ids = self._index.segment_ids() if search.allowed is None else search.allowed.ids
            scored = self._scored(search.asked, self._features.blocks(ids, self._block_size))
            return best_of_blocks(scored, keep, query.group_by).at_least(search.least_score)

    def _scored(
        self, asked: AskedTexts, blocks: Iterable[ScorableSegments | SegmentsInPlace]
    ) -> Iterator[ScoredSegments]:
        for block in blocks:
            raise_if_cancelled()
            # What the total averages; a page is completed when it is known which results it has.
            yield score_segments(self.model, asked, block, self.model.config.score_names)

    def _kept(
        self, search: _Search, blocks: Iterable[ScorableSegments | SegmentsInPlace]
    ) -> Iterator[ScorableSegments | SegmentsInPlace]:
        """The blocks, of which the last one is kept for the page where it is a copy in memory."""
        for block in blocks:
            search.candidates[:] = [block] if isinstance(block, ScorableSegments) else []
            yield block

    # Other searches

    def similar(self, video_id: str, **options: Any) -> SimilarAnswer:
        """Videos that look like a video of the index, best first, see `indexer.search.similar`.

        options: the fields of `SimilarQuery`. Raises VideoNotFoundError, InvalidQueryError.
        """
        query = SimilarQuery(**options)
        self._sync()
        asked = Asked.of_video(self.catalog, self._features, video_id)
        return self._find_similar(asked, query)

    def search_media(self, media: QueryMedia, **options: Any) -> SimilarAnswer:
        """Videos that look like a picture or a clip, best first; scores are those of `similar`.

        media: what `indexer.search.query_media.read_media` made of a file. options: the fields of
        `SimilarQuery`. Raises InvalidQueryError.
        """
        query = SimilarQuery(**options)
        with torch.inference_mode():
            asked = Asked(media.encode(self.model))
        self._sync()
        return replace(self._find_similar(asked, query), warnings=media.warnings)

    def _find_similar(self, asked: Asked, query: SimilarQuery) -> SimilarAnswer:
        search = SimilarSearch(self.catalog, self._index, self._features)
        answer = search.find(asked, query, self._allowed(query.filter))
        self._refresher.start_where_needed(after_search=False)
        return answer

    def rank_texts(
        self, video_id: str, texts: Sequence[str], *, warn_of: Sequence[str] | None = None
    ) -> TextsAnswer:
        """Texts by how well they fit a video: each by the full score with the video's best segment for it.

        Args:
            video_id: A video of the index.
            texts: 1 to MAX_BATCH_TEXTS, each as in `SearchQuery`.
            warn_of: The texts that warnings are about, by default these.

        Raises:
            VideoNotFoundError, InvalidQueryError.
        """
        self._sync()
        encoder, baseline = self.text_encoder, self._baseline.now
        answer = rank_texts(encoder, self.catalog, self._features, video_id, texts, baseline)
        self._refresher.start_where_needed(after_search=True)
        return replace(answer, warnings=texts_warnings(self.model, texts if warn_of is None else warn_of))

    # Facts

    def stats(self) -> dict[str, Any]:
        """Numbers about the index, fit for JSON: num_videos, num_segments, sequence (last change),
        fingerprint, model_spec, embedding_dim, num_frames, score_names (the averaged scores), created_at
        (seconds since 1970), catalog_size_bytes (with its log), coarse_sequence (last change that searches
        see), coarse_num_segments, coarse_num_pending, coarse_kind, feature_memory_bytes
        (on a GPU), feature_num_pending (segments that the feature file lacks), language (that queries should
        be in; None for several, or where it is not known).
        """
        catalog, state = self.catalog, self.catalog.state()
        return {
            "num_videos": state.num_videos,
            "num_segments": state.num_segments,
            "sequence": state.sequence,
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
            "feature_memory_bytes": self._features.resident_bytes,
            "feature_num_pending": self._features.num_pending,
            "language": self.model.tokenizer.language,
        }

    def prepare(self) -> None:
        """Make the baseline scores now, which the first searches would otherwise wait for or go without."""
        self._sync()
        self._baseline.make(only_first=True)


def _asked_texts(features: TextFeatures, num_queries: int) -> list[AskedTexts]:
    """Of each query; features: of what `texts_of` gave."""
    if len(features) == num_queries:
        return [AskedTexts(features[row : row + 1]) for row in range(num_queries)]
    return [AskedTexts(features[[row, num_queries]]) for row in range(num_queries)]


@dataclass(frozen=True, eq=False)
class _Search:
    """One query in progress.

    vector: float32 [D], the coarse query. state: of the store. allowed: what its filter lets through.
    least_score: what min_score and min_percentile come to. hits: the first answer of the coarse index, where
    there is one. words: what they found, where `text_match` asks for it. candidates: at most one block of
    them, whose features are in memory.
    """

    query: SearchQuery
    asked: AskedTexts
    vector: NDArray[np.float32]
    state: StoreState
    allowed: SegmentSet | None
    least_score: float | None
    hits: CoarseHits | None
    stages: StageTimes
    words: WordMatches | None = None
    candidates: list[ScorableSegments] = field(default_factory=list)


class FilterCache:
    """The segments that the filters used last match. Safe to use from several threads.

    max_filters: how many filters are kept, at 8 bytes a matching segment and a bit for each segment.
    """

    def __init__(self, catalog: SearchedStore, max_filters: int = 16) -> None:
        self._catalog = catalog
        self._max_filters = max_filters
        self._lock = threading.Lock()
        self._kept: OrderedDict[Filter, tuple[Matches, SegmentSet]] = OrderedDict()

    def matching(self, chosen: Filter) -> SegmentSet:
        """The segments whose videos fulfil `chosen` now; the same object as long as nothing has changed.

        Raises IndexDamagedError.
        """
        with self._lock:
            former, segments = self._kept.get(chosen, (None, None))
        matches = self._catalog.matching(chosen, former)
        if segments is None or matches is not former:
            segments = SegmentSet(matches.segment_ids)
        with self._lock:
            newest = self._kept.get(chosen)
            # Another thread may have kept later matches meanwhile.
            if newest is None or newest[0].sequence <= matches.sequence:
                self._kept[chosen] = matches, segments
            self._kept.move_to_end(chosen)
            while len(self._kept) > self._max_filters:
                self._kept.popitem(last=False)
        return segments
