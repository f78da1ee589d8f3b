"""Pages of results: one order however it is cut, the rerank window first, the coarse order behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.search.ordering import ScoredSegments, best, best_of_blocks
from indexer.search.searcher import Searcher
from indexer.search.types import GroupBy, SearchMode, SearchQuery, SearchResult
from tests.support.small_searchers import fill, make_index, open_index

MODES, GROUPS = get_args(SearchMode), get_args(GroupBy)
EVERYTHING = SearchQuery("a dog runs", limit=1000, candidates=1000)


@pytest.fixture
def searcher(tmp_path: Path) -> Iterator[Searcher]:
    with open_index(make_index(tmp_path / "index")) as searcher:
        yield searcher


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    """25 videos of two segments."""
    with open_index(make_index(tmp_path_factory.mktemp("full") / "index")) as searcher:
        fill(searcher.catalog, range(25), segments_each=2)
        yield searcher


def pages(searcher: Searcher, query: SearchQuery) -> list[SearchResult]:
    """All pages by offset, one after the other."""
    found: list[SearchResult] = []
    while results := searcher.search(replace(query, offset=len(found))).results:
        found += results
    return found


def segments(results: Sequence[SearchResult]) -> list[int]:
    return [result.segment_id for result in results]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group_by", GROUPS)
@pytest.mark.parametrize("candidates", [1, 4, 1000])
def test_pages_of_any_size_are_slices_of_one_long_page(
    full: Searcher, mode: SearchMode, group_by: GroupBy, candidates: int
) -> None:
    query = replace(EVERYTHING, mode=mode, group_by=group_by, candidates=candidates)
    whole = full.search(query).results
    assert len(whole) == (25 if group_by == "video" else 50)
    for limit in (1, 4, 7, 50):
        paged = pages(full, replace(query, limit=limit))
        assert segments(paged) == segments(whole)
        assert [result.rank for result in paged] == list(range(1, len(whole) + 1))
        assert [r.score for r in paged] == pytest.approx([r.score for r in whole], abs=1e-4)


@pytest.mark.parametrize("group_by", GROUPS)
def test_a_window_that_holds_everything_answers_as_an_exhaustive_search(
    full: Searcher, group_by: GroupBy
) -> None:
    for candidates in (50, 1000):
        query = replace(EVERYTHING, group_by=group_by, candidates=candidates)
        reranked, exhaustive = full.search(query), full.search(replace(query, mode="exhaustive"))
        assert not reranked.truncated and not exhaustive.truncated
        assert segments(reranked.results) == segments(exhaustive.results)
        for one, other in zip(reranked.results, exhaustive.results, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.moments == other.moments


@pytest.mark.parametrize("candidates", [1, 4, 9, 49])
def test_the_first_candidates_are_ordered_by_the_full_score_and_the_rest_coarsely(
    full: Searcher, candidates: int
) -> None:
    by_segment = replace(EVERYTHING, group_by="segment")
    coarse = segments(full.search(replace(by_segment, mode="coarse")).results)
    exact = {r.segment_id: r for r in full.search(replace(by_segment, mode="exhaustive")).results}
    answer = full.search(replace(by_segment, candidates=candidates))
    assert answer.truncated
    window = sorted(coarse[:candidates], key=lambda i: (-exact[i].score, i))
    assert segments(answer.results) == window + coarse[candidates:]
    for result in answer.results:
        # Behind the window too a result shows its full score, though the order is not by it.
        assert result.score == pytest.approx(exact[result.segment_id].score, abs=1e-4)
        assert result.scores == pytest.approx(exact[result.segment_id].scores, abs=1e-4)

    by_video = full.search(replace(EVERYTHING, candidates=candidates)).results
    expected: dict[str, int] = {}
    for segment_id in window + coarse[candidates:]:
        expected.setdefault(exact[segment_id].id, segment_id)
    assert [(r.id, r.segment_id) for r in by_video] == list(expected.items())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group_by", GROUPS)
def test_pages_are_slices_though_many_segments_look_the_same(
    searcher: Searcher, mode: SearchMode, group_by: GroupBy
) -> None:
    fill(searcher.catalog, range(60), segments_each=2, num_looks=3)
    for candidates in (2, 16, 60):
        query = replace(EVERYTHING, mode=mode, group_by=group_by, candidates=candidates)
        whole = searcher.search(query).results
        assert len(whole) == (60 if group_by == "video" else 120)
        for limit in (7, 16):
            assert segments(pages(searcher, replace(query, limit=limit))) == segments(whole)


@pytest.mark.parametrize("mode", MODES)
def test_many_results_of_one_score_come_once_each(searcher: Searcher, mode: SearchMode) -> None:
    fill(searcher.catalog, range(60), num_looks=1)
    found = [r.id for r in pages(searcher, SearchQuery("a dog", limit=17, mode=mode, candidates=8))]
    assert len(found) == len(set(found)) == 60


@pytest.mark.parametrize("mode", MODES)
def test_a_least_score_holds_over_the_pages(searcher: Searcher, mode: SearchMode) -> None:
    fill(searcher.catalog, range(40))
    query = replace(EVERYTHING, mode=mode)
    whole = searcher.search(query).results
    found = pages(searcher, replace(query, limit=4, min_score=whole[14].score - 1e-3))
    assert segments(found) == segments(whole[:15])


def test_with_a_least_score_the_window_is_the_end(searcher: Searcher) -> None:
    fill(searcher.catalog, range(40))
    query = SearchQuery("a dog", limit=40, candidates=10)
    window = searcher.search(query).results[:10]
    least = window[5].score - 1e-3
    assert segments(pages(searcher, replace(query, limit=4, min_score=least))) == segments(window[:6])
    # In coarse order all scores are known.
    coarse = searcher.search(replace(query, mode="coarse")).results
    cut = replace(query, mode="coarse", min_score=coarse[24].score - 1e-3)
    assert segments(searcher.search(cut).results) == segments(coarse[:25])


def test_truncated_where_there_are_more_segments_than_candidates(searcher: Searcher) -> None:
    fill(searcher.catalog, range(30))
    query = SearchQuery("a dog", limit=5)
    for candidates, filter, truncated in (
        (29, None, True),
        (30, None, False),
        (10, {"metadata.number": {"lt": 10}}, False),
        (9, {"metadata.number": {"lt": 10}}, True),
    ):
        answer = searcher.search(replace(query, candidates=candidates, filter=filter))
        assert answer.truncated is truncated, (candidates, filter)


@settings(max_examples=100, deadline=None)
@given(
    videos=st.lists(st.integers(0, 6), max_size=40).map(sorted),
    seed=st.integers(0, 2**32 - 1),
    block_size=st.integers(1, 41),
    keep=st.integers(1, 12),
    group_by=st.sampled_from(GROUPS),
)
def test_the_best_of_blocks_are_the_best_of_all(
    videos: list[int], seed: int, block_size: int, keep: int, group_by: GroupBy
) -> None:
    count, random = len(videos), np.random.default_rng(seed)
    total = random.integers(0, 9, count).astype(np.float32)
    parts = np.zeros((count, 4), np.float32)
    scored = ScoredSegments(np.arange(1, count + 1), np.array(videos, np.int64), total, parts)
    blocks = [scored[first : first + block_size] for first in range(0, count, block_size)]
    expected = best(scored, group_by)[:keep].segment_ids.tolist()
    assert best_of_blocks(blocks, keep, group_by).segment_ids.tolist() == expected
