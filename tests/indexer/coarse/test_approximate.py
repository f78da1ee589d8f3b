"""Approximate kinds of the coarse index: minimal recall, exact scores, and never fewer than there are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import faiss
import numpy as np
import pytest

from indexer.coarse.approximate import SelectedPerList, num_lists
from indexer.coarse.exact import EXACT_LIMIT, MIN_APPROXIMATE, SegmentSet, choose_kind
from indexer.coarse.index import CoarseIndex
from indexer.maintenance.verification import verify
from indexer.store.sqlite.catalog import Catalog
from model.kernels.threads import at_work
from tests.support.catalog_builders import add_video, create_catalog, make_segment

D, N = 32, 3000
KINDS = ["ivf-sq", "ivf-pq", "hnsw"]
RECALL_FLOORS = {"ivf-sq": 0.97, "ivf-pq": 0.90, "hnsw": 0.97}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Training on a few thousand vectors is mostly waiting of threads for each other."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def correlated_vectors(random, count):
    """Unit vectors of low intrinsic dimension in clusters, as video features are: white noise is harder."""
    spectrum = (1 + np.arange(D)) ** -0.75
    centres = random.standard_normal((count // 50 + 1, D)) * spectrum
    vectors = centres[random.integers(len(centres), size=count)]
    vectors = vectors + 0.5 * random.standard_normal((count, D)) * spectrum
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A catalog of N segments, two to a video, that tests here only read; and queries like its vectors."""
    random = np.random.default_rng(0)
    vectors = correlated_vectors(random, N + 20)
    with create_catalog(tmp_path_factory.mktemp("index"), embedding_dim=D, num_frames=1) as catalog:
        fill(catalog, random, vectors[:N])
        yield catalog, vectors[N:] * random.uniform(0.5, 2.0, (20, 1)).astype(np.float32)


def fill(catalog, random, vectors, first_number=0):
    with catalog.transaction() as transaction:
        for number in range(0, len(vectors), 2):
            segments = [
                make_segment(random, D, 1, video_feature=vector) for vector in vectors[number : number + 2]
            ]
            metadata = {"even": number % 4 == 0}
            add_video(
                catalog, first_number + number // 2, segments, transaction=transaction, metadata=metadata
            )


@pytest.fixture(scope="module", params=[*KINDS, "hnsw, never past its graph"])
def pair(request, filled):
    """An approximate index and the exact one of the same catalog."""
    catalog, _ = filled
    kind, _, way = request.param.partition(", ")
    with pytest.MonkeyPatch.context() as patch:
        if way:
            patch.setattr("indexer.coarse.approximate.VISITED_PER_STEP", 0)
        yield CoarseIndex.build(catalog, kind=kind), CoarseIndex.build(catalog, kind="exact")


def test_what_is_found_has_the_exact_score_and_little_is_missed(pair, filled):
    approximate, exact = pair
    _, queries = filled
    scores, ids = approximate.search(queries, 50)
    right_scores, right_ids = exact.search(queries, 50)
    assert scores.shape == ids.shape == (20, 50)
    assert (np.diff(scores, axis=1) <= 0).all()
    known = dict(zip(*[column[0].tolist() for column in exact.search(queries[:1], N)][::-1], strict=True))
    assert scores[0] == pytest.approx([known[segment_id] for segment_id in ids[0].tolist()], abs=1e-5)
    found = np.mean([np.isin(right_ids[row], ids[row]).mean() for row in range(20)])
    assert found >= RECALL_FLOORS[approximate.kind], found
    assert (ids[:, 0] == right_ids[:, 0]).mean() >= 0.95
    assert right_scores.shape == scores.shape


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_what_is_found_is_among_what_compressed_vectors_find(pair, filled, share):
    _, queries = filled
    chosen = np.random.default_rng(4).permutation(np.arange(1, N + 1))[: round(share * N)]
    allowed = None if share == 1.0 else SegmentSet(np.sort(chosen))
    for index in pair:
        for wanted in (0, 1, 50, N):
            products, more = index.search(queries, wanted, allowed, exact=False)
            _, ids = index.search(queries, wanted, allowed)
            assert products.shape == more.shape and (np.diff(products, axis=1) <= 0).all()
            assert min(wanted, len(chosen)) <= more.shape[1] <= min(1.5 * wanted + 32, len(chosen))
            assert all(set(found) <= set(row) for row, found in zip(more.tolist(), ids.tolist(), strict=True))
            assert all(len(set(row)) == len(row) for row in more.tolist())


