"""The feature reader: always what the store says, whatever the file holds, however it came to be."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.features import feature_file, writing
from indexer.features import reader as reader_module
from indexer.features.feature_file import MANIFEST_FILE, Manifest
from indexer.features.reader import FeatureReader
from indexer.features.resident import record_bytes
from indexer.features.scorable import ScorableSegments, SegmentsInPlace
from indexer.features.writing import save_feature_file, update_feature_file
from indexer.ingest.encoding import index_fingerprint
from indexer.search.searcher import Searcher, SearchQuery
from indexer.store.sqlite.catalog import Catalog
from model import XClip, XClipConfig
from model.features import VideoFeatures, VideoRecords
from model.quantization import SCALE_BYTES, dequantized, quantized
from tests.support.catalog_builders import add_video, create_catalog, make_segment

D, F = 8, 4
CPU = torch.device("cpu")


@pytest.fixture
def catalog(tmp_path):
    with create_catalog(tmp_path / "index", embedding_dim=D, num_frames=F) as catalog:
        yield catalog


@pytest.fixture
def written_at_once(monkeypatch):
    """Every missing segment is worth writing, and every tenth deleted one a compaction."""
    for module in (writing, reader_module):
        monkeypatch.setattr(module, "MIN_PENDING", 1)
        monkeypatch.setattr(module, "MIN_DELETED", 0)


def add(catalog, numbers):
    for number in numbers:
        random = np.random.default_rng(number)
        add_video(catalog, number, [make_segment(random, D, F, num_real_frames=1 + number % F)])


def reader_of(catalog, num_resident=0, **options):
    resident_bytes = num_resident * record_bytes(F, D)
    return FeatureReader(catalog, device=CPU, resident_bytes=resident_bytes, **options)


def videos_of(features: ScorableSegments | SegmentsInPlace) -> VideoFeatures:
    videos = features.videos
    return videos.copied() if isinstance(videos, VideoRecords) else videos


def bits(features: ScorableSegments | SegmentsInPlace) -> list[bytes]:
    videos = videos_of(features)
    arrays = [features.segment_ids, features.video_keys]
    arrays += [tensor.cpu().numpy() for tensor in (videos.video, videos.frames, videos.frame_mask)]
    return [array.tobytes() for array in arrays]


def expected_of(reader, catalog, ids):
    features = catalog.segment_features(ids)
    if reader.precision == "int8":
        features = replace(features, frames=dequantized(quantized(features.frames)))
    return ScorableSegments.of(features, CPU)


def assert_as_in_catalog(reader, catalog, ids):
    ids = np.asarray(ids, np.int64)
    reader.sync(catalog.sequence)
    for found in (reader.get(ids), reader.to_score(ids)):
        assert bits(found) == bits(expected_of(reader, catalog, ids))
    for ours, theirs in zip(reader.video_features(ids), catalog.video_features(np.unique(ids)), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def ids_from_file(reader, catalog):
    """Ids that the reader answers without asking the store for features."""
    asked = []

    class Recording:
        def __getattr__(self, name):
            return getattr(catalog, name)

        def segment_features(self, ids):
            asked.extend(ids.tolist())
            return catalog.segment_features(np.empty(0, np.int64))

    reader._catalog = Recording()
    try:
        reader.get(np.arange(1, 1000))
    finally:
        reader._catalog = catalog
    return set(range(1, 1000)) - set(asked)


# Equivalence

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5)),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("update"), st.integers(0, 1)),
        st.tuples(st.just("get"), st.lists(st.integers(-2, 40), max_size=25)),
        st.tuples(st.just("scan"), st.integers(1, 12)),
        st.tuples(st.just("forget log"), st.just(0)),
        st.tuples(st.just("open again"), st.just(0)),
    ),
    max_size=25,
)


@pytest.mark.usefixtures("written_at_once")
@settings(max_examples=25, deadline=None)
@given(num_resident=st.integers(0, 12), precision=st.sampled_from([True, "int8"]), steps=STEPS)
def test_whatever_happened_before_every_reader_answers_as_the_catalog(
    tmp_path_factory, num_resident, precision, steps
):
    directory = tmp_path_factory.mktemp("steps") / "index"
    with create_catalog(directory, embedding_dim=D, num_frames=F) as catalog:
        add(catalog, range(8))
        readers, next_number = [reader_of(catalog, num_resident, use_file=precision), reader_of(catalog)], 8
        for step, value in steps:
            ids = catalog.segment_ids()
            if step == "add":
                add(catalog, range(next_number, next_number + value))
                next_number += value
            elif step == "delete" and len(ids):
                (info,) = catalog.segment_infos([int(ids[value % len(ids)])]).values()
                catalog.delete_video(info.video_id)
            elif step == "update":
                readers[value].sync(catalog.sequence)
                readers[value].update()
                assert not readers[value].needs_update
            elif step == "get":
                for reader in readers:
                    assert_as_in_catalog(reader, catalog, value)
            elif step == "scan":
                for reader in readers:
                    reader.sync(catalog.sequence)
                    for first, block in enumerate(reader.blocks(ids, value)):
                        some = ids[first * value : (first + 1) * value]
                        assert bits(block) == bits(expected_of(reader, catalog, some))
            elif step == "forget log":
                catalog.forget_changes(catalog.sequence)
            elif step == "open again":
                readers[1] = reader_of(catalog)
        for reader in readers:
            assert_as_in_catalog(reader, catalog, np.arange(1, next_number + 3))


@pytest.mark.usefixtures("written_at_once")
def test_all_that_was_written_comes_from_the_file_and_the_rest_from_the_catalog(catalog):
    add(catalog, range(10))
    reader = reader_of(catalog)
    assert ids_from_file(reader, catalog) == set()
    reader.update()
    add(catalog, range(10, 12))
    reader.sync(catalog.sequence)
    assert reader.num_pending == 2
    assert ids_from_file(reader, catalog) == set(range(1, 11))
    update_feature_file(catalog)  # As another process would.
    assert_as_in_catalog(reader, catalog, [12, 3, 11, 3])
    assert ids_from_file(reader, catalog) == set(range(1, 13))


@pytest.mark.usefixtures("written_at_once")
def test_a_precision_stays_until_another_one_is_asked_for(catalog):
    add(catalog, range(20))
    update_feature_file(catalog)
    large = Manifest.read(catalog.directory).record_bytes["frames"]
    for asked, kept in ((True, "float16"), ("int8", "int8"), (True, "int8"), ("float16", "float16")):
        reader = reader_of(catalog, use_file=asked)
        assert reader.needs_update == (asked not in (True, reader.precision))
        reader.update()
        assert reader.precision == Manifest.read(catalog.directory).precision == kept
        assert Manifest.read(catalog.directory).record_bytes["frames"] == (
            large if kept == "float16" else F * (D + SCALE_BYTES)
        )
        assert ids_from_file(reader, catalog) == set(range(1, 21))
        assert_as_in_catalog(reader, catalog, np.arange(1, 25))
    save_feature_file(catalog, anew=True)
    assert Manifest.read(catalog.directory).precision == "float16"


@pytest.mark.usefixtures("written_at_once")
def test_a_precision_of_a_later_version_is_no_file_to_use(catalog):
    add(catalog, range(3))
    update_feature_file(catalog)
    manifest = catalog.directory / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace("float16", "float4"))
    reader = reader_of(catalog)
    assert ids_from_file(reader, catalog) == set()
    reader.update()
    assert Manifest.read(catalog.directory).precision == "float16"


@pytest.mark.usefixtures("written_at_once")
def test_what_was_deleted_is_not_given_out_and_leaves_the_file_at_the_next_compaction(catalog):
    add(catalog, range(30))
    reader = reader_of(catalog)
    reader.update()
    name = Manifest.read(catalog.directory).file
    catalog.delete_video("video-2")
    assert_as_in_catalog(reader, catalog, [3, 4])
    update_feature_file(catalog)
    assert Manifest.read(catalog.directory).file == name
    assert len(reader_of(catalog)._file.find(np.array([3]))[1].nonzero()[0]) == 0
    for number in range(3, 8):
        catalog.delete_video(f"video-{number}")
    reader.sync(catalog.sequence)
    assert reader.needs_update
    reader.update()
    manifest = Manifest.read(catalog.directory)
    assert (manifest.file != name, manifest.num_records) == (True, 24)
    assert {path.stem for path in catalog.directory.glob("features-*")} == {manifest.file}
    assert_as_in_catalog(reader, catalog, range(1, 32))


def test_few_segments_are_not_worth_a_file(catalog):
    add(catalog, range(5))
    assert not reader_of(catalog).needs_update
    save_feature_file(catalog)
    assert list(catalog.directory.glob("features*")) == []


@pytest.mark.usefixtures("written_at_once")
def test_without_a_file_everything_is_read_from_the_catalog_and_nothing_written(catalog):
    add(catalog, range(5))
    reader = reader_of(catalog, use_file=False)
    assert not reader.needs_update
    update_feature_file(catalog)
    assert ids_from_file(reader, catalog) == set()
    assert_as_in_catalog(reader, catalog, [5, 1])


@pytest.mark.usefixtures("written_at_once")
def test_a_block_whose_records_were_read_before_is_no_copy_of_their_frames(catalog):
    add(catalog, range(10))
    reader = reader_of(catalog)
    reader.update()
    list(reader.blocks(np.arange(1, 11), 4))
    (block,) = reader.blocks(np.arange(3, 9), 10)
    (again,) = reader.blocks(np.arange(3, 9), 10)
    assert block.videos.frames.data_ptr() == again.videos.frames.data_ptr()
    assert block.videos.video.data_ptr() % 64 == 0


@pytest.mark.usefixtures("written_at_once")
def test_a_shortlist_that_was_read_before_is_scored_where_it_lies(catalog):
    add(catalog, range(10))
    reader, ids = reader_of(catalog), np.array([7, 2, 9])
    assert isinstance(reader.to_score(ids), ScorableSegments)  # There is no file yet.
    reader.update()
    assert isinstance(reader.to_score(ids), ScorableSegments)  # Compared with its checksums, so copied.
    in_place, again = reader.to_score(ids), reader.to_score(ids[::-1])
    assert isinstance(in_place, SegmentsInPlace) and isinstance(again, SegmentsInPlace)
    assert in_place.videos.frames.data_ptr() == again.videos.frames.data_ptr()
    assert bits(in_place) == bits(reader.get(ids))
    catalog.delete_video("video-8")
    reader.sync(catalog.sequence)
    assert reader.to_score(ids).segment_ids.tolist() == [7, 2]


@pytest.mark.usefixtures("written_at_once")
@pytest.mark.parametrize("checked_bytes", [1, 3 * F * D * 2, feature_file.CHECKED_BYTES])
def test_all_that_was_checked_in_the_background_is_scored_where_it_lies(catalog, monkeypatch, checked_bytes):
    monkeypatch.setattr(feature_file, "CHECKED_BYTES", checked_bytes)
    add(catalog, range(10))
    reader, ids = reader_of(catalog), np.arange(1, 11)
    assert not reader.needs_check
    reader.update()
    reader.get(ids[3:5])
    assert reader.needs_check
    reader.check()
    assert not reader.needs_check
    assert isinstance(reader.to_score(ids), SegmentsInPlace)
    assert bits(reader.to_score(ids)) == bits(expected_of(reader, catalog, ids))


@pytest.mark.usefixtures("written_at_once")
def test_a_check_ends_when_the_reader_is_closed_and_a_file_beyond_memory_is_left_alone(catalog, monkeypatch):
    add(catalog, range(10))
    reader = reader_of(catalog)
    reader.update()
    monkeypatch.setattr(reader_module, "_memory_bytes", lambda: 100)
    assert not reader.needs_check
    monkeypatch.undo()
    reader.close()
    reader.check()
    assert reader.needs_check
    assert isinstance(reader.to_score(np.array([7, 2, 9])), ScorableSegments)


@pytest.mark.usefixtures("written_at_once")
def test_of_a_file_beyond_memory_what_the_coarse_stage_reads_is_checked_alone(catalog, monkeypatch):
    add(catalog, range(10))
    reader, ids = reader_of(catalog), np.arange(1, 11)
    reader.update()
    monkeypatch.setattr(reader_module, "_memory_bytes", lambda: 2 * 10 * 4 * D + 100)
    assert reader.needs_check and not reader.are_at_hand
    reader.check()
    assert not reader.needs_check and not reader.are_at_hand
    read_unseen = feature_file.FeatureFile._read_unseen
    read = []

    def noted(self, name, *of):
        read.append(name)
        return read_unseen(self, name, *of)

    monkeypatch.setattr(feature_file.FeatureFile, "_read_unseen", noted)
    found, videos = reader.video_features(ids)
    assert found.tolist() == ids.tolist() and not read
    assert np.array_equal(videos, catalog.video_features(ids)[1])
    assert isinstance(reader.to_score(ids), ScorableSegments) and read == ["frames"]
    monkeypatch.setattr(reader_module, "_memory_bytes", lambda: 1 << 30)
    reader.check()
    assert reader.are_at_hand and not reader.needs_check


@pytest.mark.parametrize(("said", "is_limited"), [("4096\n", True), ("max\n", False), (None, False)])
def test_the_memory_is_what_a_container_may_use_of_it(monkeypatch, said, is_limited):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def read(path):
        assert str(path) == "/sys/fs/cgroup/memory.max"
        if said is None:
            raise FileNotFoundError(path)
        return said

    monkeypatch.setattr(reader_module.Path, "read_text", read)
    assert reader_module._memory_bytes.__wrapped__() == (4096 if is_limited else physical)


@pytest.mark.usefixtures("written_at_once")
def test_nothing_is_scored_in_a_file_that_was_cut(catalog):
    add(catalog, range(10))
    reader, ids = reader_of(catalog), np.array([7, 2, 9])
    reader.update()
    reader.get(ids)
    os.truncate(Manifest.read(catalog.directory).path(catalog.directory, "frames"), 10)
    found = reader.to_score(ids)
    assert isinstance(found, ScorableSegments)
    assert bits(found) == bits(ScorableSegments.of(catalog.segment_features(ids), CPU))


# Searches


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


@pytest.mark.usefixtures("written_at_once")
@pytest.mark.parametrize("mode", ["rerank", "exhaustive"])
def test_a_search_answers_the_same_to_the_last_bit_with_and_without_a_file(index_directory, model, mode):
    query = SearchQuery("a dog runs", mode=mode, candidates=30, explain=True)
    with (
        Searcher(index_directory, model, block_size=16, feature_file=False) as plain,
        Searcher(index_directory, model, block_size=16) as searcher,
    ):
        searcher._refresher.wait()
        assert searcher.stats()["feature_num_pending"] == 0
        expected = plain.search(query)
        assert len(expected.results) == query.limit
        for _ in range(2):  # The first time candidates are copied from the file, the second time they stay.
            assert scored(searcher.search(query)) == scored(expected)
        assert searcher.similar("video-3") == plain.similar("video-3")
        # Deleted by another catalog object, as by another process.
        with Catalog.open(index_directory) as other:
            other.delete_video(expected.results[0].id)
        assert scored(searcher.search(query)) == scored(plain.search(query))


@pytest.mark.usefixtures("written_at_once")
def test_searches_have_the_file_checked_in_the_background(index_directory, model):
    with Searcher(index_directory, model) as searcher:
        searcher._refresher.wait()
        features = searcher._features
        assert features.needs_check  # No one has searched.
        searcher.search(SearchQuery("a dog runs"))
        searcher._refresher.wait()
        assert not features.needs_check
        assert isinstance(features.to_score(np.arange(1, 121)), SegmentsInPlace)


@pytest.mark.usefixtures("written_at_once")
@pytest.mark.parametrize("mode", ["rerank", "exhaustive"])
def test_frames_of_8_bits_find_nearly_all_that_frames_of_16_find(index_directory, model, mode):
    """Also where nothing tells videos apart, as among these, whose features are random."""
    with (
        Searcher(index_directory, model, feature_file=False) as plain,
        Searcher(index_directory, model, feature_file="int8") as searcher,
    ):
        searcher._refresher.wait()
        assert searcher._features.precision == "int8"
        num_same = 0
        texts = [
            f"a {colour} {thing}" for colour in ("red", "dark") for thing in ("dog", "car", "hat", "sea")
        ]
        for text in texts:
            query = SearchQuery(text, mode=mode, candidates=60)
            found, expected = searcher.search(query).results, plain.search(query).results
            num_same += len({r.segment_id for r in found} & {r.segment_id for r in expected})
            for one, other in zip(found, expected, strict=True):
                assert one.score == pytest.approx(other.score, rel=0.02)
            # Whether copied from the file or scored there.
            assert scored(searcher.search(query)) == scored(searcher.search(query))
        assert num_same >= 0.95 * len(texts) * query.limit


@pytest.mark.usefixtures("written_at_once")
def test_threads_that_ask_while_others_delete_add_and_update_get_each_segments_own_features(catalog):
    add(catalog, range(60))
    everything = ScorableSegments.of(catalog.segment_features(range(1, 61)), CPU)
    own = {
        segment_id: (number, everything.videos.frames[row])
        for row, (segment_id, number) in enumerate(
            zip(everything.segment_ids.tolist(), everything.video_keys.tolist(), strict=True)
        )
    }
    reader, stop = reader_of(catalog, num_resident=20), threading.Event()

    def check(features):
        frames = videos_of(features).frames
        for row, segment_id in enumerate(features.segment_ids.tolist()):
            if segment_id in own:
                assert features.video_keys[row] == own[segment_id][0]
                assert torch.equal(frames[row], own[segment_id][1])

    def ask(seed):
        random, count = np.random.default_rng(seed), 0
        while not stop.is_set() or count < 20:
            check(reader.get(random.integers(1, 80, size=15)))
            for block in reader.blocks(np.arange(1, 61), 7):
                check(block)
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, seed) for seed in range(3)]
        for number in range(0, 40, 2):
            catalog.delete_video(f"video-{number}")
            add(catalog, [100 + number])
            reader.sync(catalog.sequence)
            reader.update()
        stop.set()
        assert all(future.result() >= 20 for future in asking)
    for segment_id in range(1, 81):
        assert_as_in_catalog(reader, catalog, [segment_id])


@pytest.mark.gpu
@pytest.mark.usefixtures("written_at_once")
def test_features_kept_on_a_gpu_are_the_catalogs_and_score_the_same(index_directory, model):
    on_gpu = XClip(XClipConfig.tiny()).eval()
    on_gpu.load_state_dict(model.state_dict())
    on_gpu.to("cuda")
    resident_bytes = 50 * record_bytes(model.config.num_frames, model.config.embedding_dim)
    with (
        Searcher(index_directory, on_gpu, feature_file=False) as plain,
        Searcher(index_directory, on_gpu, feature_memory_bytes=resident_bytes) as searcher,
    ):
        searcher._refresher.wait()
        assert searcher.stats()["feature_memory_bytes"] == resident_bytes
        for mode in ("rerank", "exhaustive", "rerank"):
            query = SearchQuery("a dog runs", mode=mode, candidates=30)
            results, expected = searcher.search(query).results, plain.search(query).results
            assert [result.id for result in results] == [result.id for result in expected]
            assert [r.score for r in results] == pytest.approx([r.score for r in expected], abs=1e-4)
        ids = np.arange(1, 121)
        expected_bits = bits(ScorableSegments.of(searcher.catalog.segment_features(ids), CPU))
        assert bits(searcher._features.get(ids)) == expected_bits
