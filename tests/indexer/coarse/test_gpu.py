"""The coarse index on a GPU: the answers of the processor, which takes over what a GPU cannot do.

Where there is none, an index stands in for it that can do as little: no selector, 2,048 neighbours.
"""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch

from indexer.coarse import index as coarse_index
from indexer.coarse.exact import MAX_GPU_NEIGHBOURS, GpuCopy, SegmentSet, copy_to_gpu
from indexer.coarse.index import CoarseIndex
from tests.support.catalog_builders import add_video, create_catalog, make_segment

D, N = 16, 3000
GPU = torch.device("cuda")
KINDS = ["exact", "ivf-sq", "ivf-pq"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Training on a few thousand vectors is mostly waiting of threads for each other."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


class StandIn:
    """Searches as an index on a GPU does, and counts."""

    def __init__(self, index):
        self.index, self.num_searches = faiss.clone_index(index), 0

    def __setattr__(self, name, value):
        object.__setattr__(self.index if name == "nprobe" else self, name, value)

    def search(self, queries, count):
        assert count <= MAX_GPU_NEIGHBOURS and getattr(self.index, "nprobe", 0) <= MAX_GPU_NEIGHBOURS
        self.num_searches += len(queries)
        return self.index.search(queries, count)


def flat_copy(index):
    """What a GPU has for the exact kind: a flat index that numbers its rows."""
    flat = faiss.IndexFlatIP(index.d)
    flat.add(index.index.reconstruct_n(0, index.ntotal))
    return flat


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    random = np.random.default_rng(0)
    with create_catalog(tmp_path_factory.mktemp("index"), embedding_dim=D, num_frames=1) as catalog:
        for number in range(N // 50):
            add_video(catalog, number, [make_segment(random, D, 1) for _ in range(50)])
        yield catalog


@pytest.fixture(params=KINDS)
def pair(request, catalog, monkeypatch):
    """(index with a stand-in, the same without, the stand-in)."""
    made = []

    def stand_in(index, kind, ids, device):
        if device is None:
            return None
        made.append(StandIn(flat_copy(index) if kind == "exact" else index))
        return GpuCopy(made[-1], ids if kind == "exact" else None)

    monkeypatch.setattr(coarse_index, "copy_to_gpu", stand_in)
    on_gpu = CoarseIndex.build(catalog, kind=request.param, device=GPU)
    return on_gpu, CoarseIndex.build(catalog, kind=request.param), made[-1]


def assert_same_answers(on_gpu, plain, count, allowed=None):
    queries = np.random.default_rng(1).standard_normal((5, D)).astype(np.float32)
    scores, ids = on_gpu.search(queries, count, allowed)
    right_scores, right_ids = plain.search(queries, count, allowed)
    assert np.allclose(scores, right_scores, rtol=0, atol=1e-5)
    assert np.array_equal(ids, right_ids)


def test_a_search_is_the_gpus_and_has_the_same_answer(pair):
    on_gpu, plain, stand_in = pair
    for count in (1, 10, 100):
        assert_same_answers(on_gpu, plain, count)
    assert stand_in.num_searches >= 15  # More where too few lists were looked at.


def test_a_narrow_filter_and_a_large_count_are_the_processors(pair):
    on_gpu, plain, stand_in = pair
    assert_same_answers(on_gpu, plain, 10, SegmentSet(np.arange(1, N, 10)))
    assert_same_answers(on_gpu, plain, N - 1)
    assert stand_in.num_searches == 0
    # Few are excluded: the GPU is asked for that many more.
    assert_same_answers(on_gpu, plain, 10, SegmentSet(np.arange(40, N)))
    assert stand_in.num_searches == 5


@pytest.mark.parametrize("kind", KINDS)
def test_deleted_segments_do_not_come_from_a_gpu(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(coarse_index, "copy_to_gpu", lambda index, kind, ids, device: GpuCopy(StandIn(index)))
    random = np.random.default_rng(0)
    with create_catalog(tmp_path / "index", embedding_dim=D, num_frames=1) as catalog:
        for number in range(60):
            add_video(catalog, number, [make_segment(random, D, 1) for _ in range(20)])
        index = CoarseIndex.build(catalog, kind=kind, device=GPU)
        query = random.standard_normal((1, D)).astype(np.float32)
        numbers = (index.search(query, 5)[1][0] - 1) // 20  # Of the videos of the best.
        for number in set(numbers.tolist()):
            catalog.delete_video(f"video-{number}")
        index.follow()
        for _ in range(2):
            answer = index.search(query, 50)
            assert answer[1].shape == (1, 50)
            assert not np.isin((answer[1] - 1) // 20, numbers).any()
            state = index._state
            index._state = replace(state, snapshot=replace(state.snapshot, gpu=None))
            right = index.search(query, 50)
            assert np.allclose(answer[0], right[0], rtol=0, atol=1e-5) and np.array_equal(answer[1], right[1])
            index._state = state
            index.compact()


def test_nothing_goes_to_a_gpu_that_is_not_asked_for_or_not_there(catalog):
    index = CoarseIndex.build(catalog, kind="exact", device=torch.device("cuda", 99))
    assert index._state.snapshot.gpu is None
    for device in (None, torch.device("cpu")):
        assert copy_to_gpu(index._state.snapshot.index, "exact", index.segment_ids(), device) is None
    assert_same_answers(index, CoarseIndex.build(catalog, kind="exact"), 10)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_answers_of_the_processor(kind, catalog):
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS has no GPU part")
    on_gpu = CoarseIndex.build(catalog, kind=kind, device=GPU)
    assert on_gpu._state.snapshot.gpu is not None
    queries = np.random.default_rng(1).standard_normal((50, D)).astype(np.float32)
    plain = replace(on_gpu._state, snapshot=replace(on_gpu._state.snapshot, gpu=None))
    answer = on_gpu.search(queries, 20)
    on_gpu._state = plain
    right = on_gpu.search(queries, 20)
    if kind == "exact":
        assert np.allclose(answer[0], right[0], rtol=0, atol=1e-5)
    found = np.mean([np.isin(r, a).mean() for r, a in zip(right[1], answer[1], strict=True)])
    assert found >= 0.99, found
