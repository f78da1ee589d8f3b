"""Pages of results: one order however it is cut, and nothing twice or missed while videos come and go."""

from __future__ import annotations

import base64
import itertools
import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import InvalidCursorError, InvalidQueryError
from indexer.search.search_cursor import Cursor, Edge, Horizon, Place
from indexer.search.searcher import Searcher
from indexer.search.types import GroupBy, SearchMode, SearchQuery, SearchResult
from tests.support.small_searchers import fill, make_index, open_index

MODES, GROUPS = get_args(SearchMode), get_args(GroupBy)
TOO_MANY = 200


@pytest.fixture
def searcher(tmp_path: Path) -> Iterator[Searcher]:
    with open_index(make_index(tmp_path / "index")) as searcher:
        yield searcher


def pages(searcher: Searcher, query: SearchQuery) -> Iterator[Sequence[SearchResult]]:
    """Page after page by cursor, to the end."""
    for _ in range(TOO_MANY):
        answer = searcher.search(query)
        yield answer.results
        if answer.next is None:
            return
        query = replace(query, cursor=answer.next, offset=0)
    raise AssertionError("the pages have no end")


def keys(results: Sequence[SearchResult], group_by: GroupBy) -> list[str | int]:
    return [result.id if group_by == "video" else result.segment_id for result in results]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group_by", GROUPS)
@pytest.mark.parametrize("candidates", [1, 4, 1000])
def test_cut_by_cursor_by_offset_or_not_at_all_the_order_is_the_same(
    searcher: Searcher, mode: SearchMode, group_by: GroupBy, candidates: int
) -> None:
    fill(searcher.catalog, range(25), segments_each=2, num_looks=13)
    query = SearchQuery("a dog runs", limit=1000, mode=mode, group_by=group_by, candidates=candidates)
    whole = searcher.search(query)
    assert whole.next is None and len(whole.results) == (25 if group_by == "video" else 50)
    for limit in (4, 50):
        by_cursor = list(itertools.chain(*pages(searcher, replace(query, limit=limit))))
        assert keys(by_cursor, "segment") == keys(whole.results, "segment")
        assert [result.rank for result in by_cursor] == list(range(1, len(by_cursor) + 1))
    by_offset = [
        result
        for offset in range(0, 51, 6)
        for result in searcher.search(replace(query, limit=6, offset=offset)).results
    ]
    assert keys(by_offset, "segment") == keys(whole.results, "segment")
    from_the_middle = pages(searcher, replace(query, limit=6, offset=9))
    assert keys(list(itertools.chain(*from_the_middle)), "segment") == keys(whole.results[9:], "segment")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_while_videos_come_and_go_nothing_comes_twice_and_nothing_that_stays_is_missed(
    data: st.DataObject,
) -> None:
    mode = data.draw(st.sampled_from(MODES), "mode")
    group_by = data.draw(st.sampled_from(GROUPS), "group_by")
    num_looks = data.draw(st.sampled_from([0, 1, 3]), "num_looks")  # Few looks: many equal scores.
    may_delete = data.draw(st.booleans(), "may_delete")
    query = SearchQuery(
        "a dog runs",
        limit=data.draw(st.integers(1, 7), "limit"),
        mode=mode,
        group_by=group_by,
        candidates=data.draw(st.sampled_from([1, 3, 8, 1000]), "candidates"),
    )
    with (
        tempfile.TemporaryDirectory() as directory,
        open_index(make_index(Path(directory) / "i")) as searcher,
    ):
        first = range(data.draw(st.integers(1, 12), "num_videos"))
        numbers, left = itertools.count(len(first)), {f"video-{number}" for number in first}
        for number in first:
            segments_each = data.draw(st.integers(1, 3), "segments_each")
            fill(searcher.catalog, [number], segments_each=segments_each, num_looks=num_looks)
        before = searcher.search(replace(query, limit=1000)).results
        found: list[SearchResult] = []
        for page in pages(searcher, query):
            found += page
            for change in data.draw(st.lists(st.sampled_from(["add", "delete"]), max_size=3), "changes"):
                if change == "add":
                    fill(searcher.catalog, [next(numbers)], segments_each=2, num_looks=num_looks)
                elif left and may_delete:
                    victim = data.draw(st.sampled_from(sorted(left)), "victim")
                    searcher.catalog.delete_video(victim)
                    left.discard(victim)
        after = [r for r in searcher.search(replace(query, limit=1000)).results if r.id in left]
    given_keys = keys(found, group_by)
    assert len(set(given_keys)) == len(given_keys), "nothing twice"
    assert set(given_keys) <= set(keys(before, group_by)), "nothing that came later"
    stayed = keys([result for result in found if result.id in left], group_by)
    assert set(stayed) == set(keys([r for r in before if r.id in left], group_by)), "nothing missed"
    assert [result.rank for result in found] == list(range(1, len(found) + 1))
    # Equal looks have scores that differ in the last bits or not at all: their order is anything.
    if not may_delete:
        assert [r.score for r in found] == pytest.approx([r.score for r in before], abs=1e-3)
        assert num_looks > 0 or given_keys == keys(before, group_by)
    if num_looks == 0 and (mode != "rerank" or query.candidates == 1000):
        assert stayed == keys(after, group_by)


