"""The feature cache: always what the catalog says, whatever it holds, and never more than its budget."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.ingest.encoding import index_fingerprint
from indexer.search.caches import FeatureCache, ScorableSegments, slot_bytes
from indexer.search.searcher import Searcher, SearchQuery
from indexer.store.sqlite.catalog import Catalog
from model import XClip, XClipConfig
from tests.support.catalog_builders import add_video, create_catalog, make_segment

D, F = 8, 4
CPU = torch.device("cpu")


@pytest.fixture
def catalog(tmp_path):
    with create_catalog(tmp_path / "index", embedding_dim=D, num_frames=F) as catalog:
        yield catalog


def add(catalog, numbers):
    for number in numbers:
        random = np.random.default_rng(number)
        add_video(catalog, number, [make_segment(random, D, F, num_real_frames=1 + number % F)])


def cache_of(catalog, num_slots, device=CPU):
    return FeatureCache(catalog, size_bytes=num_slots * slot_bytes(F, D), device=device)


def bits(features: ScorableSegments) -> list[bytes]:
    videos = features.videos
    arrays = [features.segment_ids, features.video_keys]
    arrays += [tensor.cpu().numpy() for tensor in (videos.video, videos.frames, videos.frame_mask)]
    return [array.tobytes() for array in arrays]


def assert_as_in_catalog(cache, catalog, ids):
    ids = np.asarray(ids, np.int64)
    cache.sync(catalog.sequence)
    expected = ScorableSegments.of(catalog.segment_features(ids), CPU)
    assert bits(cache.get(ids)) == bits(expected)


def held_ids(cache, catalog):
    """Ids that the cache answers without asking the catalog for features."""
    asked = []

    class Recording:
        def segment_features(self, ids):
            asked.extend(ids.tolist())
            return catalog.segment_features(np.empty(0, np.int64))

    original, cache._catalog = cache._catalog, Recording()
    try:
        everything = np.arange(1, 1000)
        list(cache.blocks(everything, 1000))
    finally:
        cache._catalog = original
    return set(everything.tolist()) - set(asked)


# Equivalence

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5)),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("get"), st.lists(st.integers(-2, 40), max_size=25)),
        st.tuples(st.just("scan"), st.integers(1, 12)),
        st.tuples(st.just("forget log"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(num_slots=st.integers(0, 12), steps=STEPS)
def test_whatever_was_held_before_the_answer_is_the_catalogs(tmp_path_factory, num_slots, steps):
    directory = tmp_path_factory.mktemp("steps") / "index"
    with create_catalog(directory, embedding_dim=D, num_frames=F) as catalog:
        add(catalog, range(8))
        cache, next_number = cache_of(catalog, num_slots), 8
        for step, value in steps:
            ids = np.sort(np.concatenate([b.segment_ids for b in catalog.iterate_features()] or [[]]))
            if step == "add":
                add(catalog, range(next_number, next_number + value))
                next_number += value
            elif step == "delete" and len(ids):
                (info,) = catalog.segment_infos([int(ids[value % len(ids)])]).values()
                catalog.delete_video(info.video_id)
            elif step == "get":
                assert_as_in_catalog(cache, catalog, value)
            elif step == "scan":
                cache.sync(catalog.sequence)
                for first, block in enumerate(cache.blocks(ids, value)):
                    some = ids[first * value : (first + 1) * value]
                    assert bits(block) == bits(ScorableSegments.of(catalog.segment_features(some), CPU))
            elif step == "forget log":
                catalog.forget_changes(catalog.sequence)
            assert cache.num_held <= cache.num_slots == num_slots
        assert_as_in_catalog(cache, catalog, np.arange(1, next_number + 3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return XClip(XClipConfig.tiny()).eval()


@pytest.fixture
def index_directory(tmp_path, model):
    directory = tmp_path / "searched"
    facts = {"fingerprint": index_fingerprint(model, "{}"), "sampling_json": "{}"}
    num_frames, dimension = model.config.num_frames, model.config.embedding_dim
    with create_catalog(directory, embedding_dim=dimension, num_frames=num_frames, **facts) as catalog:
        random = np.random.default_rng(0)
        for number in range(60):
            add_video(catalog, number, [make_segment(random, dimension, num_frames) for _ in range(2)])
    return directory


def scored(answer):
    return [(r.rank, r.segment_id, r.score, r.scores, r.moments, r.explanation) for r in answer.results]


@pytest.mark.parametrize("mode", ["rerank", "exhaustive"])
@pytest.mark.parametrize("num_slots", [1, 50, 1000])
def test_a_search_answers_the_same_to_the_last_bit_with_and_without_a_cache(
    index_directory, model, mode, num_slots
):
    size_bytes = num_slots * slot_bytes(model.config.num_frames, model.config.embedding_dim)
    query = SearchQuery("a dog runs", mode=mode, candidates=30, explain=True)
    with (
        Searcher(index_directory, model, block_size=16) as plain,
        Searcher(index_directory, model, block_size=16, feature_memory_bytes=size_bytes) as caching,
    ):
        expected = plain.search(query)
        assert len(expected.results) == query.limit
        for text in ("a dog runs", "snow", "a dog runs"):
            caching.search(SearchQuery(text, mode=mode, candidates=30))
        assert scored(caching.search(query)) == scored(expected)
        assert 0 < caching._features.num_held <= num_slots
        # Deleted by another catalog object, as by another process.
        with Catalog.open(index_directory) as other:
            other.delete_video(expected.results[0].id)
        assert scored(caching.search(query)) == scored(plain.search(query))


# Deletions


def test_what_another_process_deleted_is_dropped(catalog):
    add(catalog, range(6))
    cache = cache_of(catalog, 6)
    cache.get(np.arange(1, 7))
    with Catalog.open(catalog.directory) as other:
        other.delete_video("video-2")
    cache.sync(catalog.sequence)
    assert cache.get(np.arange(1, 7)).segment_ids.tolist() == [1, 2, 4, 5, 6]
    assert cache.num_held == 5
    # The slot that it left is used again.
    add(catalog, [9])
    assert_as_in_catalog(cache, catalog, [7, 3, 1])
    assert held_ids(cache, catalog) == {1, 2, 4, 5, 6, 7}


def test_what_is_deleted_while_it_is_read_is_not_kept(catalog):
    add(catalog, range(3))
    cache = cache_of(catalog, 3)
    read = catalog.segment_features

    class Meanwhile:
        """Another thread syncs with a deletion after the features were read and before they are put in."""

        def __getattr__(self, name):
            return getattr(catalog, name)

        def segment_features(self, ids):
            features = read(ids)
            catalog.delete_video("video-1")
            cache.sync(catalog.sequence)
            return features

    cache._catalog = Meanwhile()
    cache.get(np.array([1, 2, 3]))
    cache._catalog = catalog
    assert cache.num_held == 0
    assert cache.get(np.array([1, 2, 3])).segment_ids.tolist() == [1, 3]


def test_a_cache_whose_changes_are_forgotten_drops_everything(catalog):
    add(catalog, range(4))
    cache = cache_of(catalog, 4)
    cache.get(np.arange(1, 5))
    catalog.delete_video("video-0")
    catalog.forget_changes(catalog.sequence)
    cache.sync(catalog.sequence)
    assert cache.get(np.array([1])).segment_ids.tolist() == []
    assert cache.num_held == 0


# What is held


def test_what_is_asked_for_again_stays_and_the_rest_is_evicted(catalog):
    add(catalog, range(20))
    cache = cache_of(catalog, 6)
    often = np.array([1, 2, 3])
    for passing in range(4, 21):
        cache.get(often)
        cache.get(np.array([passing]))
    held = held_ids(cache, catalog)
    assert set(often.tolist()) <= held
    assert len(held) == cache.num_held == 6


def test_a_scan_fills_free_slots_and_evicts_nothing(catalog):
    add(catalog, range(20))
    cache = cache_of(catalog, 6)
    cache.get(np.array([15, 16, 17]))
    for _ in cache.blocks(np.arange(1, 21), 4):
        pass
    assert held_ids(cache, catalog) == {15, 16, 17, 1, 2, 3}


def test_a_block_keeps_its_features_while_others_replace_everything_else(catalog):
    add(catalog, range(40))
    cache = cache_of(catalog, 8)
    scanned = np.arange(1, 9)
    list(cache.blocks(scanned, 8))
    expected = bits(cache.get(scanned))
    for block in cache.blocks(scanned, 8):
        catalog.delete_video("video-3")
        cache.get(np.arange(9, 41))
        assert bits(block) == expected
    cache.get(np.arange(9, 41))
    assert not held_ids(cache, catalog) & set(scanned.tolist())


def test_nothing_is_kept_without_a_budget_or_within_less_than_a_segment(catalog):
    add(catalog, range(3))
    for size_bytes in (0, slot_bytes(F, D) - 1):
        cache = FeatureCache(catalog, size_bytes=size_bytes, device=CPU)
        assert_as_in_catalog(cache, catalog, [3, 1])
        assert [len(block) for block in cache.blocks(np.array([1, 2, 3]), 2)] == [2, 1]
        assert cache.num_slots == cache.num_held == 0
    with pytest.raises(ValueError, match="at least 0"):
        FeatureCache(catalog, size_bytes=-1, device=CPU)


def test_a_slot_takes_what_slot_bytes_says(catalog):
    cache = cache_of(catalog, 100)
    tensors = (cache._frames, cache._video, cache._mask)
    arrays = (cache._video_keys, cache._ids, cache._asked_again)
    taken = sum(tensor.nbytes for tensor in tensors) + sum(array.nbytes for array in arrays)
    assert taken == 100 * slot_bytes(F, D)


def test_threads_that_ask_while_others_delete_and_add_get_each_segments_own_features(catalog):
    add(catalog, range(60))
    everything = ScorableSegments.of(catalog.segment_features(range(1, 61)), CPU)
    own = {
        segment_id: (number, everything.videos.frames[row])
        for row, (segment_id, number) in enumerate(
            zip(everything.segment_ids.tolist(), everything.video_keys.tolist(), strict=True)
        )
    }
    cache, stop = cache_of(catalog, 20), threading.Event()

    def check(features):
        for row, segment_id in enumerate(features.segment_ids.tolist()):
            if segment_id in own:
                assert features.video_keys[row] == own[segment_id][0]
                assert torch.equal(features.videos.frames[row], own[segment_id][1])

    def ask(seed):
        random, count = np.random.default_rng(seed), 0
        while not stop.is_set() or count < 20:
            check(cache.get(random.integers(1, 80, size=15)))
            for block in cache.blocks(np.arange(1, 61), 7):
                check(block)
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, seed) for seed in range(3)]
        for number in range(0, 40, 2):
            catalog.delete_video(f"video-{number}")
            add(catalog, [100 + number])
        stop.set()
        assert all(future.result() >= 20 for future in asking)
    for segment_id in range(1, 81):
        assert_as_in_catalog(cache, catalog, [segment_id])


@pytest.mark.gpu
def test_features_kept_on_a_gpu_are_the_catalogs_and_score_the_same(index_directory, model, tmp_path: Path):
    on_gpu = XClip(XClipConfig.tiny()).eval()
    on_gpu.load_state_dict(model.state_dict())
    on_gpu.to("cuda")
    size_bytes = 50 * slot_bytes(model.config.num_frames, model.config.embedding_dim)
    with (
        Searcher(index_directory, on_gpu) as plain,
        Searcher(index_directory, on_gpu, feature_memory_bytes=size_bytes) as caching,
    ):
        assert caching._features._frames.device.type == "cuda"
        for mode in ("rerank", "exhaustive", "rerank"):
            query = SearchQuery("a dog runs", mode=mode, candidates=30)
            results, expected = caching.search(query).results, plain.search(query).results
            assert [result.id for result in results] == [result.id for result in expected]
            assert [r.score for r in results] == pytest.approx([r.score for r in expected], abs=1e-4)
        ids = np.arange(1, 121)
        expected_bits = bits(ScorableSegments.of(caching.catalog.segment_features(ids), CPU))
        assert bits(caching._features.get(ids)) == expected_bits
