"""Words beside meaning: videos whose titles, metadata or transcripts have words of the query.

    boost    meaning  v7 v2 v9 v4 ...      words  v9 v5     results  v9 v7 v5 v2 v4 ...
    only                                   words  v9 v5     results  v9 v5

Two orders become one by reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): each gives a
result 1 / (60 + rank), and the sum decides. Scores of BM25 and of the model have no common scale, ranks have.

Which results are fused does not depend on the page: the first `candidates` of both orders, at most MAX_FUSED
of each. What lies behind follows in the order of meaning, so that pages cut one and the same order. Segments
that only words found have their scores like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from indexer.coarse.exact import SegmentSet
from indexer.search.ordering import ScoredSegments
from indexer.search.types import SearchQuery, TextHit
from indexer.store.cancellation import raise_if_cancelled
from indexer.store.records import SegmentInfo, VideoRecord, WordMatches
from indexer.store.store import SearchedStore
from indexer.store.transcripts import Transcript, passages
from indexer.store.words import QueryWord, found_in, terms_of, texts_in

RANK_CONSTANT: Final = 60
"""Of reciprocal rank fusion, as in the paper, where values around it differ little."""

MAX_FUSED: Final = 1_000
MAX_TITLE_SEGMENTS: Final = 2_000
"""A video that is found by its title is shown by its best segment. Of many long ones, which have more
segments than these together, the later ones are shown by their first."""

MAX_HITS: Final = 3
"""Of a field, in a result."""

MAX_HIT_LENGTH: Final = 200
_VIDEOS_AT_ONCE: Final = 1_000

ScoreSegments = Callable[[NDArray[np.int64]], ScoredSegments]
"""The scores of segments, without those that do not exist any more."""


def num_fused(query: SearchQuery) -> int:
    """How many results of each order are fused."""
    return min(query.candidates, MAX_FUSED)


def find_text(
    catalog: SearchedStore,
    query: SearchQuery,
    matches: WordMatches,
    allowed: SegmentSet | None,
    score: ScoreSegments,
    num_wanted: int,
) -> ScoredSegments:
    """The videos that have words of the query, best first, each by one segment, as many as are needed.

    Args:
        catalog: Where the segments are.
        query: With `text_match`.
        matches: What the catalog found.
        allowed: The segments that the query's filter lets through.
        score: Gives the scores of segments.
        num_wanted: Of `only`, at least as many are given, or all there are.
    """
    wanted = num_fused(query) if query.text_match == "boost" else max(num_fused(query), num_wanted)
    found = [ScoredSegments.none()]
    position, num_further = 0, MAX_TITLE_SEGMENTS
    while wanted > 0 and position < len(matches):
        raise_if_cancelled()
        size = wanted if allowed is None else max(wanted, _VIDEOS_AT_ONCE)
        segments = _Candidates.of(catalog, matches[position : position + size], allowed).first(wanted)
        ids, num_further = segments.to_score(catalog, num_further)
        found.append(_best_in_order(score(ids), segments.matches.video_keys))
        wanted -= len(segments.matches)
        position += size
    return ScoredSegments.cat(found)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Matches and the segments of each one's video, in its order; ids and starts."""

    matches: WordMatches
    segments: Sequence[list[tuple[int, float]]]

    @classmethod
    def of(cls, catalog: SearchedStore, matches: WordMatches, allowed: SegmentSet | None) -> _Candidates:
        """Those that exist and that a filter lets through."""
        spans = catalog.segments_of_videos(matches.video_keys)
        is_allowed = np.ones(len(spans.segment_ids), bool)
        if allowed is not None:
            is_allowed = allowed.holds(spans.segment_ids)
        of_video: dict[int, list[tuple[int, float]]] = {}
        for row in np.flatnonzero(is_allowed).tolist():
            segment = int(spans.segment_ids[row]), float(spans.start_seconds[row])
            of_video.setdefault(int(spans.video_keys[row]), []).append(segment)
        keys = matches.video_keys.tolist()
        kept = matches[np.array([key in of_video for key in keys], bool)]
        return cls(kept, [of_video[key] for key in keys if key in of_video])

    def first(self, count: int) -> _Candidates:
        """The first `count`."""
        return _Candidates(self.matches[:count], self.segments[:count])

    def to_score(self, catalog: SearchedStore, most_further: int) -> tuple[NDArray[np.int64], int]:
        """Of a transcript the segment in which a line is said, of a title all of its video, as long as these
        are not more than `most_further` beyond the first of each; their ids, and how many are left of it."""
        starts = catalog.passage_starts(self.matches)
        ids: list[int] = []
        for segments, passage, start in zip(self.segments, self.matches.passages, starts, strict=True):
            if passage:
                before = [segment_id for segment_id, begins in segments if begins <= start]
                ids.append(before[-1] if before else segments[0][0])
            elif len(segments) - 1 > most_further:
                ids.append(segments[0][0])
            else:
                ids += [segment_id for segment_id, _ in segments]
                most_further -= len(segments) - 1
        return np.array(ids, np.int64), most_further


