"""Percentiles of scores against what chance gives in the same index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexer.search.baseline import (
    MIN_SEGMENTS,
    Baseline,
    BaselineScores,
    baseline_texts,
    of_chance,
    sample_segments,
)
from indexer.search.searcher import Searcher
from indexer.search.types import SearchQuery
from model import TextFeatures, XClip
from tests.support.small_searchers import fill, make_index, open_index, tiny_model


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    with open_index(make_index(tmp_path_factory.mktemp("baseline") / "index")) as searcher:
        fill(searcher.catalog, range(30), segments_each=2)
        searcher.prepare()
        yield searcher


def make_baseline(scores: list[float]) -> Baseline:
    ordered = np.sort(np.array(scores, np.float32))
    return Baseline(1, 10, ordered, ordered)


@given(
    scores=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    others=st.lists(st.floats(-100, 100, width=32), max_size=10),
    percentile=st.floats(0, 100),
)
def test_the_least_score_lets_through_just_what_has_the_percentile(
    scores: list[float], others: list[float], percentile: float
) -> None:
    baseline = make_baseline(scores)
    asked = np.array(scores + others, np.float32)
    least = baseline.least_score("rerank", percentile)
    for score in asked:
        num_below = sum(other < score for other in baseline.total)
        enough = num_below >= percentile / 100 * len(scores) - 1e-6
        assert (least is None or score >= least) == enough


def test_a_percentile_is_the_share_of_the_baseline_below() -> None:
    baseline = make_baseline([1.0, 2.0, 2.0, 4.0])
    asked = np.array([0.0, 1.0, 2.0, 3.0, 5.0], np.float32)
    assert baseline.percentiles("rerank", asked) == [0.0, 0.0, 25.0, 75.0, 100.0]
    assert make_baseline([]).percentiles("coarse", asked) == [None] * 5


def test_what_a_sentence_is_right_for_is_no_chance() -> None:
    chance = np.random.default_rng(0).normal(0.0, [[1.0], [5.0]], (2, 1000)).astype(np.float32)
    right = np.array([[9.0] * 40, [60.0] * 40], np.float32)  # Each far above the others of its sentence.
    kept = of_chance([chance[:, :500], np.hstack([chance[:, 500:], right])])
    assert kept.max() < 3.3 * 5 and len(kept) >= 0.99 * chance.size
    assert (kept == np.sort(kept)).all()


def test_a_match_is_as_sure_as_chance_is_rare() -> None:
    """Of an exponential distribution the share above a score is known; the tail is beyond the sample."""
    scores = np.random.default_rng(0).exponential(1.0, 200_000)
    baseline = make_baseline(scores.tolist())
    for num_segments in (100, 1_000_000):
        expected = np.array([20.0, 5.0, 0.5, 0.05])  # Segments that chance puts as high.
        asked = np.log(num_segments / expected).astype(np.float32)
        assert baseline.matches("rerank", asked, num_segments) == ["none", "weak", "likely", "strong"]
    assert make_baseline([]).matches("rerank", np.zeros(2, np.float32), 10) == [None, None]


def test_a_result_that_chance_gives_is_no_strong_match(searcher: Searcher) -> None:
    results = searcher.search(SearchQuery("a dog", limit=30)).results
    order = ["strong", "likely", "weak", "none"]
    found = [order.index(result.match) for result in results]
    assert found == sorted(found) and found[-1] == 3


@pytest.mark.parametrize(
    ("text", "knows"), [("an elephant", False), ("elephant and giraffe", False), ("a red elephant", True)]
)
def test_nothing_matches_a_text_of_which_the_model_knows_no_word(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, text: str, knows: bool
) -> None:
    monkeypatch.setattr(
        XClip,
        "unknown_words",
        lambda self, text: [word for word in text.split() if word in ("elephant", "giraffe")],
    )
    monkeypatch.setattr(
        Baseline, "matches", lambda self, mode, scores, num_segments: ["strong"] * len(scores)
    )
    answer = searcher.search(SearchQuery(text, limit=3))
    assert [result.match for result in answer.results] == ["strong" if knows else "none"] * 3
    assert "the model does not know these words" in answer.warnings[0]


def test_a_model_with_a_sigmoid_says_how_sure_it_is(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.9, 0.2, 0.02, 0.002])
    monkeypatch.setattr(XClip, "probability", lambda self, score: torch.tensor([next(shares) for _ in score]))
    results = searcher.search(SearchQuery("a dog", limit=4)).results
    assert [result.match for result in results] == ["strong", "likely", "weak", "none"]


def test_each_mode_has_the_baseline_of_its_own_scores(searcher: Searcher) -> None:
    """Brute force: every sentence with every segment, there being fewer than the sample."""
    model = tiny_model()
    features = searcher._features.get(searcher._index.segment_ids())
    scores = model.score(model.encode_text(list(baseline_texts())), features.videos)
    for mode, expected in (("rerank", scores.total), ("coarse", scores.video_sentence)):
        table = of_chance([expected.detach().numpy()])
        for result in searcher.search(SearchQuery("a dog", limit=30, mode=mode)).results:
            share = 100 * np.searchsorted(table, result.score) / len(table)
            assert result.percentile == pytest.approx(share, abs=0.2)


@pytest.mark.parametrize("mode", ["rerank", "coarse", "exhaustive"])
def test_a_least_percentile_leaves_the_rest_out(searcher: Searcher, mode: str) -> None:
    query = SearchQuery("a dog", limit=30, mode=mode)
    whole = searcher.search(query).results
    assert [r.percentile for r in whole] == sorted((r.percentile for r in whole), reverse=True)
    least = whole[9].percentile
    part = searcher.search(replace(query, min_percentile=least)).results
    assert [r.id for r in part] == [r.id for r in whole if r.percentile >= least]
    assert searcher.search(replace(query, min_percentile=0.0)).results == whole
    assert len(searcher.search(replace(query, min_percentile=100.0)).results) <= 1


def test_a_small_index_has_no_percentiles_and_says_so(tmp_path: Path) -> None:
    with open_index(make_index(tmp_path / "index")) as searcher:
        fill(searcher.catalog, range(MIN_SEGMENTS - 1))
        answer = searcher.search(SearchQuery("a dog", min_percentile=99.0))
        assert len(answer.results) == MIN_SEGMENTS - 1
        assert {result.percentile for result in answer.results} == {None}
        assert "too small" in answer.warnings[0]


def test_the_baseline_is_remade_when_a_tenth_has_changed(tmp_path: Path) -> None:
    with open_index(make_index(tmp_path / "index")) as searcher:
        fill(searcher.catalog, range(40))
        searcher.prepare()
        scores: BaselineScores = searcher._baseline
        first = scores.now
        fill(searcher.catalog, range(40, 44))
        searcher._index.follow()
        assert not scores.is_stale and scores.make() is first
        fill(searcher.catalog, [44])
        searcher._index.follow()
        assert scores.is_stale and scores.make(only_first=True) is first
        assert scores.make().num_segments == 45 and not scores.is_stale


def test_a_first_search_makes_the_baseline_for_the_next(tmp_path: Path) -> None:
    with open_index(make_index(tmp_path / "index")) as searcher:
        fill(searcher.catalog, range(20))
        assert {r.percentile for r in searcher.search(SearchQuery("a dog")).results} == {None}
        searcher._refresher.wait()
        assert None not in {r.percentile for r in searcher.search(SearchQuery("a dog")).results}


def test_closing_after_one_search_does_not_wait_for_the_baseline(tmp_path: Path) -> None:
    with open_index(make_index(tmp_path / "index")) as searcher:
        fill(searcher.catalog, range(20))
        encode, begun, released, batches = searcher.model.encode_text, Event(), Event(), []

        def encode_text(texts: list[str]) -> TextFeatures:
            batches.append(list(texts))
            if texts[0] in baseline_texts():
                begun.set()
                assert released.wait(10)
            return encode(texts)

        searcher.model.encode_text = encode_text  # type: ignore[assignment, method-assign]
        searcher.search(SearchQuery("a dog"))
        assert begun.wait(10)
        closing = Thread(target=searcher.close)
        closing.start()
        assert searcher._refresher._closing.wait(10)
        released.set()
        closing.join(10)
        assert not closing.is_alive()
        assert [len(batch) < len(baseline_texts()) for batch in batches] == [True]  # the one under way


def test_a_damaged_segment_stops_the_baseline_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_index(make_index(tmp_path / "index")) as searcher:
        fill(searcher.catalog, range(20))
        with searcher.catalog.connections.transaction() as connection:
            connection.execute("UPDATE segment_frames SET frame_features_crc32 = 0 WHERE segment_id = 3")
        monkeypatch.setattr(searcher._index, "_max_pending", 5)
        for _ in range(3):
            searcher.search(SearchQuery("a dog", mode="coarse", limit=1))
            searcher._refresher.wait()
        assert "segment 3" in caplog.text and caplog.text.count("baseline scores") == 1
        assert searcher.stats()["coarse_num_pending"] == 0
        assert (searcher.catalog.directory / "coarse.json").exists()


@given(st.sets(st.integers(1, 10**9), max_size=60), st.integers(1, 20))
def test_a_sample_is_fixed_and_changes_as_little_as_the_index(ids: set[int], count: int) -> None:
    every = np.array(sorted(ids), np.int64)
    sample = sample_segments(every, count)
    assert len(sample) == min(count, len(ids)) and set(sample.tolist()) <= ids
    assert sample.tolist() == sample_segments(every[::-1], count).tolist()
    for gone in sample[:2].tolist():
        rest = sample_segments(every[every != gone], count)
        assert set(sample.tolist()) - {gone} <= set(rest.tolist())


def test_a_sample_is_spread_over_the_index() -> None:
    sample = sample_segments(np.arange(1, 10_001), 500)
    assert np.histogram(sample, bins=10, range=(1, 10_001))[0].min() > 25


def test_the_sentences_serve_a_small_vocabulary_too() -> None:
    demo = XClip.load("demo")
    known = [text for text in baseline_texts() if not demo.unknown_words(text)]
    assert len(known) >= 24 and len(set(baseline_texts())) == len(baseline_texts())