def test_many_results_of_one_score_come_once_each(searcher: Searcher) -> None:
    fill(searcher.catalog, range(60), num_looks=1)
    for mode in MODES:
        query = SearchQuery("a dog", limit=17, mode=mode)
        found = keys(list(itertools.chain(*pages(searcher, query))), "video")
        assert len(found) == len(set(found)) == 60


@pytest.mark.parametrize("mode", MODES)
def test_a_least_score_holds_over_the_pages(searcher: Searcher, mode: SearchMode) -> None:
    fill(searcher.catalog, range(40))
    query = SearchQuery("a dog", limit=100, mode=mode, candidates=1000)
    whole = searcher.search(query).results
    query = replace(query, limit=4, min_score=whole[14].score - 1e-3)
    found = list(itertools.chain(*pages(searcher, query)))
    assert keys(found, "segment") == keys(whole[:15], "segment")


def test_candidates_of_which_none_is_good_enough_are_the_end(searcher: Searcher) -> None:
    fill(searcher.catalog, range(40))
    ordered = searcher.search(SearchQuery("a dog", limit=40, candidates=10)).results
    tiers = [ordered[first : first + 10] for first in range(0, 40, 10)]
    least = max(result.score for result in tiers[1]) + 1e-3
    answer = searcher.search(SearchQuery("a dog", limit=40, candidates=10, min_score=least))
    assert keys(answer.results, "video") == keys([r for r in tiers[0] if r.score >= least], "video")
    assert answer.next is None


def test_truncated_until_all_was_looked_at(searcher: Searcher) -> None:
    fill(searcher.catalog, range(30))
    query = SearchQuery("a dog", limit=5, candidates=10)
    seen = []
    for _ in range(6):
        answer = searcher.search(query)
        seen.append(answer.truncated)
        query = replace(query, cursor=answer.next)
    # The fourth page ends with the second ten, and has to know whether anything follows.
    assert seen == [True, True, True, False, False, False] and answer.next is None


# Cursors that do not fit


def first_cursor(searcher: Searcher, query: SearchQuery) -> str:
    cursor = searcher.search(query).next
    assert cursor is not None
    return cursor


def test_a_cursor_goes_with_its_own_search_alone(searcher: Searcher) -> None:
    fill(searcher.catalog, range(10))
    query = SearchQuery("a dog", limit=2, filter={"metadata.number": {"gte": 0}})
    cursor = first_cursor(searcher, query)
    again = replace(query, cursor=cursor)
    assert len(searcher.search(replace(again, limit=5, explain=True)).results) == 5
    for other in (
        {"text": "a cat"},
        {"mode": "coarse"},
        {"group_by": "segment"},
        {"candidates": 7},
        {"min_score": 0.0},
        {"min_percentile": 50.0},
        {"filter": None},
    ):
        with pytest.raises(InvalidCursorError, match="another search"):
            searcher.search(replace(again, **other))
    with pytest.raises(InvalidQueryError, match="offset"):
        replace(again, offset=1)


