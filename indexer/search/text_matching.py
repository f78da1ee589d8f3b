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
from indexer.store.records import SegmentInfo, VideoRecord, WordMatches
from indexer.store.sqlite.connections import raise_if_cancelled
from indexer.store.store import SearchedStore
from indexer.store.transcripts import Transcript, passages
from indexer.store.words import QueryWord, found_in, terms_of, texts_in

RANK_CONSTANT: Final = 60
"""Of reciprocal rank fusion, as in the paper, where values around it differ little."""

MAX_FUSED: Final = 1_000
MAX_TITLE_SEGMENTS: Final = 2_000
"""A video that is found by its title is shown by its best segment. Of many long ones, which have more segments
than these together, the later ones are shown by their first."""

MAX_HITS: Final = 3
"""Of a field, in a result."""

MAX_HIT_LENGTH: Final = 200
_VIDEOS_AT_ONCE: Final = 1_000

ScoreSegments = Callable[[NDArray[np.int64]], ScoredSegments]
"""The scores of segments, without those that do not exist any more."""


@dataclass(frozen=True, eq=False)
class TextOrder:
    """What words found: `matches`, best first, and their segments with scores in the same order."""

    matches: WordMatches
    scored: ScoredSegments


def num_fused(query: SearchQuery) -> int:
    """How many results of each order are fused."""
    return min(query.candidates, MAX_FUSED)


def find_text(
    catalog: SearchedStore,
    query: SearchQuery,
    allowed: SegmentSet | None,
    score: ScoreSegments,
    least_score: float | None,
) -> TextOrder:
    """The videos that have words of the query, best first, each by one segment.

    Args:
        catalog: Where the words are.
        query: With `text_match`; `only` asks for as many as the page needs.
        allowed: The segments that its filter lets through.
        score: Gives the scores of segments.
        least_score: Those below are left out.
    """
    matches = catalog.find_words(query.text)
    wanted = num_fused(query)
    if query.text_match == "only" and least_score is None:
        wanted = max(wanted, query.num_wanted)
    found: list[ScoredSegments] = []
    num_found, num_title_segments = 0, 0
    for first in range(0, len(matches), _VIDEOS_AT_ONCE):
        raise_if_cancelled()
        some = matches[first : first + min(_VIDEOS_AT_ONCE, wanted - num_found)]
        ids, keys = _segments_to_score(catalog, some, allowed, MAX_TITLE_SEGMENTS - num_title_segments)
        num_title_segments += len(ids) - len(np.unique(keys))
        found.append(_best_in_order(score(ids), some.video_keys))
        num_found += len(found[-1])
        if num_found >= wanted:
            break
    scored = ScoredSegments.cat([ScoredSegments.none(), *found])[:wanted]
    return TextOrder(matches, scored.at_least(least_score))


def _segments_to_score(
    catalog: SearchedStore, matches: WordMatches, allowed: SegmentSet | None, most_further: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Segments of the matches, and their videos: the one in which a line is said, all of a video that is found
    by its title, as long as these are not more than `most_further` beyond the first of each."""
    spans = catalog.segments_of_videos(matches.video_keys)
    starts = dict(zip(matches.video_keys.tolist(), catalog.passage_starts(matches).tolist(), strict=True))
    is_said = dict(zip(matches.video_keys.tolist(), (matches.passages > 0).tolist(), strict=True))
    of_video: dict[int, list[int]] = {}
    for row, key in enumerate(spans.video_keys.tolist()):
        of_video.setdefault(key, []).append(row)
    rows: list[int] = []
    for key in matches.video_keys.tolist():
        of_one = of_video.get(key, [])
        if len(of_one) > 1 and is_said[key]:
            last = int(np.searchsorted(spans.start_seconds[of_one], starts[key], side="right")) - 1
            of_one = [of_one[max(last, 0)]]
        elif len(of_one) - 1 > most_further:
            of_one = of_one[:1]
        most_further -= max(len(of_one) - 1, 0)
        rows += of_one
    ids, keys = spans.segment_ids[rows], spans.video_keys[rows]
    if allowed is None:
        return ids, keys
    is_allowed = allowed.holds(ids)
    return ids[is_allowed], keys[is_allowed]


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


def of_meaning(query: SearchQuery) -> SearchQuery:
    """The query to order by meaning before its order is fused: with all that are fused, whatever the page."""
    if query.mode == "rerank":  # Its window is ordered as a whole.
        return query
    return replace(query, offset=max(query.offset, num_fused(query) - query.limit))


def text_hits(
    catalog: SearchedStore, matches: WordMatches, records: Sequence[tuple[SegmentInfo, VideoRecord]]
) -> list[list[TextHit]]:
    """For each result of a page, where words of the query are; in a transcript, in its best passage."""
    passage_of = dict(zip(matches.video_keys.tolist(), matches.passages.tolist(), strict=True))
    in_transcript = [video.id for info, video in records if passage_of.get(info.video_key)]
    transcripts = catalog.transcripts.of_videos(in_transcript) if in_transcript else {}
    hits = []
    for info, video in records:
        passage = passage_of.get(info.video_key)
        if passage is None:
            hits.append([])
            continue
        written = [TextHit("title", video.title)] if _has(video.title or "", matches.words) else []
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
