"""Words beside meaning: what `text_match` brings forward, and that pages stay slices of one order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from indexer.errors import InvalidQueryError
from indexer.search import text_matching
from indexer.search.ordering import ScoredSegments
from indexer.search.searcher import Searcher
from indexer.search.text_matching import MAX_HIT_LENGTH, RANK_CONSTANT, fuse
from indexer.search.types import GroupBy, SearchMode, SearchQuery, SearchResult, TextHit
from indexer.store.transcripts import Line, Transcript
from tests.support.catalog_builders import add_video, make_segment
from tests.support.small_searchers import D, F, fill, make_index, open_index

MODES, GROUPS = get_args(SearchMode), get_args(GroupBy)
CAMELS = {3: "The camel of Crete", 11: "camel", 17: "Camels and more camels"}
SPOKEN_IN = 20


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    """25 videos of three segments; some with a camel in the title, one where it is spoken of in the second
    segment, one with it in its metadata."""
    with open_index(make_index(tmp_path_factory.mktemp("words") / "index")) as searcher:
        fill(searcher.catalog, range(25), segments_each=3)
        for number, title in CAMELS.items():
            searcher.catalog.update_video(f"video-{number}", title=title)
        lines = (Line(1.0, 3.0, "hello"), Line(12.5, 14.0, "look, a camel!"), Line(80.0, 81.0, "camel " * 80))
        searcher.catalog.transcripts.put(f"video-{SPOKEN_IN}", Transcript("en", lines))
        searcher.catalog.update_video("video-5", metadata={"tags": ["dromedary", "a camel too"]})
        yield searcher


def search(searcher: Searcher, text: str = "camel", **options: object) -> list[SearchResult]:
    return list(searcher.search(SearchQuery(text, **{"limit": 50, **options})).results)


def ids(results: list[SearchResult]) -> list[str]:
    return [result.id for result in results]


def test_off_is_the_default_and_says_nothing_of_words(searcher):
    assert SearchQuery("a").text_match == "off"
    results = search(searcher)
    assert len(results) == 25 and all(result.text_hits == () for result in results)


@pytest.mark.parametrize("mode", MODES)
def test_only_gives_the_videos_that_have_the_words_by_their_words(searcher, mode):
    results = search(searcher, text_match="only", mode=mode)
    assert set(ids(results)) == {f"video-{number}" for number in (3, 5, 11, 17, SPOKEN_IN)}
    assert [result.rank for result in results] == [1, 2, 3, 4, 5]
    scores = {
        result.segment_id: result.score
        for result in search(searcher, mode=mode, group_by="segment", limit=100)
    }
    for result in results:
        assert result.score == pytest.approx(scores[result.segment_id], abs=1e-3)
        assert (result.scores["frame_word"] is None) == (mode == "coarse")


def test_a_result_says_where_the_words_are(searcher):
    hits = {result.id: result.text_hits for result in search(searcher, text_match="only")}
    assert hits["video-3"] == [TextHit("title", CAMELS[3])]
    assert hits["video-5"] == [TextHit("metadata", "a camel too")]
    said = hits[f"video-{SPOKEN_IN}"]
    assert [(hit.field, hit.start_seconds, hit.end_seconds, hit.track) for hit in said] in (
        [("transcript", 12.5, 14.0, "en")],
        [("transcript", 80.0, 81.0, "en")],
    )
    assert all(len(hit.text) <= MAX_HIT_LENGTH + 1 for hit in said)


def test_a_spoken_word_leads_to_the_segment_in_which_it_is_said(searcher):
    (result,) = search(searcher, "look", text_match="only")
    # Its passage begins with the first line, in the first segment.
    assert (result.id, result.segment.start_seconds) == (f"video-{SPOKEN_IN}", 0.0)
    assert [hit.start_seconds for hit in result.text_hits] == [12.5]


def test_a_title_leads_to_the_best_segment_of_its_video(searcher):
    (result,) = search(searcher, "crete", text_match="only")
    segments = [r for r in search(searcher, "crete", group_by="segment", limit=100) if r.id == "video-3"]
    assert len(segments) == 3 and result.segment_id == segments[0].segment_id


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group_by", GROUPS)
def test_boost_is_the_fusion_of_both_orders(searcher, mode, group_by):
    options = {"mode": mode, "group_by": group_by, "candidates": 100, "limit": 100}
    meaning = search(searcher, **options)
    words = search(searcher, text_match="only", **options)

    def name(result: SearchResult) -> object:
        return result.id if group_by == "video" else result.segment_id

    points = {name(result): 1 / (RANK_CONSTANT + result.rank) for result in meaning}
    for result in words:
        points[name(result)] = points.get(name(result), 0) + 1 / (RANK_CONSTANT + result.rank)
    boosted = search(searcher, text_match="boost", **options)
    assert [points[name(result)] for result in boosted] == sorted(points.values(), reverse=True)
    assert sum(bool(result.text_hits) for result in boosted) >= len(words)


@pytest.mark.parametrize("text_match", ["boost", "only"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group_by", GROUPS)
@pytest.mark.parametrize("candidates", [1, 4, 1000])
def test_pages_are_slices_of_one_order(searcher, text_match, mode, group_by, candidates):
    options = {"text_match": text_match, "mode": mode, "group_by": group_by, "candidates": candidates}
    whole = search(searcher, limit=100, **options)
    names = [(result.id, result.segment_id) for result in whole]
    assert len(set(names)) == len(names)
    for limit in (4, 11):
        paged: list[SearchResult] = []
        while part := search(searcher, limit=limit, offset=len(paged), **options):
            paged += part
        assert [(result.id, result.segment_id) for result in paged] == names
        assert [result.rank for result in paged] == list(range(1, len(names) + 1))
        assert [r.score for r in paged] == pytest.approx([r.score for r in whole], abs=1e-3)
    if text_match == "boost":
        assert len(whole) == (25 if group_by == "video" else 75)


@pytest.mark.parametrize("text_match", ["boost", "only"])
def test_filters_and_least_scores_hold(searcher, text_match):
    chosen = {"id": {"in": ["video-3", "video-4", "video-5"]}}
    found = set(ids(search(searcher, text_match=text_match, filter=chosen)))
    assert found == ({"video-3", "video-4", "video-5"} if text_match == "boost" else {"video-3", "video-5"})
    scores = sorted(result.score for result in search(searcher, text_match=text_match))
    least = scores[len(scores) // 2]
    results = search(searcher, text_match=text_match, min_score=least)
    assert results and all(result.score >= least for result in results)


def test_what_no_word_finds_is_said(searcher):
    answer = searcher.search(SearchQuery("unheard", text_match="only"))
    assert list(answer.results) == [] and "word of the query" in " ".join(answer.warnings)
    boosted = searcher.search(SearchQuery("unheard", text_match="boost"))
    assert ids(list(boosted.results)) == ids(search(searcher, "unheard", limit=10))
    assert list(searcher.search(SearchQuery("!?", text_match="only")).results) == []


def test_several_queries_have_each_its_own_words(searcher):
    answers = searcher.search_all(
        [SearchQuery(text, text_match="only") for text in ("crete", "look")]
    ).answers
    assert [ids(list(answer.results)) for answer in answers] == [["video-3"], [f"video-{SPOKEN_IN}"]]


def test_a_video_that_was_deleted_is_not_found_by_its_words(tmp_path: Path) -> None:
    with open_index(make_index(tmp_path / "index")) as searcher:
        for number in range(4):
            random = np.random.default_rng(number)
            add_video(searcher.catalog, number, [make_segment(random, D, F)], title="camel")
        searcher.catalog.delete_video("video-2")
        for text_match in ("boost", "only"):
            assert sorted(ids(search(searcher, text_match=text_match))) == ["video-0", "video-1", "video-3"]


def test_many_segments_of_titles_are_not_all_scored(searcher, monkeypatch):
    monkeypatch.setattr(text_matching, "MAX_TITLE_SEGMENTS", 3)
    results = search(searcher, text_match="only")
    assert len(results) == 5 and results[-1].segment_id


def test_an_unknown_choice_is_refused():
    with pytest.raises(InvalidQueryError, match="text_match"):
        SearchQuery("a", text_match="maybe")  # type: ignore[arg-type]


def scored(*rows: tuple[int, int, float]) -> ScoredSegments:
    table = np.array(rows, np.float64).reshape(-1, 3)
    total = table[:, 2].astype(np.float32)
    return ScoredSegments(
        table[:, 0].astype(np.int64),
        table[:, 1].astype(np.int64),
        total,
        np.zeros((len(total), 4), np.float32),
    )


def test_what_both_orders_have_comes_before_what_one_has():
    nan = float("nan")
    meaning = scored((1, 10, 9.0), (2, 20, 8.0), (3, 30, 7.0), (4, 40, nan), (5, 50, nan))
    text = scored((7, 30, 7.0), (5, 50, 1.0))
    query = SearchQuery("a", text_match="boost")
    assert fuse(meaning, text, query).video_keys.tolist() == [30, 10, 20, 50, 40]
    # A video keeps the segment by which meaning found it.
    assert fuse(meaning, text, query).segment_ids.tolist() == [3, 1, 2, 5, 4]
    by_segment = replace(query, group_by="segment")
    assert fuse(meaning, text, by_segment).segment_ids.tolist() == [1, 7, 2, 5, 3, 4]