def test_a_cursor_goes_with_its_own_index_alone(searcher: Searcher, tmp_path: Path) -> None:
    fill(searcher.catalog, range(10))
    query = SearchQuery("a dog", limit=2)
    cursor = first_cursor(searcher, query)
    with open_index(make_index(tmp_path / "other")) as other:
        fill(other.catalog, range(10))  # The same videos under the same numbers.
        with pytest.raises(InvalidCursorError, match="no longer"):
            other.search(replace(query, cursor=cursor))
    fill(searcher.catalog, range(10, 20))
    searcher.catalog.forget_changes(15)
    with pytest.raises(InvalidCursorError, match="begin again"):
        searcher.search(replace(query, cursor=cursor))


def pack(fields: object) -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(fields).encode())).rstrip(b"=").decode()


QUERY = SearchQuery("a dog", limit=1)


@pytest.fixture(scope="module")
def three_videos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Searcher, str]]:
    """A searcher, and the cursor of its second page."""
    with open_index(make_index(tmp_path_factory.mktemp("three") / "index")) as searcher:
        fill(searcher.catalog, range(3))
        yield searcher, first_cursor(searcher, QUERY)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_text_is_taken_for_a_cursor_that_is_none(
    three_videos: tuple[Searcher, str], data: st.DataObject
) -> None:
    searcher, cursor = three_videos
    fields = json.loads(zlib.decompress(base64.urlsafe_b64decode(cursor + "==")))
    place = data.draw(st.integers(0, len(fields) - 1))
    broken = st.sampled_from(
        [None, [], "x", -1, 2**70, 1.5, float("nan"), {}, [[1]], [None] * 3, True, 10**400]
    )
    fields[place] = data.draw(broken)
    text = data.draw(
        st.sampled_from(
            [pack(fields), cursor[:-3], cursor + "A", cursor + "AAAA", pack([]), pack({}), "é" * 8]
        )
        | st.text(max_size=30)
    )
    try:
        Cursor.from_text(text, QUERY, searcher.catalog)
    except InvalidCursorError as error:
        assert "begin again" in str(error)
    else:
        # A least score is anybody's choice, and none is one.
        assert text == pack(fields) and place == 4 and fields[4] in (None, -1, 1.5)


@pytest.mark.parametrize("changes", [{6: 2**61}, {7: 2**61}, {6: 0, 7: 0}, {4: 1e300}, {4: -1e300}])
def test_a_cursor_that_was_tampered_with_answers_something(
    three_videos: tuple[Searcher, str], changes: dict[int, Any]
) -> None:
    searcher, cursor = three_videos
    fields = json.loads(zlib.decompress(base64.urlsafe_b64decode(cursor + "==")))
    for place, value in changes.items():
        fields[place] = value
    assert len(searcher.search(replace(QUERY, cursor=pack(fields))).results) <= 1


def test_a_bomb_is_no_cursor(searcher: Searcher) -> None:
    bomb = base64.urlsafe_b64encode(zlib.compress(b"[" * 20_000_000, 9)).decode()
    with pytest.raises(InvalidCursorError):
        searcher.search(SearchQuery("a dog", cursor=bomb))


def test_a_cursor_that_would_be_too_long_is_none(searcher: Searcher) -> None:
    random = np.random.default_rng(0)
    ids = tuple(np.cumsum(random.integers(1, 2**31, 30_000)).tolist())
    cursor = Cursor(Horizon(10**15, 1, ""), None, Place(None, None, Edge(0.0, ids), 1, 1))
    assert cursor.to_text(SearchQuery("a dog"), searcher.catalog.fingerprint) is None


# Edges


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30),
    noise_seed=st.integers(0, 2**32 - 1),
    cut=st.integers(1, 30),
)
def test_an_edge_knows_what_is_before_it_from_scores_that_are_a_little_off(
    scores: list[float], noise_seed: int, cut: int
) -> None:
    tolerance = 1e-3
    ordered = np.sort(np.array(scores, np.float32))[::-1]
    ids = np.random.default_rng(noise_seed).permutation(len(ordered)).astype(np.int64) + 1
    edge = Edge.behind(ordered[:cut], ids[:cut], tolerance)
    noise = np.random.default_rng(noise_seed).uniform(-0.4 * tolerance, 0.4 * tolerance, len(ordered))
    covered = edge.covers((ordered + noise).astype(np.float32), ids, tolerance)
    assert covered.tolist() == [place < cut for place in range(len(ordered))]