def _best_in_order(scored: ScoredSegments, video_keys: NDArray[np.int64]) -> ScoredSegments:
    """The best segment of each video, in the order of the videos."""
    order = np.argsort(video_keys)
    places = order[np.searchsorted(video_keys, scored.video_keys, sorter=order)]
    ranked = scored[np.lexsort((scored.segment_ids, -scored.total, places))]
    _, first = np.unique(ranked.video_keys, return_index=True)
    return ranked[np.sort(first)]


def fuse(meaning: ScoredSegments, text: ScoredSegments, query: SearchQuery) -> ScoredSegments:
    """Both orders as one.

    Args:
        meaning: Results by meaning, best first, at least as many as are fused or all that are ordered by the
            full score; behind a rerank window their total is NaN.
        text: Those by words, best first, one of a video.
        query: How results are grouped, and how many are fused.
    """
    fused = meaning[: num_fused(query)]
    fused = fused[~np.isnan(fused.total)]
    behind = meaning[len(fused) :]
    text = text[: num_fused(query)]

    def names(part: ScoredSegments) -> NDArray[np.int64]:
        return part.video_keys if query.group_by == "video" else part.segment_ids

    new = text[~np.isin(names(text), names(fused))]
    behind = behind[~np.isin(names(behind), names(text))]
    by_meaning = 1.0 / (RANK_CONSTANT + 1.0 + np.arange(len(fused)))
    ranks = dict(zip(names(text).tolist(), range(1, len(text) + 1), strict=True))
    by_text = [
        1.0 / (RANK_CONSTANT + ranks[name]) if name in ranks else 0.0
        for name in (*names(fused).tolist(), *names(new).tolist())
    ]
    all_of_them = ScoredSegments.cat([fused, new])
    sums = np.concatenate([by_meaning, np.zeros(len(new))]) + np.array(by_text)
    # Equal sums: what meaning found comes first.
    return ScoredSegments.cat([all_of_them[np.argsort(-sums, kind="stable")], behind])


def num_by_meaning(query: SearchQuery, num_wanted: int) -> int:
    """How many results to order by meaning for so many in all: at least those that are fused."""
    if query.text_match == "off" or query.mode == "rerank":  # A rerank window is ordered as a whole.
        return num_wanted
    return max(num_wanted, num_fused(query))


def words_warnings(matches: WordMatches) -> list[str]:
    """Sentences for the user about what words found."""
    if not len(matches):
        return ["no title, metadata or transcript has a word of the query"]
    if matches.is_cut:
        return ["words of the query are in very many videos, of which not all were compared by their words"]
    return []


def text_hits(
    catalog: SearchedStore, matches: WordMatches, records: Sequence[tuple[SegmentInfo, VideoRecord]]
) -> list[list[TextHit]]:
    """For each result of a page, where words of the query are; in a transcript, in its best passage."""
    passage_of = dict(zip(matches.video_keys.tolist(), matches.passages.tolist(), strict=True))
    in_transcript = [video.id for info, video in records if passage_of.get(info.video_key)]
    transcripts = catalog.transcripts.of_videos(in_transcript) if in_transcript else {}
    hits: list[list[TextHit]] = []
    for info, video in records:
        passage = passage_of.get(info.video_key)
        if passage is None:
            hits.append([])
            continue
        title = video.title or ""
        written = [TextHit("title", title)] if _has(title, matches.words) else []
        values = (text for text in texts_in(video.metadata) if _has(text, matches.words))
        written += [TextHit("metadata", text) for text, _ in zip(values, range(MAX_HITS), strict=False)]
        said = _said(transcripts.get(video.id, ()), passage, matches.words)
        hits.append([_cut(hit) for hit in (*said, *written)])
    return hits


def _said(transcripts: Sequence[Transcript], number: int, words: Sequence[QueryWord]) -> list[TextHit]:
    """The lines of a passage with most words of the query, in the order in which they are said."""
    passage = next((one for n, one in enumerate(passages(transcripts), start=1) if n == number), None)
    if passage is None or not number:
        return []
    lines = next(one.lines for one in transcripts if one.track == passage.track)
    counted = [
        (sum(found_in(word, terms) for word in words), -position)
        for position in range(passage.first, passage.end)
        for terms in [terms_of(lines[position].text)]
    ]
    best = sorted((one for one in counted if one[0]), reverse=True)[:MAX_HITS]
    # A phrase may go on in the next line: then the passage's first line stands for it.
    positions = sorted(-position for _, position in best) or [passage.first]
    return [
        TextHit("transcript", line.text, line.start_seconds, line.end_seconds, passage.track)
        for line in map(lines.__getitem__, positions)
    ]


def _has(text: str, words: Sequence[QueryWord]) -> bool:
    terms = terms_of(text)
    return any(found_in(word, terms) for word in words)


def _cut(hit: TextHit) -> TextHit:
    if len(hit.text) <= MAX_HIT_LENGTH:
        return hit
    return replace(hit, text=f"{hit.text[:MAX_HIT_LENGTH]}…")
