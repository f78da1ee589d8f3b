"""The searcher: the same answer by every way that looks at everything, and pages that are full."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.errors import FingerprintMismatchError, IndexDamagedError, IndexNotFoundError, InvalidQueryError
from indexer.ingest.encoding import index_fingerprint
from indexer.search.searcher import Searcher, SearchQuery
from indexer.store.sqlite.catalog import Catalog
from model import VideoFeatures, XClip, XClipConfig
from model.score_names import SCORE_NAMES
from tests.support import small_searchers
from tests.support.catalog_builders import add_video, create_catalog, make_segment

REPOSITORY = Path(__file__).resolve().parents[3]
D, F = 32, 8


@functools.cache
def tiny_model(seed=0):
    torch.manual_seed(seed)
    model = XClip(XClipConfig.tiny()).eval()
    with torch.no_grad():  # Away from the identity, or some mistakes would not show.
        for matrix in model.matrices.parameters():
            matrix += 0.05 * torch.randn_like(matrix)
    return model


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def index_directory(tmp_path, model):
    directory = tmp_path / "index"
    create_catalog(
        directory,
        embedding_dim=D,
        num_frames=F,
        fingerprint=index_fingerprint(model, "{}"),
        sampling_json="{}",
    ).close()
    return directory


@pytest.fixture
def searcher(index_directory, model):
    with Searcher(index_directory, model, block_size=16) as searcher:
        yield searcher


def fill(catalog, random, numbers, *, segments_each=1):
    for number in numbers:
        segments = [
            make_segment(
                random, D, F, num_real_frames=1 + (number + position) % F, start_seconds=10.0 * position
            )
            for position in range(segments_each)
        ]
        add_video(catalog, number, segments, title=f"title {number}", metadata={"number": number})


def brute_force(searcher, text):
    """{segment id: (video number, four scores, total)} by one call of model.score over everything."""
    catalog, model = searcher.catalog, searcher.model
    features = catalog.segment_features(range(1, 10_000))
    video = VideoFeatures(
        torch.tensor(features.video),
        torch.tensor(features.frames).float(),
        torch.arange(F) < torch.tensor(features.num_frames)[:, None],
    )
    scores = model.score(model.encode_text([text]), video)
    parts = torch.stack([getattr(scores, name)[0] for name in SCORE_NAMES], dim=1)
    return {
        segment_id: (number, four, total)
        for segment_id, number, four, total in zip(
            features.segment_ids.tolist(),
            features.video_keys.tolist(),
            parts.tolist(),
            scores.total[0].tolist(),
            strict=True,
        )
    }


@pytest.mark.parametrize("mode", ["exhaustive", "rerank", "coarse"])
@pytest.mark.parametrize("group_by", ["video", "segment"])
def test_a_filtered_search_is_the_whole_order_without_the_others(searcher, random, mode, group_by):
    fill(searcher.catalog, random, range(60), segments_each=2)
    query = SearchQuery("a dog runs", limit=1000, candidates=1000, mode=mode, group_by=group_by)
    chosen = {"metadata.number": {"gte": 10, "lt": 40}}
    inside = [r for r in searcher.search(query).results if 10 <= r.metadata["number"] < 40]
    answer = searcher.search(replace(query, filter=chosen))
    assert [r.segment_id for r in answer.results] == [r.segment_id for r in inside]
    assert not answer.truncated
    # A page is full while there are more: few candidates do not let the filter shorten it.
    page = searcher.search(replace(query, filter=chosen, limit=20, candidates=1))
    assert len(page.results) == 20
    assert {r.metadata["number"] for r in page.results} <= set(range(10, 40))
    searcher.catalog.update_video("video-20", metadata={"number": 99})
    assert "video-20" not in [r.id for r in searcher.search(replace(query, filter=chosen)).results]
    assert searcher.search(replace(query, filter={"metadata.number": -1})).results == []


def assert_same_results(results, others):
    assert [result.segment_id for result in results] == [other.segment_id for other in others]
    for result, other in zip(results, others, strict=True):
        assert (result.id, result.rank, result.title) == (other.id, other.rank, other.title)
        assert result.score == pytest.approx(other.score, abs=1e-4)
        assert result.scores == pytest.approx(other.scores, abs=1e-4)


# Every way to the same answer


@pytest.mark.parametrize("group_by", ["video", "segment"])
@pytest.mark.parametrize("mode", ["exhaustive", "rerank"])
def test_looking_at_everything_gives_the_order_of_the_plain_score(searcher, random, mode, group_by):
    fill(searcher.catalog, random, range(40), segments_each=3)
    answer = searcher.search(
        SearchQuery("a dog runs", limit=1000, candidates=120, mode=mode, group_by=group_by)
    )
    expected = sorted(brute_force(searcher, "a dog runs").items(), key=lambda item: -item[1][2])
    if group_by == "video":
        seen = set()
        expected = [item for item in expected if not (item[1][0] in seen or seen.add(item[1][0]))]
    assert not answer.truncated and answer.num_videos == 40
    assert [result.segment_id for result in answer.results] == [segment_id for segment_id, _ in expected]
    assert [result.rank for result in answer.results] == list(range(1, len(expected) + 1))
    for result, (_, (_, four, total)) in zip(answer.results, expected, strict=True):
        assert result.score == pytest.approx(total, abs=1e-4)
        assert list(result.scores.values()) == pytest.approx(four, abs=1e-4)
        assert tuple(result.scores) == SCORE_NAMES


def test_blocks_of_any_size_give_the_same_answer(searcher, random, model):
    fill(searcher.catalog, random, range(30), segments_each=2)
    for mode in ("exhaustive", "rerank"):
        query = SearchQuery("a dog runs", limit=10, mode=mode)
        expected = searcher.search(query).results
        for block_size in (1, 7, 1000):
            with Searcher(searcher.catalog.directory, model, block_size=block_size) as other:
                assert_same_results(other.search(query).results, expected)


@pytest.mark.parametrize("mode", ["exhaustive", "rerank"])
def test_candidates_get_the_scores_of_the_total_and_results_all(tmp_path, random, mode, monkeypatch):
    names = ("video_sentence", "sentence_frame")
    model = XClip(XClipConfig.tiny(score_names=names)).eval()
    create_catalog(
        tmp_path / "index",
        embedding_dim=D,
        num_frames=F,
        fingerprint=index_fingerprint(model, "{}"),
        sampling_json="{}",
    ).close()
    with Searcher(tmp_path / "index", model, block_size=16) as searcher:
        fill(searcher.catalog, random, range(40))
        expected = brute_force(searcher, "a dog")
        pairs = dict.fromkeys(SCORE_NAMES, 0)
        score = model.score

        def counted(text, video, wanted=SCORE_NAMES):
            if len(text) == 1:  # Not the baseline's sentences.
                for name in wanted:
                    pairs[name] += len(video)
            return score(text, video, wanted)

        monkeypatch.setattr(model, "score", counted)
        # More results than candidates: those behind the window get their full score here too.
        candidates = 5 if mode == "rerank" else 40
        answer = searcher.search(SearchQuery("a dog", limit=8, candidates=candidates, mode=mode))
    assert len(answer.results) == 8
    for result in answer.results:
        _, four, total = expected[result.segment_id]
        assert list(result.scores.values()) == pytest.approx(four, abs=1e-4)
        assert result.score == pytest.approx(total, abs=1e-4)
    # Of what a page has from behind the window nothing is known yet, else only the other scores are missing.
    again = 8 if mode == "rerank" else 0
    assert pairs == {name: candidates + again if name in names else 8 for name in SCORE_NAMES}


def test_an_approximate_search_takes_exact_vectors_from_the_feature_file(tmp_path, monkeypatch):
    directory, model = small_searchers.make_index(tmp_path / "index"), small_searchers.tiny_model()
    with Catalog.open(directory) as catalog:
        small_searchers.fill(catalog, [0], segments_each=1_000)
    query = SearchQuery("a red car", mode="coarse", limit=20, group_by="segment")
    with Searcher(directory, model, coarse_kind="ivf-sq") as searcher:
        searcher._refresher.wait()
        searcher._features.update()
        right = searcher.search(query)
        monkeypatch.setattr(searcher.catalog, "video_features", None)
        assert [r.score for r in searcher.search(query).results] == [r.score for r in right.results]
        assert searcher.stats()["coarse_kind"] == "ivf-sq"


def test_the_window_is_that_of_exact_products_though_compressed_vectors_find_it(tmp_path, monkeypatch):
    directory, model = small_searchers.make_index(tmp_path / "index"), small_searchers.tiny_model()
    with Catalog.open(directory) as catalog:
        small_searchers.fill(catalog, range(250), segments_each=4)
    with Searcher(directory, model, coarse_kind="ivf-sq") as searcher:
        searcher._refresher.wait()
        searcher._features.update()
        small_searchers.fill(searcher.catalog, range(250, 260))  # Which are in no file yet.
        queries = [
            SearchQuery(text, candidates=candidates, group_by=group_by, limit=candidates + 5)
            for text in ("a red car", "two dogs")
            for candidates in (1, 30)
            for group_by in ("video", "segment")
        ]
        right = [searcher.search(query).results for query in queries]
        assert searcher.stats()["coarse_kind"] == "ivf-sq"
        searcher._features.check()
        asked = []
        search_index = searcher._index.search

        def search(*of, exact=True):
            asked.extend([of] if not exact else [])
            return search_index(*of, exact=exact)

        monkeypatch.setattr(searcher._index, "search", search)
        for query, results in zip(queries, right, strict=True):
            assert_same_results(searcher.search(query).results, results)
        assert len(asked) == len(queries)


def test_coarse_order_is_that_of_video_sentence(searcher, random):
    fill(searcher.catalog, random, range(40), segments_each=2)
    answer = searcher.search(SearchQuery("a dog runs", limit=1000, mode="coarse", group_by="segment"))
    expected = sorted(brute_force(searcher, "a dog runs").items(), key=lambda item: -item[1][1][0])
    assert [result.segment_id for result in answer.results] == [segment_id for segment_id, _ in expected]
    for result, (_, (_, four, _)) in zip(answer.results, expected, strict=True):
        assert result.score == result.scores["video_sentence"] == pytest.approx(four[0], abs=1e-4)
        assert [result.scores[name] for name in SCORE_NAMES[1:]] == [None] * 3
        assert result.moments


def test_a_saved_reopened_and_rebuilt_index_gives_the_same_answer(searcher, random, model):
    fill(searcher.catalog, random, range(20), segments_each=2)
    query = SearchQuery("two cats", limit=20, candidates=5)
    expected = searcher.search(query)
    directory = searcher.catalog.directory
    for _ in range(2):  # The first makes and saves a snapshot, the second loads it.
        with Searcher(directory, model) as other:
            assert_same_results(other.search(query).results, expected.results)
    assert list(directory.glob("coarse-*.faiss"))
    for path in directory.glob("coarse-*.faiss"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x40
        path.write_bytes(content)
    with Searcher(directory, model) as other:
        assert_same_results(other.search(query).results, expected.results)


# Pages


@pytest.mark.parametrize("mode", ["rerank", "coarse", "exhaustive"])
@pytest.mark.parametrize("group_by", ["video", "segment"])
def test_pages_join_to_the_whole(searcher, random, mode, group_by):
    fill(searcher.catalog, random, range(12), segments_each=2)
    query = SearchQuery("a dog", limit=1000, mode=mode, group_by=group_by)
    whole = searcher.search(query).results
    assert len(whole) == (12 if group_by == "video" else 24)
    pages = [searcher.search(replace(query, limit=5, offset=offset)).results for offset in range(0, 30, 5)]
    assert_same_results([result for page in pages for result in page], whole)


@pytest.mark.parametrize("mode", ["rerank", "coarse"])
def test_a_page_is_full_though_the_candidates_are_few_videos(searcher, random, mode, model):
    """One long video with all the best candidates, and short ones far behind."""
    with torch.no_grad():
        direction = model.coarse_query(model.encode_text(["a dog"]))[0].numpy()
    direction /= np.linalg.norm(direction)
    near = [make_segment(random, D, F, video_feature=direction, start_seconds=10.0 * n) for n in range(60)]
    far = make_segment(random, D, F, video_feature=-direction)
    add_video(searcher.catalog, 0, near)
    for number in range(1, 8):
        add_video(searcher.catalog, number, [far])
    answer = searcher.search(SearchQuery("a dog", limit=5, candidates=1, mode=mode))
    assert len({result.id for result in answer.results}) == len(answer.results) == 5
    page = searcher.search(SearchQuery("a dog", limit=5, offset=5, candidates=1, mode=mode))
    assert len(page.results) == 3 and [result.rank for result in page.results] == [6, 7, 8]
    assert searcher.search(SearchQuery("a dog", offset=8, candidates=1, mode=mode)).results == []


def test_candidates_bound_the_work_and_the_answer_says_so(searcher, random):
    fill(searcher.catalog, random, range(50))
    few = searcher.search(SearchQuery("a dog", limit=3, candidates=10))
    assert few.truncated and len(few.results) == 3
    assert not searcher.search(SearchQuery("a dog", limit=3, candidates=50)).truncated
    assert not searcher.search(SearchQuery("a dog", limit=3, mode="exhaustive")).truncated
    assert searcher.search(SearchQuery("a dog", limit=3, candidates=10, mode="coarse")).truncated
    many = searcher.search(SearchQuery("a dog", limit=30, offset=5, candidates=1))
    assert len(many.results) == 30, "candidates are raised to the end of the page"


def test_an_empty_index_answers_nothing(searcher):
    for mode in ("rerank", "coarse", "exhaustive"):
        answer = searcher.search(SearchQuery("a dog", mode=mode))
        assert answer.results == [] and answer.num_videos == 0 and not answer.truncated


def test_a_minimum_score_leaves_the_rest_out(searcher, random):
    fill(searcher.catalog, random, range(20))
    for mode in ("rerank", "coarse", "exhaustive"):
        whole = searcher.search(SearchQuery("a dog", limit=20, mode=mode)).results
        part = searcher.search(
            SearchQuery("a dog", limit=20, mode=mode, min_score=whole[7].score - 1e-3)
        ).results
        assert_same_results(part, whole[:8])
        assert searcher.search(SearchQuery("a dog", mode=mode, min_score=1e6)).results == []


# What a result says


def test_a_result_describes_its_video_and_segment(searcher, random):
    fill(searcher.catalog, random, [4], segments_each=3)
    (result,) = searcher.search(SearchQuery("a dog")).results
    record = searcher.catalog.get_video("video-4")
    assert (result.id, result.title, result.uri, result.metadata) == (
        "video-4",
        "title 4",
        None,
        {"number": 4},
    )
    assert result.duration_seconds == record.duration_seconds == 30.0
    info = searcher.catalog.segment_infos([result.segment_id])[result.segment_id]
    assert (result.segment.start_seconds, result.segment.end_seconds) == (
        info.start_seconds,
        info.end_seconds,
    )
    assert result.explanation is None


def test_moments_are_the_best_real_frames(searcher, random, model):
    fill(searcher.catalog, random, range(8))  # Videos with 1 to 8 real frames.
    results = searcher.search(SearchQuery("a dog", limit=8)).results
    for result in results:
        features = searcher.catalog.segment_features([result.segment_id])
        num_frames = int(features.num_frames[0])
        video = VideoFeatures(
            torch.tensor(features.video),
            torch.tensor(features.frames).float(),
            torch.tensor(features.frame_mask),
        )
        matches = model.frame_matches(model.encode_text(["a dog"]), video)[0, 0, :num_frames].tolist()
        expected = sorted(zip(matches, range(num_frames), strict=True), key=lambda pair: -pair[0])[:3]
        assert [moment.time_seconds for moment in result.moments] == [position for _, position in expected]
        assert [moment.score for moment in result.moments] == pytest.approx(
            [m for m, _ in expected], abs=1e-4
        )
    assert {len(result.moments) for result in results} == {1, 2, 3}


def test_all_sampled_frames_can_be_had_as_moments(searcher, random):
    fill(searcher.catalog, random, range(8))
    few = searcher.search(SearchQuery("a dog", limit=8)).results
    all_of_them = searcher.search(SearchQuery("a dog", limit=8, num_moments=64, explain=True)).results
    for short, long in zip(few, all_of_them, strict=True):
        times = [moment.time_seconds for moment in long.moments]
        assert sorted(times) == list(long.explanation.frame_times)
        assert long.moments[:3] == short.moments


def test_a_time_is_no_moment_twice(searcher, random):
    segment = replace(make_segment(random, D, F, num_real_frames=3), frame_times=np.array([0.0, 2.0, 2.0]))
    add_video(searcher.catalog, 1, [segment])
    (result,) = searcher.search(SearchQuery("a dog")).results
    assert sorted(moment.time_seconds for moment in result.moments) == [0.0, 2.0]


def test_an_explanation_says_which_words_met_which_frames(searcher, random, model):
    fill(searcher.catalog, random, [2])  # 3 real frames.
    (result,) = searcher.search(SearchQuery("a dog runs", explain=True)).results
    explanation = result.explanation
    assert explanation.tokens == ["<|startoftext|>", "a", "dog", "runs", "<|endoftext|>"]
    assert explanation.frame_times == [0.0, 1.0, 2.0]
    features = searcher.catalog.segment_features([result.segment_id])
    words = model.encode_text(["a dog runs"]).words[0, :5] @ model.matrices.local_matrix
    expected = words @ torch.tensor(features.frames[0, :3]).float().T
    assert np.allclose(explanation.similarity, expected.detach().numpy(), atol=1e-5)


def test_what_the_model_cannot_read_is_warned_about(searcher, random, index_directory, monkeypatch):
    assert searcher.search(SearchQuery("a dog")).warnings == []
    (warning,) = searcher.search(SearchQuery("dog " * 31)).warnings
    assert "first 30 of its 31 tokens" in warning
    assert searcher.search(SearchQuery("dog " * 30)).warnings == []
    monkeypatch.setattr(searcher.model.tokenizer, "unknown_words", lambda text: ["zebra", "okapi"])
    (warning,) = searcher.search(SearchQuery("a zebra and an okapi")).warnings
    assert "zebra, okapi" in warning


@pytest.mark.parametrize("mode", ["rerank", "coarse", "exhaustive"])
def test_timings_add_up(searcher, random, mode):
    fill(searcher.catalog, random, range(10))
    timings = searcher.search(SearchQuery("a dog", mode=mode)).timings
    parts = (timings.encode_seconds, timings.coarse_seconds, timings.rerank_seconds)
    assert timings.encode_seconds > 0 and all(part >= 0 for part in parts)
    assert sum(parts) <= timings.total_seconds < 60
    assert (timings.rerank_seconds > 0) is (mode != "coarse")


@pytest.mark.parametrize(
    "changes",
    [
        {"text": ""}, {"text": " \n\t"}, {"text": "x" * 10_001}, {"text": "\ud800"}, {"text": None},
        {"limit": 0}, {"limit": 1001}, {"limit": 1.0}, {"limit": True}, {"offset": -1}, {"offset": 10_001},
        {"candidates": 0}, {"candidates": 100_001}, {"mode": "best"}, {"group_by": "frame"},
        {"min_score": float("nan")}, {"min_score": float("inf")}, {"min_score": "1"},
        {"min_score": 10**400}, {"min_percentile": 10**400}, {"min_percentile": 101},
    ],
)  # fmt: skip
def test_a_query_out_of_range_is_refused(changes):
    with pytest.raises(InvalidQueryError, match=next(iter(changes))) as caught:
        SearchQuery(**{"text": "a dog", **changes})
    assert isinstance(caught.value, ValueError)


# The catalog changes


def test_what_another_process_adds_and_deletes_is_taken_in(searcher, random):
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from indexer.store.sqlite.catalog import Catalog\n"
        "from tests.support.catalog_builders import add_video, make_segment\n"
        "catalog, random = Catalog.open(sys.argv[1]), np.random.default_rng(1)\n"
        "add_video(catalog, 100, [make_segment(random, 32, 8)])\n"
        "catalog.delete_video('video-1')\n"
    )
    fill(searcher.catalog, random, range(3))
    found = {result.id for result in searcher.search(SearchQuery("a dog")).results}
    assert found == {"video-0", "video-1", "video-2"}
    subprocess.run(
        [sys.executable, "-c", program, str(searcher.catalog.directory)], cwd=REPOSITORY, check=True
    )
    for mode in ("rerank", "coarse", "exhaustive"):
        answer = searcher.search(SearchQuery("a dog", mode=mode))
        assert {result.id for result in answer.results} == {"video-0", "video-2", "video-100"}
        assert answer.num_videos == 3


@pytest.mark.parametrize("mode", ["rerank", "coarse", "exhaustive"])
@pytest.mark.parametrize("reading", ["segments_and_videos", "segment_features"])
def test_a_video_deleted_during_the_search_gives_way_to_the_next(
    searcher, random, monkeypatch, mode, reading
):
    """The best two are deleted just before one of the readings of the catalog."""
    fill(searcher.catalog, random, range(30), segments_each=2)
    query = SearchQuery("a dog", limit=5, candidates=5, mode=mode)
    best = [result.id for result in searcher.search(replace(query, limit=30, candidates=60)).results]
    read, victims = (
        getattr(searcher.catalog, reading),
        {result.id for result in searcher.search(query).results[:2]},
    )
    waiting = list(victims)

    def delete_and_read(*arguments):
        # The baseline scores are read in a thread of their own, at any time.
        while waiting and threading.current_thread() is threading.main_thread():
            searcher.catalog.delete_video(waiting.pop())
        return read(*arguments)

    monkeypatch.setattr(searcher.catalog, reading, delete_and_read)
    found = [result.id for result in searcher.search(query).results]
    assert waiting == [] and len(found) == 5 and not victims & set(found)
    if mode == "exhaustive":
        assert found == [video_id for video_id in best if video_id not in victims][:5]


@pytest.mark.parametrize("mode", ["rerank", "coarse", "exhaustive"])
def test_videos_that_come_during_the_search_fill_a_page_that_deletions_left_short(
    searcher, random, monkeypatch, mode
):
    fill(searcher.catalog, random, range(6))
    read, came = searcher.catalog.segments_and_videos, []

    def change_and_read(*arguments):
        while len(came) < 4 and threading.current_thread() is threading.main_thread():
            fill(searcher.catalog, random, [6 + len(came)])
            searcher.catalog.delete_video(f"video-{len(came)}")
            came.append(f"video-{6 + len(came)}")
        return read(*arguments)

    monkeypatch.setattr(searcher.catalog, "segments_and_videos", change_and_read)
    query = SearchQuery("a dog", limit=6, mode=mode, filter={"id": {"exists": True}})
    found = {result.id for result in searcher.search(query).results}
    assert found == {"video-4", "video-5", *came}


def test_searches_go_on_while_videos_come_and_go(searcher, random):
    fill(searcher.catalog, random, range(20), segments_each=2)
    stop, added, going, deleted = threading.Event(), {f"video-{number}" for number in range(20)}, set(), set()

    def search(mode):
        rounds = 0
        while not stop.is_set() or rounds < 2:
            before, gone = set(added), set(deleted)
            results = searcher.search(SearchQuery("a dog", limit=8, candidates=9, mode=mode)).results
            num_there_all_the_time = len(before - going)
            found = {result.id for result in results}
            assert len(found) == len(results) >= min(8, num_there_all_the_time)
            assert not gone & found
            assert [result.rank for result in results] == list(range(1, len(results) + 1))
            rounds += 1

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search, mode) for mode in ("rerank", "coarse", "exhaustive")]
        try:
            for number in range(20, 50):
                fill(searcher.catalog, random, [number], segments_each=2)
                added.add(f"video-{number}")
                going.add(f"video-{number - 20}")
                searcher.catalog.delete_video(f"video-{number - 20}")
                deleted.add(f"video-{number - 20}")
        finally:
            stop.set()
        for done in searches:
            done.result()


def test_the_coarse_index_is_compacted_and_saved_while_searches_go_on(searcher, random, monkeypatch):
    fill(searcher.catalog, random, range(10))
    monkeypatch.setattr(searcher._index, "_max_pending", 5)
    expected = searcher.search(SearchQuery("a dog")).results
    deadline = time.monotonic() + 20
    while not list(searcher.catalog.directory.glob("coarse.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert searcher.stats()["coarse_num_pending"] == 0
    assert_same_results(searcher.search(SearchQuery("a dog")).results, expected)


def test_an_index_that_cannot_be_saved_still_answers(searcher, random, model, monkeypatch, caplog):
    fill(searcher.catalog, random, range(3))

    def fail(*arguments):
        raise PermissionError("read-only")

    monkeypatch.setattr("indexer.coarse.index.save_snapshot", fail)
    with caplog.at_level(logging.WARNING), Searcher(searcher.catalog.directory, model) as other:
        assert len(other.search(SearchQuery("a dog")).results) == 3
        assert len(other.search(SearchQuery("a dog")).results) == 3
    assert sum("saving: read-only" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("feature_memory_bytes", [0, 10_000_000])
@pytest.mark.parametrize("mode", ["rerank", "coarse", "exhaustive"])
def test_a_warm_search_reads_the_store_at_most_five_times(
    index_directory, model, random, monkeypatch, mode, feature_memory_bytes
):
    reads = []
    with Searcher(index_directory, model, feature_memory_bytes=feature_memory_bytes) as searcher:
        fill(searcher.catalog, random, range(30))
        query = SearchQuery("a dog", candidates=20, mode=mode, filter={"metadata.number": {"lt": 25}})
        searcher.search(query)
        searcher._refresher.wait()
        reading = searcher.catalog.connections.reading

        def count_and_read(*limits):  # Every read goes through it, a snapshot too.
            reads.append(threading.current_thread())
            return reading(*limits)

        monkeypatch.setattr(searcher.catalog.connections, "reading", count_and_read)
        assert len(searcher.search(query).results) == 10
    assert 0 < len(reads) <= 5


# Opening


def test_an_index_of_another_model_is_refused(index_directory, model):
    other = tiny_model(1)
    with pytest.raises(FingerprintMismatchError) as caught:
        Searcher(index_directory, other)
    assert caught.value.expected == index_fingerprint(other, "{}")
    assert caught.value.found == index_fingerprint(model, "{}")


def test_a_missing_or_damaged_index_is_refused(tmp_path, index_directory, model):
    with pytest.raises(IndexNotFoundError):
        Searcher(tmp_path / "nowhere", model)
    (index_directory / "catalog.sqlite3").write_bytes(b"nonsense" * 1000)
    with pytest.raises(IndexDamagedError):
        Searcher(index_directory, model)
    with pytest.raises(ValueError, match="block_size"):
        Searcher(index_directory, model, block_size=0)


def test_a_closed_searcher_says_so(index_directory, model):
    searcher = Searcher(index_directory, model)
    searcher.close()
    searcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        searcher.search(SearchQuery("a dog"))


def test_stats_say_what_is_in_the_index(searcher, random, model):
    fill(searcher.catalog, random, range(3), segments_each=2)
    searcher.search(SearchQuery("a dog"))
    stats = searcher.stats()
    assert (stats["num_videos"], stats["num_segments"], stats["sequence"]) == (3, 6, 3)
    assert (stats["coarse_sequence"], stats["coarse_num_segments"], stats["coarse_num_pending"]) == (3, 6, 6)
    assert stats["fingerprint"] == index_fingerprint(model, "{}") and stats["catalog_size_bytes"] > 0


def test_importing_the_store_loads_neither_torch_nor_faiss():
    program = (
        "import sys, indexer, indexer.store.sqlite.catalog, indexer.store.sqlite.jobs, indexer.errors;"
        " print(*sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    assert not {"torch", "faiss", "open_clip"} & set(output.split())
