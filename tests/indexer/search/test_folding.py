"""Near duplicates: the folded order is what comparing each result with all before it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.errors import InvalidQueryError
from indexer.search import folding
from indexer.search.folding import leaders_of
from indexer.search.searcher import Searcher
from indexer.search.types import (
    FOLD_THRESHOLD,
    MAX_COPIES,
    GroupBy,
    SearchMode,
    SearchQuery,
    SearchResult,
    SimilarQuery,
)
from tests.support.catalog_builders import add_video, make_segment, unit
from tests.support.small_searchers import D, F, make_index, open_index

NUM_SCENES, NUM_VIDEOS = 7, 30
EVERYTHING = SearchQuery("a dog runs", limit=1000)


def near(look: NDArray[np.float32], cosine: float, random: np.random.Generator) -> NDArray[np.float32]:
    """A unit vector with this cosine."""
    other = random.standard_normal(len(look))
    other = unit(other - (other @ look) * look)
    return unit(cosine * look + np.sqrt(1 - cosine**2) * other)


def fill(searcher: Searcher, numbers: range, segments_each: int = 1, **fields: Any) -> None:
    """Videos that show one of NUM_SCENES each, every one a little otherwise."""
    for number in numbers:
        random = np.random.default_rng(number)
        segments = []
        for position in range(segments_each):
            scene = unit(np.random.default_rng(1000 * position + number % NUM_SCENES).standard_normal(D))
            look = near(scene, float(random.choice([1.0, 0.999, 0.995, 0.97, 0.9])), random)
            segments.append(make_segment(random, D, F, start_seconds=10.0 * position, video_feature=look))
        add_video(
            searcher.catalog, number, segments, title=f"a dog {number}", metadata={"number": number}, **fields
        )


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    with open_index(make_index(tmp_path_factory.mktemp("folding") / "index")) as searcher:
        fill(searcher, range(NUM_VIDEOS), segments_each=2)
        yield searcher


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Searcher]:
    with open_index(make_index(tmp_path / "index")) as searcher:
        yield searcher


def feature(searcher: Searcher, result: SearchResult) -> NDArray[np.float64]:
    return searcher.catalog.video_features(np.array([result.segment_id]))[1][0].astype(np.float64)


def folded_plainly(
    searcher: Searcher, results: list[SearchResult], threshold: float
) -> list[tuple[int, list[int]]]:
    """(segment id, those folded into it): each result compared with all that stayed before it."""
    stayed: list[tuple[int, NDArray[np.float64], list[int]]] = []
    for result in results:
        look = feature(searcher, result)
        same = next((one for one in stayed if one[1] @ look >= threshold - 1e-6), None)
        if same is None:
            stayed.append((result.segment_id, look, []))
        else:
            same[2].append(result.segment_id)
    return [(segment_id, copies) for segment_id, _, copies in stayed]


def summed_up(results: list[SearchResult]) -> list[tuple[int, list[int]]]:
    assert all(result.num_copies == len(result.copies) for result in results)
    return [(result.segment_id, [copy.segment_id for copy in result.copies]) for result in results]


@pytest.mark.parametrize("mode", get_args(SearchMode))
@pytest.mark.parametrize("group_by", get_args(GroupBy))
@pytest.mark.parametrize(
    "changes", [{}, {"text_match": "boost"}, {"text_match": "only"}, {"without": "a cat"}]
)
def test_each_result_is_folded_into_the_first_before_it_that_looks_the_same(
    searcher: Searcher, mode: SearchMode, group_by: GroupBy, changes: dict[str, Any]
) -> None:
    for candidates, threshold in ((5, 0.9), (200, 0.98)):
        query = replace(EVERYTHING, mode=mode, group_by=group_by, candidates=candidates, **changes)
        expected = folded_plainly(searcher, list(searcher.search(query).results), threshold)
        folded = replace(query, fold=threshold)
        assert summed_up(list(searcher.search(folded).results)) == expected
        paged: list[SearchResult] = []
        for limit in (1, 3, 5):
            page = searcher.search(replace(folded, limit=limit, offset=len(paged))).results
            assert len(page) == min(limit, len(expected) - len(paged)), "pages stay full"
            paged += page
        assert [r.segment_id for r in paged] == [segment_id for segment_id, _ in expected][: len(paged)]
        assert [r.rank for r in paged] == list(range(1, len(paged) + 1))


def test_a_page_names_the_copies_among_the_candidates_wherever_it_ends(searcher: Searcher) -> None:
    query = replace(EVERYTHING, fold=0.9, candidates=200)
    whole = searcher.search(query).results
    assert sum(result.num_copies for result in whole) == NUM_VIDEOS - len(whole) >= NUM_VIDEOS // 3
    for mode in get_args(SearchMode):
        first = searcher.search(replace(query, limit=1, mode=mode)).results[0]
        everything = searcher.search(replace(query, mode=mode)).results[0]
        assert first.copies == everything.copies
        for copy in first.copies:
            other = next(r for r in searcher.search(EVERYTHING).results if r.id == copy.id)
            assert copy.similarity == pytest.approx(
                feature(searcher, first) @ feature(searcher, other), abs=1e-5
            )


def test_true_is_the_measured_threshold_and_false_folds_nothing(searcher: Searcher) -> None:
    usual = searcher.search(replace(EVERYTHING, fold=True)).results
    assert usual == searcher.search(replace(EVERYTHING, fold=FOLD_THRESHOLD)).results
    assert len(usual) < NUM_VIDEOS
    plain = searcher.search(EVERYTHING).results
    assert len(plain) == NUM_VIDEOS and not any(r.copies or r.num_copies for r in plain)


def test_a_filter_leaves_copies_out_as_it_does_results(searcher: Searcher) -> None:
    few = {"metadata.number": {"lt": 20}}
    results = searcher.search(replace(EVERYTHING, fold=0.9, filter=few)).results
    found = [result.id for result in results] + [copy.id for result in results for copy in result.copies]
    assert sorted(found) == sorted(f"video-{number}" for number in range(20))


def test_a_least_score_ends_folded_results_too(searcher: Searcher) -> None:
    scores = [result.score for result in searcher.search(EVERYTHING).results]
    query = replace(EVERYTHING, min_score=scores[14])
    expected = folded_plainly(searcher, list(searcher.search(query).results), 0.9)
    assert summed_up(list(searcher.search(replace(query, fold=0.9)).results)) == expected


def test_videos_like_a_video_are_folded(searcher: Searcher) -> None:
    for group_by in get_args(GroupBy):
        plain = searcher.similar("video-3", limit=1000, group_by=group_by).results
        expected = folded_plainly(searcher, list(plain), 0.9)
        folded = searcher.similar("video-3", limit=1000, group_by=group_by, fold=0.9).results
        assert summed_up(list(folded)) == expected
        second = searcher.similar("video-3", limit=2, offset=1, group_by=group_by, fold=0.9).results
        assert [r.segment_id for r in second] == [segment_id for segment_id, _ in expected[1:3]]
    assert not any(copy.id == "video-3" for result in folded for copy in result.copies)


def test_several_texts_are_folded_each_by_itself(searcher: Searcher) -> None:
    queries = [replace(EVERYTHING, text=text, fold=0.9, limit=4) for text in ("a dog runs", "two cats")]
    for query, answer in zip(queries, searcher.search_all(queries).answers, strict=True):
        alone = searcher.search(query).results
        assert summed_up(list(answer.results)) == summed_up(list(alone))


@pytest.mark.parametrize("mode", get_args(SearchMode))
def test_pages_stay_full_behind_many_copies(
    empty: Searcher, mode: SearchMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of one look than are looked through at first."""
    monkeypatch.setattr(folding, "LOOK_AHEAD", 8)
    look = unit(np.ones(D))
    for number in range(60):
        random = np.random.default_rng(number)
        vector = look if number < 54 else None
        add_video(empty.catalog, number, [make_segment(random, D, F, video_feature=vector)])
    for candidates in (5, 50):
        query = SearchQuery("a dog", limit=5, candidates=candidates, mode=mode, fold=0.99)
        found = empty.search(query).results
        behind = empty.search(replace(query, offset=5)).results
        assert (len(found), len(behind)) == (5, 2)
        assert len({result.id for result in (*found, *behind)}) == 7