@pytest.mark.parametrize("kind", ["ivf-sq", "ivf-pq"])
def test_one_query_on_several_threads_finds_what_it_finds_on_one(tmp_path, kind, monkeypatch):
    random = np.random.default_rng(1)
    vectors = correlated_vectors(random, MIN_APPROXIMATE)
    vectors[500:] = vectors[499]  # Equal products, also where the last one is cut off.
    queries = np.concatenate([vectors[:20], vectors[499:500], -vectors[499:500]])
    with create_catalog(tmp_path, embedding_dim=D, num_frames=1) as catalog:
        fill(catalog, random, vectors)
        index = CoarseIndex.build(catalog, kind=kind)
    monkeypatch.setattr("indexer.coarse.approximate.VECTORS_A_THREAD", 10)
    index.fetch = lambda ids: (ids, vectors[ids - 1])
    for count in (5, 40, len(vectors) - 490, len(vectors)):
        products, ids = index.search(queries, count, exact=False)
        for _ in range(5):
            used = []
            search = partial(index.search, queries, count, exact=False)
            found = on_four_threads(search, used, monkeypatch)
            assert max(used) == 4
            np.testing.assert_array_equal(found[0], products)
            np.testing.assert_array_equal(found[1], ids)


def test_a_query_among_others_has_one_thread(filled, monkeypatch):
    catalog, queries = filled
    index = CoarseIndex.build(catalog, kind="ivf-sq")
    monkeypatch.setattr("indexer.coarse.approximate.VECTORS_A_THREAD", 10)

    def among_others():
        with at_work(), ThreadPoolExecutor(1) as pool:
            return pool.submit(at_work()(index.search), queries[:1], 50).result()

    used = []
    on_four_threads(among_others, used, monkeypatch)
    assert used[0] == 1


def on_four_threads(search, used, monkeypatch):
    """What `search` returns; `used`: how many threads FAISS was told to take meanwhile."""
    set_num_threads = faiss.omp_set_num_threads
    set_num_threads(4)
    with monkeypatch.context() as patch:
        patch.setattr(
            faiss, "omp_set_num_threads", lambda count: (used.append(count), set_num_threads(count))
        )
        found = search()
    assert faiss.omp_get_max_threads() == 4, "as before"
    set_num_threads(1)
    return found


def test_all_that_can_be_found_comes_in_blocks(pair, monkeypatch):
    monkeypatch.setattr("indexer.coarse.index.ROWS_AT_ONCE", 500)
    blocks = [ids for ids, _ in pair[0].blocks()]
    assert max(map(len, blocks)) == 500
    assert np.concatenate(blocks).tolist() == list(range(1, N + 1))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 1.0])
def test_a_filter_never_gives_fewer_than_there_are(pair, filled, share):
    approximate, exact = pair
    _, queries = filled
    random = np.random.default_rng(3)
    allowed = np.sort(random.permutation(np.arange(1, N + 1))[: round(share * N)])
    for wanted in (5, 100, N):
        scores, ids = approximate.search(queries[:3], wanted, SegmentSet(allowed))
        right_scores, right_ids = exact.search(queries[:3], wanted, SegmentSet(allowed))
        assert ids.shape == right_ids.shape == (3, min(wanted, len(allowed)))
        assert all(len(set(row)) == len(row) and set(row) <= set(allowed.tolist()) for row in ids.tolist())
        if wanted == N:  # All of them, so with all scores.
            assert np.allclose(
                scores, right_scores, rtol=0, atol=2.0**-11 * 2
            )  # Norms of queries are below 2.
        elif len(allowed):
            assert np.isin(right_ids, ids).mean() >= 0.9


