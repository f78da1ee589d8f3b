"""Videos that look like a video, texts that fit one, and many queries together: each equal to brute force."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.errors import InvalidQueryError, SearchCancelledError, VideoNotFoundError
from indexer.search.results import texts_warnings
from indexer.search.searcher import Searcher
from indexer.search.similar import MAX_ASKED_SEGMENTS
from indexer.search.types import SearchQuery
from indexer.store.cancellation import cancellable
from model.score_names import SCORE_NAMES
from tests.support.small_searchers import fill, make_index, open_index, tiny_model

TEXTS = ["a dog runs", "two cats", "a man talks to the camera", "nothing", "a dog runs", "snow " * 40]


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    with open_index(make_index(tmp_path_factory.mktemp("similar") / "index")) as searcher:
        fill(searcher.catalog, range(25), segments_each=3)
        fill(searcher.catalog, [100], segments_each=MAX_ASKED_SEGMENTS + 5)
        searcher.prepare()
        yield searcher


# Many queries together


@pytest.mark.parametrize("mode", ["rerank", "coarse", "exhaustive"])
@pytest.mark.parametrize("candidates", [2, 200])
def test_many_queries_answer_as_each_one_does(searcher: Searcher, mode: str, candidates: int) -> None:
    queries = [
        SearchQuery(
            text, limit=7, offset=2, mode=mode, candidates=candidates, filter={"metadata.number": {"lt": 20}}
        )
        for text in TEXTS
    ]
    together = searcher.search_all(queries)
    assert together.timings.encode_seconds > 0
    for query, answer in zip(queries, together.answers, strict=True):
        alone = searcher.search(query)
        assert [r.segment_id for r in answer.results] == [r.segment_id for r in alone.results]
        assert (answer.query, answer.truncated, answer.warnings) == (
            query.text,
            alone.truncated,
            alone.warnings,
        )
        for result, other in zip(answer.results, alone.results, strict=True):
            assert result.score == pytest.approx(other.score, abs=1e-3)
            assert [m.time_seconds for m in result.moments] == [m.time_seconds for m in other.moments]


def test_queries_that_differ_in_more_than_their_texts_are_refused(searcher: Searcher) -> None:
    with pytest.raises(InvalidQueryError, match="texts alone"):
        searcher.search_all([SearchQuery("a dog"), SearchQuery("a cat", limit=3)])
    with pytest.raises(InvalidQueryError, match="1 to"):
        searcher.search_all([])


# Videos like a video


def nearest(searcher: Searcher, video_id: str) -> list[tuple[str, float]]:
    """(id, highest cosine of two segments) of all other videos, nearest first, from the features alone."""
    segments = {
        record.id: searcher.catalog.segment_features(
            [info.segment_id for info in searcher.catalog.video_segments(record.id)]
        ).video
        for record in searcher.catalog.list_videos(100)
    }
    own = segments.pop(video_id)
    cosines = {other: float((own @ vectors.T).max()) for other, vectors in segments.items()}
    return sorted(cosines.items(), key=lambda item: -item[1])


def test_similar_videos_are_the_nearest_by_their_nearest_segments(searcher: Searcher) -> None:
    expected = nearest(searcher, "video-3")
    answer = searcher.similar("video-3", limit=30)
    assert [r.id for r in answer.results] == [video_id for video_id, _ in expected]
    assert [r.score for r in answer.results] == pytest.approx([cosine for _, cosine in expected], abs=1e-5)
    assert (answer.id, answer.num_videos) == ("video-3", 26)
    for result in answer.results:
        assert set(result.scores.values()) == {None} and result.percentile is None
        assert result.moments and all(-1.001 <= moment.score <= 1.001 for moment in result.moments)
        assert all(
            result.segment.start_seconds <= moment.time_seconds < result.segment.end_seconds
            for moment in result.moments
        )


def test_similar_videos_come_in_pages_and_through_a_filter(searcher: Searcher) -> None:
    whole = searcher.similar("video-3", limit=30).results
    pages = [searcher.similar("video-3", limit=4, offset=offset).results for offset in range(0, 28, 4)]
    assert [r.id for page in pages for r in page] == [r.id for r in whole]
    assert [r.rank for page in pages for r in page] == list(range(1, 26))
    chosen = searcher.similar("video-3", limit=5, filter={"metadata.number": {"gte": 10, "lt": 25}}).results
    assert [r.id for r in chosen] == [r.id for r in whole if 10 <= r.metadata["number"] < 25][:5]


def test_a_long_video_is_compared_by_some_of_its_segments(searcher: Searcher) -> None:
    results = searcher.similar("video-100", limit=30).results
    assert len(results) == 25 and "video-100" not in {r.id for r in results}
    exact = dict(nearest(searcher, "video-100"))
    assert all(result.score <= exact[result.id] + 1e-5 for result in results)


def test_a_copy_is_the_most_similar(tmp_path: Path) -> None:
    with open_index(make_index(tmp_path / "index")) as searcher:
        fill(searcher.catalog, range(10), num_looks=7)  # The last three look like the first.
        (result,) = searcher.similar("video-1", limit=1).results
        assert result.id == "video-8" and result.score == pytest.approx(1.0, abs=1e-5)
        assert [moment.score for moment in result.moments] == pytest.approx(
            [1.0] * len(result.moments), abs=2e-3
        )
        with pytest.raises(VideoNotFoundError):
            searcher.similar("video-99")
        with pytest.raises(InvalidQueryError):
            searcher.similar("video-1", limit=0)


# Texts for a video


def test_texts_are_ranked_by_the_full_score_with_the_best_segment(searcher: Searcher) -> None:
    model, infos = tiny_model(), searcher.catalog.video_segments("video-7")
    features = searcher._features.get(np.array([info.segment_id for info in infos]))
    texts = model.encode_text(TEXTS)
    with torch.inference_mode():
        scores = model.score(texts, features.videos)
        matches = model.frame_matches(texts, features.videos)
    best = scores.total.argmax(dim=1).tolist()
    expected = sorted(range(len(TEXTS)), key=lambda row: -scores.total[row, best[row]].item())
    answer = searcher.rank_texts("video-7", TEXTS)
    ranked = {result.index: result for result in answer.results}
    # Two of the texts are the same, so their order is that in which they were given.
    assert [r.index for r in answer.results if r.index != 4] == [row for row in expected if row != 4]
    assert [r.rank for r in answer.results] == list(range(1, len(TEXTS) + 1))
    for row, text in enumerate(TEXTS):
        result, position = ranked[row], best[row]
        assert result.text == text
        assert result.score == pytest.approx(scores.total[row, position].item(), abs=1e-3)
        for name in SCORE_NAMES:
            assert result.scores[name] == pytest.approx(getattr(scores, name)[row, position].item(), abs=1e-3)
        assert (result.segment.start_seconds, result.segment.end_seconds) == (
            infos[position].start_seconds,
            infos[position].end_seconds,
        )
        assert result.moments[0].score == pytest.approx(matches[row, position].max().item(), abs=1e-3)
    assert "1 of the texts" in answer.warnings[0]
    assert answer.timings.encode_seconds > 0 and None not in {r.percentile for r in answer.results}


def test_a_text_has_the_score_that_its_search_gives_the_video(searcher: Searcher) -> None:
    for result in searcher.rank_texts("video-9", TEXTS).results:
        found = searcher.search(SearchQuery(result.text, limit=100, mode="exhaustive")).results
        (own,) = [other for other in found if other.id == "video-9"]
        assert own.score == pytest.approx(result.score, abs=1e-3)
        assert own.percentile == pytest.approx(result.percentile, abs=0.2)


def test_texts_that_cannot_be_compared_are_refused(searcher: Searcher) -> None:
    for texts, complaint in (
        ([], "1 to"),
        (["a"] * 1001, "1 to"),
        (["a", " "], "texts.1."),
        ([3], "texts.0."),
    ):
        with pytest.raises(InvalidQueryError, match=complaint):
            searcher.rank_texts("video-1", texts)
    with pytest.raises(VideoNotFoundError):
        searcher.rank_texts("video-999", ["a dog"])


def test_words_of_texts_are_not_looked_up_after_cancellation() -> None:
    cancelled, seen = threading.Event(), list[str]()

    class Vocabulary:
        def unknown_words(self, text: str) -> list[str]:
            seen.append(text)
            cancelled.set()
            return []

    with cancellable(cancelled), pytest.raises(SearchCancelledError):
        texts_warnings(Vocabulary(), ["first", "second"])  # type: ignore[arg-type]
    assert seen == ["first"]