def test_many_copies_are_counted_and_the_best_are_named(empty: Searcher) -> None:
    for number in range(MAX_COPIES + 3):
        segment = make_segment(np.random.default_rng(number), D, F, video_feature=unit(np.ones(D)))
        add_video(empty.catalog, number, [segment])
    (found,) = empty.search(SearchQuery("a dog", fold=True)).results
    assert (found.num_copies, len(found.copies)) == (MAX_COPIES + 2, MAX_COPIES)
    plain = [result.id for result in empty.search(replace(EVERYTHING, text="a dog")).results]
    assert [copy.id for copy in found.copies] == plain[1 : MAX_COPIES + 1]


def test_a_deleted_result_is_replaced_by_its_best_copy(
    empty: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(empty, range(NUM_VIDEOS))
    query = SearchQuery("a dog", limit=3, fold=0.9)
    first = next(result for result in empty.search(query).results if result.copies)

    def delete_and_fold(*arguments: Any) -> folding.Results:
        found = folding.fold_results(*arguments)
        if empty.catalog.get_videos([first.id]):
            empty.catalog.delete_video(first.id)
        return found

    monkeypatch.setattr("indexer.search.searcher.fold_results", delete_and_fold)
    found = empty.search(query).results
    assert summed_up(list(found)) == summed_up(list(empty.search(query).results)) and len(found) == 3
    everything = empty.search(replace(query, limit=1000)).results
    named = {result.id for result in everything} | {copy.id for r in everything for copy in r.copies}
    assert first.copies[0].id in named and first.id not in named


@pytest.mark.parametrize("fold", [0.4, 1.5, float("nan"), "yes", None, -1, 2])
def test_other_thresholds_are_refused(fold: Any) -> None:
    for make in (lambda: SearchQuery("a dog", fold=fold), lambda: SimilarQuery(fold=fold)):
        with pytest.raises(InvalidQueryError, match="fold must be True, False, or"):
            make()


def test_an_index_without_videos_has_nothing_to_fold(empty: Searcher) -> None:
    for mode in get_args(SearchMode):
        assert empty.search(SearchQuery("a dog", mode=mode, fold=True)).results == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 70), st.integers(0, 20), st.integers(1, 30))
def test_leaders_are_those_of_a_plain_loop(seed: int, count: int, most: int, block_rows: int) -> None:
    random = np.random.default_rng(seed)
    looks = unit(random.standard_normal((5, 6)))
    rows = [near(looks[n], random.choice([1, 0.99, 0.9]), random) for n in random.integers(0, 5, count)]
    vectors = np.array(rows, np.float32).reshape(count, 6)
    stayed: list[int] = []
    expected = []
    for row in range(count):
        same = [other for other in stayed if vectors[other] @ vectors[row] >= 0.95 - 1e-6]
        if not same and len(stayed) < most:
            stayed.append(row)
            same = [row]
        expected.append(same[0] if same else -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "_BLOCK_ROWS", block_rows)
        leaders, cosines = leaders_of(vectors, 0.95, most)
    assert leaders.tolist() == expected
    is_set = leaders >= 0
    assert cosines[is_set] == pytest.approx(
        np.sum(vectors[is_set] * vectors[leaders[is_set]], axis=1), abs=1e-6
    )