def test_a_filter_for_what_is_far_from_a_query_finds_the_nearest_of_it(filled, monkeypatch):
    catalog, queries = filled
    approximate, exact = CoarseIndex.build(catalog, kind="ivf-sq"), CoarseIndex.build(catalog, kind="exact")
    monkeypatch.setattr("indexer.coarse.approximate.PROBED_FACTOR", 4)
    for query in queries[:10, None]:
        order = exact.search(query, N)[1][0]
        far = SegmentSet(np.sort(order[N // 2 :]))
        found = approximate.search(query, 20, far)[1]
        # With as many lists for every filter of half the segments one of these queries found 1 of its 20.
        assert np.isin(order[N // 2 :][:20], found).mean() >= 0.5


def test_segments_of_a_filter_are_counted_in_the_lists_that_they_are_in(filled):
    catalog, _ = filled
    index = CoarseIndex.build(catalog, kind="ivf-sq")._state.snapshot.index
    per_list = SelectedPerList(index)
    lists = [
        set(faiss.rev_swig_ptr(index.invlists.get_ids(n), index.invlists.list_size(n)).tolist())
        for n in range(index.nlist)
    ]
    random = np.random.default_rng(4)
    for num_chosen in (0, 1, 500, N):  # Some of them later than all that is in the index.
        chosen = np.sort(random.choice(np.arange(1, N + 200), num_chosen, replace=False))
        right = [len(ids & set(chosen.tolist())) for ids in lists]
        segments = SegmentSet(chosen)
        assert per_list.counts(segments).tolist() == right
        assert per_list.counts(segments) is per_list.counts(segments)
    assert len(per_list._kept) == 1, "kept as long as somebody has the set"


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_seen_immediately_and_survive_compaction_saving_and_a_restart(tmp_path, kind):
    random = np.random.default_rng(1)
    vectors = correlated_vectors(random, 1600)
    with create_catalog(tmp_path, embedding_dim=D, num_frames=1) as catalog:
        fill(catalog, random, vectors[:1200])
        index = CoarseIndex.build(catalog, kind=kind)
        exact = CoarseIndex.build(catalog, kind="exact")
        assert index.kind == kind and not index.needs_compaction
        catalog.delete_video("video-0")
        catalog.delete_video("video-7")
        fill(catalog, random, vectors[1200:1400], first_number=1000)
        catalog.delete_video("video-1001")
        index.follow()
        exact.follow()
        assert index.num_segments == exact.num_segments == catalog.num_segments == 1394

        def assert_finds_everything(found):
            scores, ids = found.search(vectors[1500:1501], 2000)
            right_scores, right_ids = exact.search(vectors[1500:1501], 2000)
            assert sorted(ids[0].tolist()) == sorted(right_ids[0].tolist())
            assert np.allclose(scores, right_scores, rtol=0, atol=1e-5)

        assert_finds_everything(index)
        assert index.compact()
        assert index.num_pending == 0 and index.kind == kind
        assert_finds_everything(index)
        index.save()
        fill(catalog, random, vectors[1400:1410], first_number=2000)
        catalog.delete_video("video-9")
        exact.follow()
        again = CoarseIndex.open(catalog, kind=kind)
        assert again.kind == kind and not again.needs_saving and again.num_pending == 12
        assert_finds_everything(again)
        assert verify(tmp_path).is_clean


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_while_a_snapshot_is_made_is_in_it(tmp_path, kind, monkeypatch):
    random = np.random.default_rng(2)
    vectors = correlated_vectors(random, 1400)
    with create_catalog(tmp_path, embedding_dim=D, num_frames=1) as catalog:
        fill(catalog, random, vectors[:1200])
        index = CoarseIndex.build(catalog, kind=kind)
        real = Catalog.iterate_video_features

        def interrupted(self, *arguments):
            for number, block in enumerate(real(self, 500)):
                if number == 1:
                    fill(catalog, random, vectors[1200:1300], first_number=1000)
                    catalog.delete_video("video-2")
                    catalog.delete_video("video-599")
                    index.follow()
                yield block

        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "iterate_video_features", interrupted)
            assert index.compact()
        exact = CoarseIndex.build(catalog, kind="exact")
        assert index.sequence == exact.sequence and index.num_segments == 1296
        query = vectors[1300:1301]
        assert sorted(index.search(query, 2000)[1][0]) == sorted(exact.search(query, 2000)[1][0])


def test_an_index_grows_out_of_the_exact_kind_in_the_background(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.coarse.exact.EXACT_LIMIT", 1500)
    random = np.random.default_rng(3)
    vectors = correlated_vectors(random, 1700)
    with create_catalog(tmp_path, embedding_dim=D, num_frames=1) as catalog:
        fill(catalog, random, vectors[:1400])
        index = CoarseIndex.open(catalog)
        assert index.kind == "exact" and not index.needs_compaction
        fill(catalog, random, vectors[1400:1600], first_number=2000)
        index.follow()
        assert index.kind == "exact" and index.needs_compaction
        assert index.compact() and index.kind == "ivf-sq" and not index.needs_compaction
        index.save()
        assert CoarseIndex.open(catalog).kind == "ivf-sq"
        assert CoarseIndex.open(catalog, kind="exact").kind == "exact"
        # Nothing saved: an exact one answers until the approximate one is made.
        for path in tmp_path.glob("coarse*"):
            path.unlink()
        fresh = CoarseIndex.open(catalog)
        assert fresh.kind == "exact" and fresh.needs_compaction
        for number in range(100, 600):
            catalog.delete_video(f"video-{number}")
        index.follow()
        assert index.needs_compaction and index.compact() and index.kind == "exact"


def test_the_kind_follows_the_size():
    assert choose_kind("auto", EXACT_LIMIT) == "exact"
    assert choose_kind("auto", EXACT_LIMIT + 1) == "ivf-sq"
    assert choose_kind("auto", EXACT_LIMIT, "ivf-sq") == "ivf-sq"
    assert choose_kind("auto", EXACT_LIMIT // 2, "hnsw") == "exact"
    assert choose_kind("hnsw", MIN_APPROXIMATE) == "hnsw"
    assert choose_kind("hnsw", MIN_APPROXIMATE - 1) == "exact"
    assert choose_kind("exact", 10**9) == "exact"


def test_there_are_never_more_lists_than_can_be_learnt():
    assert num_lists(0) == 1
    assert num_lists(1000) == 25
    assert num_lists(100_000) == 1264
    assert num_lists(1_000_000) == 4000
