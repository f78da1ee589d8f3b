"""A text that is not wanted: its scores are subtracted, everywhere where scores are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from indexer.errors import InvalidQueryError
from indexer.search.searcher import Searcher
from indexer.search.types import NOT_WEIGHT, SearchQuery, SearchResult
from tests.support.small_searchers import fill, make_index, open_index

WANTED, UNWANTED = "a dog runs", "two cats"


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    with open_index(make_index(tmp_path_factory.mktemp("less") / "index")) as searcher:
        fill(searcher.catalog, range(40))
        searcher.prepare()
        yield searcher


def by_id(results: list[SearchResult]) -> dict[str, SearchResult]:
    return {result.id: result for result in results}


@pytest.mark.parametrize("mode", ["rerank", "coarse", "exhaustive"])
def test_every_score_is_the_difference_of_both_texts_scores(searcher: Searcher, mode: str) -> None:
    wanted, unwanted, both = (
        by_id(searcher.search(SearchQuery(text, limit=40, mode=mode, without=without)).results)
        for text, without in ((WANTED, None), (UNWANTED, None), (WANTED, UNWANTED))
    )
    assert len(both) == 40
    for id, result in both.items():
        expected = wanted[id].score - NOT_WEIGHT * unwanted[id].score
        assert result.score == pytest.approx(expected, abs=1e-3)
        for name, part in result.scores.items():
            if part is not None:
                difference = wanted[id].scores[name] - NOT_WEIGHT * unwanted[id].scores[name]
                assert part == pytest.approx(difference, abs=1e-3)
    scores = [result.score for result in both.values()]
    assert scores == sorted(scores, reverse=True)


def test_the_coarse_stage_looks_for_the_difference_too(searcher: Searcher) -> None:
    query = SearchQuery(WANTED, limit=5, without=UNWANTED, candidates=5, mode="coarse")
    found = [result.id for result in searcher.search(query).results]
    everything = searcher.search(SearchQuery(WANTED, limit=40, without=UNWANTED, mode="coarse")).results
    assert found == [result.id for result in everything[:5]]


def test_moments_and_explanations_are_about_what_is_wanted(searcher: Searcher) -> None:
    plain = by_id(searcher.search(SearchQuery(WANTED, limit=40, explain=True)).results)
    less = by_id(searcher.search(SearchQuery(WANTED, limit=40, explain=True, without=UNWANTED)).results)
    for id, result in less.items():
        assert [m.time_seconds for m in result.moments] == [m.time_seconds for m in plain[id].moments]
        assert result.explanation is not None and plain[id].explanation is not None
        assert result.explanation.tokens == plain[id].explanation.tokens


def test_there_are_no_percentiles_of_a_difference(searcher: Searcher) -> None:
    results = searcher.search(SearchQuery(WANTED, without=UNWANTED)).results
    assert {result.percentile for result in results} == {None}
    with pytest.raises(InvalidQueryError, match="min_percentile"):
        SearchQuery(WANTED, without=UNWANTED, min_percentile=50)


def test_many_queries_share_what_is_not_wanted(searcher: Searcher) -> None:
    queries = [SearchQuery(text, limit=40, without=UNWANTED) for text in (WANTED, "snow", UNWANTED)]
    for query, answer in zip(queries, searcher.search_all(queries).answers, strict=True):
        alone = searcher.search(query).results
        assert [r.id for r in answer.results] == [r.id for r in alone]
        np.testing.assert_allclose([r.score for r in answer.results], [r.score for r in alone], atol=1e-3)


@pytest.mark.parametrize("without", ["", "  ", "x" * 10_001])
def test_a_text_that_is_none_is_refused(without: str) -> None:
    with pytest.raises(InvalidQueryError, match="without"):
        SearchQuery(WANTED, without=without)
