"""The coarse index: exact within rounding, in a settled order, and the same however it came to be."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from indexer.coarse.exact import SegmentSet, Selection
from indexer.coarse.index import CoarseIndex
from indexer.coarse.snapshots import MANIFEST_FILE, SnapshotUnusableError, load_snapshot
from indexer.search.searcher import FilterCache
from indexer.store.filters import parse_filter
from indexer.store.sqlite.catalog import Catalog
from tests.support.catalog_builders import add_video, create_catalog, make_segment, unit

D = 8
BASIS = unit(np.random.default_rng(5).standard_normal((4, D)))
"""Few directions, so that many segments have exactly equal scores."""


@pytest.fixture
def catalog(tmp_path):
    with create_catalog(tmp_path / "index", embedding_dim=D) as catalog:
        yield catalog


@pytest.fixture
def random():
    return np.random.default_rng(0)


def fill(catalog, random, numbers, *, same=None, segments_each=2):
    for number in numbers:
        add_video(
            catalog, number, [make_segment(random, D, video_feature=same) for _ in range(segments_each)]
        )


UNIT_ROUNDOFF = 2.0**-24
"""Of float32."""


def brute_force(vectors, query, count):
    """`vectors`: {segment id: float32 [D]}. Scores float64 and ids of all, by plain sums; best first."""
    ids = np.array(sorted(vectors), np.int64)
    if not len(ids):
        return np.empty(0), ids
    rows = np.stack([vectors[i] for i in ids]).astype(np.float64)
    scores = rows @ query.astype(np.float64)
    order = np.lexsort((ids, -scores))[:count]
    return scores[order], ids[order]


def assert_is_brute_force(found, vectors, query, count):
    """Each score is within rounding of the true one at its rank, and so is the true score of what was found
    there; equal scores come by ascending id."""
    scores, ids = found
    right_scores, _ = brute_force(vectors, query, count)
    # Bound on the rounding of an inner product (Higham, Accuracy and Stability, section 3.1), vectors of unit
    # length; once more for the score itself.
    tolerance = (len(query) + 1) * UNIT_ROUNDOFF * float(np.linalg.norm(query))
    assert len(set(ids.tolist())) == len(ids) == len(right_scores)
    assert np.allclose(scores, right_scores, rtol=0, atol=tolerance)
    true = np.array([vectors[i].astype(np.float64) @ query.astype(np.float64) for i in ids.tolist()])
    assert np.allclose(scores, true, rtol=0, atol=tolerance)
    assert ids.tolist() == ids[np.lexsort((ids, -scores))].tolist()


def vectors_of(catalog):
    return {
        int(i): v for ids, block in catalog.iterate_video_features() for i, v in zip(ids, block, strict=True)
    }


def assert_same_answers(index, other, random):
    queries = random.standard_normal((4, D)).astype(np.float32)
    for count in (1, 3, 50, 10_000):
        scores, ids = index.search(queries, count)
        other_scores, other_ids = other.search(queries, count)
        assert np.array_equal(ids, other_ids)
        assert np.allclose(scores, other_scores, rtol=0, atol=1e-5)


def test_the_answer_is_that_of_brute_force_within_rounding(catalog, random):
    fill(catalog, random, range(20), segments_each=20)
    index, vectors = CoarseIndex.build(catalog), vectors_of(catalog)
    queries = random.standard_normal((5, D)).astype(np.float32)
    for count in (0, 1, 7, 399, 400, 5000):
        scores, ids = index.search(queries, count)
        assert scores.shape == ids.shape == (5, min(count, 400))
        assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
        for row, query in enumerate(queries):
            assert_is_brute_force((scores[row], ids[row]), vectors, query, count)


def test_equal_scores_come_by_ascending_id_wherever_they_are_stored(catalog, random):
    fill(catalog, random, range(10), same=BASIS[0], segments_each=20)
    index = CoarseIndex.build(catalog)
    fill(catalog, random, range(10, 15), same=BASIS[0], segments_each=10)
    catalog.delete_video("video-0")
    index.follow()
    scores, ids = index.search(BASIS[:1], 250)
    assert ids[0].tolist() == list(range(21, 251)) and len(set(scores[0].tolist())) == 1


def test_an_empty_index_finds_nothing(catalog, random):
    index = CoarseIndex.build(catalog)
    scores, ids = index.search(BASIS, 10)
    assert scores.shape == ids.shape == (4, 0)
    fill(catalog, random, [1])
    assert index.follow() and not index.follow()
    catalog.delete_video("video-1")
    index.follow()
    assert index.search(BASIS, 10)[1].shape == (4, 0) and index.num_segments == 0
    assert index.compact() and index.num_pending == 0
    index.save()
    assert CoarseIndex.open(catalog).num_segments == 0


def test_a_query_of_another_size_is_refused(catalog):
    with pytest.raises(ValueError, match=r"\[T, 8\]"):
        CoarseIndex.build(catalog).search(np.zeros((1, 9), np.float32), 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_selection_holds_the_rows_that_are_not_deleted_and_allowed(seed):
    random = np.random.default_rng(seed)
    kept, gone, wanted = random.integers(0, 3, (3, int(random.integers(1, 60)))) > 0
    rows = SegmentSet(np.flatnonzero(kept) + 1)
    deleted = SegmentSet(np.flatnonzero(kept & ~gone) + 1)
    allowed = SegmentSet(np.flatnonzero(np.roll(wanted, seed)) + 1 + seed % 3)
    live = Selection.of(rows, deleted)
    for selection, right in (
        (live, set(rows.ids) - set(deleted.ids)),
        (live.among(rows, allowed), (set(rows.ids) - set(deleted.ids)) & set(allowed.ids)),
        (Selection.of(rows).among(rows, allowed), set(rows.ids) & set(allowed.ids)),
    ):
        assert (selection.num_selected, selection.num_rows) == (len(right), len(rows))
        ids = np.arange(1, 80)
        selector = selection.selector()
        chosen = [int(i) for i in ids if (i in rows.ids if selector is None else selector.is_member(int(i)))]
        assert chosen == sorted(right)
    assert allowed.holds(ids).tolist() == np.isin(ids, allowed.ids).tolist()


def test_followed_compacted_saved_and_rebuilt_are_the_same(catalog, random):
    fill(catalog, random, range(50))
    index = CoarseIndex.build(catalog, max_pending=20)
    fill(catalog, random, range(50, 70))
    for number in range(0, 70, 3):
        catalog.delete_video(f"video-{number}")
    index.follow()
    rebuilt = CoarseIndex.build(catalog)
    assert index.needs_compaction and index.num_segments == rebuilt.num_segments == catalog.num_segments
    assert_same_answers(index, rebuilt, random)
    assert index.compact() and not index.needs_compaction and index.num_pending == 0
    assert_same_answers(index, rebuilt, random)
    assert index.needs_saving
    index.save()
    assert not index.needs_saving
    loaded = CoarseIndex.open(catalog)
    assert not loaded.needs_saving and loaded.num_pending == 0
    assert_same_answers(loaded, rebuilt, random)


def test_a_loaded_snapshot_catches_up(catalog, random):
    fill(catalog, random, range(10))
    CoarseIndex.build(catalog).save()
    fill(catalog, random, range(10, 15))
    catalog.delete_video("video-3")
    catalog.delete_video("video-12")
    loaded = CoarseIndex.open(catalog)
    assert loaded.num_pending == 8 + 2 and loaded.sequence == catalog.sequence
    assert_same_answers(loaded, CoarseIndex.build(catalog), random)


def test_many_later_segments_lie_in_several_small_indexes_that_searches_never_see_change(
    catalog, random, monkeypatch
):
    monkeypatch.setattr("indexer.coarse.index.DELTA_ROWS", 5)
    fill(catalog, random, range(3))
    index = CoarseIndex.build(catalog)
    before = index._state
    fill(catalog, random, range(3, 15), segments_each=3)
    index.follow()
    assert [len(delta.ids) for delta in index._state.deltas] == [5] * 7 + [1]
    assert_same_answers(index, CoarseIndex.build(catalog), random)
    during = [(delta, delta.index.ntotal) for delta in index._state.deltas]
    for number in (3, 7, 8, 14):
        catalog.delete_video(f"video-{number}")
    fill(catalog, random, range(15, 17))
    index.follow()
    assert_same_answers(index, CoarseIndex.build(catalog), random)
    assert not before.deltas and all(delta.index.ntotal == count for delta, count in during)


def test_a_snapshot_older_than_the_change_log_is_made_again(catalog, random):
    fill(catalog, random, range(10))
    CoarseIndex.build(catalog).save()
    running = CoarseIndex.open(catalog)
    fill(catalog, random, range(10, 15))
    catalog.delete_video("video-3")
    catalog.forget_changes(catalog.sequence)
    rebuilt = CoarseIndex.build(catalog)
    for index in (running, CoarseIndex.open(catalog)):
        index.follow()
        assert index.num_segments == 28
        assert_same_answers(index, rebuilt, random)


def test_a_snapshot_of_another_history_is_made_again(tmp_path, random):
    with create_catalog(tmp_path / "a", embedding_dim=D) as first:
        fill(first, random, range(5))
        CoarseIndex.build(first).save()
    with create_catalog(tmp_path / "b", embedding_dim=D) as second:  # As after restoring an older backup.
        fill(second, random, range(5, 10))
        for path in (tmp_path / "a").glob("coarse*"):
            shutil.copy(path, tmp_path / "b")
        index = CoarseIndex.open(second)
        assert index.needs_saving
        assert_same_answers(index, CoarseIndex.build(second), random)


def snapshot_path(catalog):
    (path,) = catalog.directory.glob("coarse-*.faiss")
    return path


def change_manifest(catalog, **changes):
    path = catalog.directory / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped byte at the start": lambda c: flip_byte(snapshot_path(c), 0),
    "a flipped byte in the vectors": lambda c: flip_byte(snapshot_path(c), 300),
    "a flipped byte at the end": lambda c: flip_byte(snapshot_path(c), -1),
    "a cut file": lambda c: snapshot_path(c).write_bytes(snapshot_path(c).read_bytes()[:-7]),
    "an empty file": lambda c: snapshot_path(c).write_bytes(b""),
    "no file": lambda c: snapshot_path(c).unlink(),
    "no manifest": lambda c: (c.directory / MANIFEST_FILE).unlink(),
    "a manifest cut short": lambda c: (c.directory / MANIFEST_FILE).write_text('{"format": 1'),
    "a manifest of another kind": lambda c: (c.directory / MANIFEST_FILE).write_text("[]"),
    "a manifest that is not text": lambda c: (c.directory / MANIFEST_FILE).write_bytes(b"\xff\xfe\xff"),
    "another format": lambda c: change_manifest(c, format=99),
    "another fingerprint": lambda c: change_manifest(c, fingerprint="0" * 64),
    "another dimension": lambda c: change_manifest(c, embedding_dim=9),
    "another sequence": lambda c: change_manifest(c, sequence=1),
    "a sequence that is no number": lambda c: change_manifest(c, sequence="7"),
    "a sequence beyond all that there are": lambda c: change_manifest(c, sequence=2**63),
    "another kind": lambda c: change_manifest(c, kind="ivf-sq"),
    "no kind that there is": lambda c: change_manifest(c, kind="tree"),
    "another count": lambda c: change_manifest(c, num_segments=3),
    "a file elsewhere": lambda c: change_manifest(c, file="../index/catalog.sqlite3"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_snapshot_is_made_again_and_answers_are_right(catalog, random, damage):
    fill(catalog, random, range(10))
    right = CoarseIndex.build(catalog)
    right.save()
    assert not CoarseIndex.open(catalog).needs_saving
    DAMAGE[damage](catalog)
    index = CoarseIndex.open(catalog)
    assert index.needs_saving, "it was made from the catalog"
    assert_same_answers(index, right, random)
    index.save()
    assert not CoarseIndex.open(catalog).needs_saving


def test_a_faiss_file_of_another_kind_is_not_used(catalog, random):
    import faiss

    fill(catalog, random, range(3))
    CoarseIndex.build(catalog).save()
    path = snapshot_path(catalog)
    for other in (faiss.IndexFlatL2(D), faiss.IndexIDMap(faiss.IndexFlatL2(D))):
        faiss.write_index(other, str(path))
        import hashlib

        content = path.read_bytes()
        change_manifest(
            catalog, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), num_segments=0
        )
        with pytest.raises(SnapshotUnusableError, match="another kind"):
            load_snapshot(catalog.directory, catalog.fingerprint, D)


def test_what_is_saved_is_readable_by_those_who_can_read_the_catalog_only(catalog, random):
    fill(catalog, random, range(3))
    CoarseIndex.build(catalog).save()
    saved = [path for path in catalog.directory.iterdir() if path.name.startswith("coarse")]
    assert len(saved) == 2
    assert {path.stat().st_mode & 0o777 for path in saved} == {0o640}


def test_saving_again_leaves_one_snapshot_and_nothing_unfinished(catalog, random):
    fill(catalog, random, range(3))
    index = CoarseIndex.build(catalog)
    index.save()
    fill(catalog, random, range(3, 6))
    index.follow()
    index.compact()
    index.save()
    names = sorted(path.name for path in catalog.directory.glob("*"))
    assert len(names) == 5 and sum(name.startswith("coarse") for name in names) == 2


def test_compacting_while_the_catalog_changes_loses_nothing(catalog, random, monkeypatch):
    fill(catalog, random, range(20))
    index = CoarseIndex.build(catalog)
    fill(catalog, random, range(20, 30))
    catalog.delete_video("video-2")
    catalog.delete_video("video-22")
    index.follow()
    from indexer.coarse import index as coarse_index

    make_snapshot = coarse_index.make_snapshot

    def interrupted(*arguments):
        """As another thread would: changes arrive while the new snapshot is being made."""
        snapshot = make_snapshot(*arguments)
        fill(catalog, random, range(30, 35))
        for number in (1, 21, 31):
            catalog.delete_video(f"video-{number}")
        index.follow()
        assert not index.compact(), "one at a time"
        return snapshot

    monkeypatch.setattr(coarse_index, "make_snapshot", interrupted)
    assert index.compact()
    monkeypatch.undo()
    assert_same_answers(index, CoarseIndex.build(catalog), random)
    fill(catalog, random, range(35, 40))
    index.follow()
    assert_same_answers(index, CoarseIndex.build(catalog), random)


def test_searches_continue_during_changes(catalog, random):
    fill(catalog, random, range(30))
    index = CoarseIndex.build(catalog, max_pending=10)
    stop = threading.Event()

    def search(worker):
        own, rounds = np.random.default_rng(worker), 0
        while not stop.is_set() or rounds < 3:
            index.follow()
            scores, ids = index.search(own.standard_normal((1, D)).astype(np.float32), 20)
            assert len(set(ids[0].tolist())) == 20 and np.all(np.diff(scores[0]) <= 0)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search, worker) for worker in range(3)]
        try:
            for number in range(30, 70):
                fill(catalog, random, [number])
                catalog.delete_video(f"video-{number - 20}")
                if index.needs_compaction:
                    index.compact()
                    index.save()
        finally:
            stop.set()
        assert all(search.result() >= 3 for search in searches)
    index.follow()
    assert_same_answers(index, CoarseIndex.build(catalog), random)


class CatalogAndIndex(RuleBasedStateMachine):
    """Any sequence of changes: two indexes, one of them reopened at will, against a dict."""

    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.catalog = create_catalog(self.directory, embedding_dim=D)
        self.index = CoarseIndex.build(self.catalog, max_pending=3)
        self.filters, self.asked = FilterCache(self.catalog), SegmentSet(np.empty(0, np.int64))
        self.vectors, self.videos, self.red, self.number = {}, {}, set(), 0

    @rule(directions=st.lists(st.integers(0, len(BASIS) - 1), min_size=1, max_size=3), is_red=st.booleans())
    def add(self, directions, is_red):
        segments = [make_segment(np.random.default_rng(0), D, video_feature=BASIS[d]) for d in directions]
        video_id = f"video-{self.number}"
        add_video(self.catalog, self.number, segments, metadata={"red": is_red})
        self.red |= {video_id} if is_red else set()
        ids = [info.segment_id for info in self.catalog.video_segments(video_id)]
        assert not set(ids) & self.vectors.keys()
        self.vectors |= {i: BASIS[d] for i, d in zip(ids, directions, strict=True)}
        self.videos[video_id] = ids
        self.number += 1

    @precondition(lambda self: self.videos)
    @rule(data=st.data())
    def delete(self, data):
        video_id = data.draw(st.sampled_from(sorted(self.videos)))
        self.catalog.delete_video(video_id)
        for segment_id in self.videos.pop(video_id):
            del self.vectors[segment_id]

    @precondition(lambda self: self.videos)
    @rule(data=st.data())
    def repaint(self, data):
        video_id = data.draw(st.sampled_from(sorted(self.videos)))
        self.red ^= {video_id}
        self.catalog.update_video(video_id, metadata={"red": video_id in self.red})

    @rule()
    def compact(self):
        assert self.index.compact()

    @rule()
    def save(self):
        self.index.save()

    @rule()
    def reopen(self):
        self.catalog.close()
        self.catalog = Catalog.open(self.directory)
        self.filters = FilterCache(self.catalog)
        self.index = CoarseIndex.open(self.catalog, max_pending=3)

    @rule()
    def rebuild(self):
        self.index = CoarseIndex.build(self.catalog, max_pending=3)

    @rule()
    def forget_changes(self):
        self.catalog.forget_changes(self.catalog.sequence)

    @rule(
        count=st.integers(1, 8),
        query=st.one_of(
            st.sampled_from(list(BASIS)), st.integers(0, 99).map(lambda s: BASIS[s % 4] + BASIS[s % 3])
        ),
    )
    def search(self, count, query):
        self.index.follow()
        scores, ids = self.index.search(query[None], count)
        assert_is_brute_force((scores[0], ids[0]), self.vectors, query, count)

    @rule(count=st.integers(1, 8), direction=st.integers(0, len(BASIS) - 1), anew=st.booleans())
    def search_with_a_filter(self, count, direction, anew):
        """anew: with what the filter matches now, or else what it matched at any time before."""
        self.index.follow()
        if anew:
            self.asked = self.filters.matching(parse_filter({"metadata.red": True}))
            red = {i for video_id in self.red & self.videos.keys() for i in self.videos[video_id]}
            assert set(self.asked.ids.tolist()) == red
        allowed = {i: self.vectors[i] for i in self.asked.ids.tolist() if i in self.vectors}
        scores, ids = self.index.search(BASIS[direction][None], count, self.asked)
        assert_is_brute_force((scores[0], ids[0]), allowed, BASIS[direction], count)

    @invariant()
    def totals_are_right(self):
        assert self.catalog.totals() == (len(self.videos), len(self.vectors))

    def teardown(self):
        self.catalog.close()
        shutil.rmtree(self.directory)


TestCatalogAndIndex = CatalogAndIndex.TestCase
TestCatalogAndIndex.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
