"""The catalog: what is written comes back whole, or not at all."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from indexer.errors import (
    ChangesForgottenError,
    DuplicateIdError,
    FingerprintMismatchError,
    IndexDamagedError,
    IndexExistsError,
    IndexNotFoundError,
    IndexStorageError,
    IndexVersionError,
    InvalidRecordError,
    KeptOutError,
    VideoNotFoundError,
)
from indexer.maintenance.verification import verify
from indexer.store.filters import parse_filter
from indexer.store.postgres import adding as postgres_adding
from indexer.store.records import AddOutcome, IndexFacts, KeptOut, Sort, StoreState
from indexer.store.sqlite import catalog as catalog_module
from indexer.store.sqlite import connections as catalog_connections
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.features import MAX_IDS_PER_QUERY
from indexer.store.store import create_store, open_store
from indexer.store.transcripts import Line, Transcript
from tests.support.catalog_builders import (
    FINGERPRINT,
    add_video,
    create_catalog,
    make_segment,
    new_video,
    sha256_of,
)

REPOSITORY = Path(__file__).resolve().parents[3]
SAID = Transcript("en", (Line(0.0, 1.0, "spoken here"),))


@pytest.fixture
def catalog(store_factory):
    return store_factory.create()


@pytest.fixture
def random():
    return np.random.default_rng(0)


def with_sqlite(catalog, *statements):
    """Change the file behind the catalog's back."""
    connection = sqlite3.connect(catalog.path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


# Writing and reading


def test_a_video_comes_back_as_it_was_written(catalog, random):
    segments = [make_segment(random, num_real_frames=3), make_segment(random, start_seconds=10.0)]
    outcome = add_video(
        catalog,
        7,
        segments,
        id="näme",
        uri="file:///a.mp4",
        title="A dog",
        metadata={"tags": ["dog", 1]},
        partial=True,
        fraction_read=0.5,
    )
    assert (outcome.video_id, outcome.created) == ("näme", True)
    record = catalog.get_video("näme")
    assert record == catalog.find_by_sha256(sha256_of(7)) == catalog.list_videos()[0]
    assert (record.uri, record.title, record.metadata) == ("file:///a.mp4", "A dog", {"tags": ["dog", 1]})
    assert (record.partial, record.fraction_read, record.duration_seconds) == (True, 0.5, 20.0)
    assert (record.width, record.height, record.frame_rate, record.codec) == (640, 360, 25.0, "h264")
    assert record.sequence == catalog.sequence == 1
    assert abs(record.added_at - time.time()) < 60

    infos = catalog.video_segments("näme")
    assert [(info.start_seconds, info.end_seconds, info.num_frames) for info in infos] == [
        (0, 10, 3),
        (10, 20, 4),
    ]
    features = catalog.segment_features([info.segment_id for info in infos])
    for row, (segment, info) in enumerate(zip(segments, infos, strict=True)):
        assert info.video_id == "näme" and info.video_key == features.video_keys[row]
        assert np.array_equal(info.frame_times, segment.frame_times)
        assert np.array_equal(features.video[row], segment.video_feature)
        assert np.array_equal(features.frames[row], segment.frame_features)
        assert features.num_frames[row] == segment.num_frames == features.frame_mask[row].sum()
    assert (features.video.dtype, features.frames.dtype) == (np.float32, np.float16)


def test_the_same_bytes_again_change_nothing(catalog, random):
    add_video(catalog, 1, [make_segment(random)])
    outcome = add_video(catalog, 1, [make_segment(random)] * 2, id="another", title="another")
    assert (outcome.video_id, outcome.created) == ("video-1", False)
    assert catalog.totals() == (1, 1) and catalog.sequence == 1


def test_an_id_that_is_taken_by_other_bytes_is_refused(catalog, random):
    add_video(catalog, 1, [make_segment(random)])
    with pytest.raises(DuplicateIdError, match="video-1"):
        add_video(catalog, 2, [make_segment(random)], id="video-1")
    assert catalog.totals() == (1, 1)


def test_a_video_without_an_id_gets_one(catalog, random):
    ids = {add_video(catalog, n, [make_segment(random)], id=None).video_id for n in range(3)}
    assert len(ids) == 3 and all(catalog.get_video(video_id) for video_id in ids)


@pytest.mark.parametrize("num_segments", [3, 100])
def test_a_failure_halfway_leaves_nothing_behind(catalog, random, monkeypatch, num_segments):
    segments = [make_segment(random)] * num_segments

    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # Both after the rows: the change, and the totals.
        patched.setattr(catalog_module, "write_change", fail)
        patched.setattr(postgres_adding, "_COUNT", "UPDATE counters SET last_video = 1 / 0" + " * %s" * 8)
        with pytest.raises((KeyboardInterrupt, IndexDamagedError)):
            add_video(catalog, 1, segments)
    assert catalog.totals() == (0, 0) and list(catalog.iterate_features()) == []
    assert add_video(catalog, 1, segments).created


@pytest.mark.parametrize("num_others", [0, 30])
def test_of_videos_added_together_each_is_added_found_or_refused_as_if_it_were_alone(
    catalog, random, num_others
):
    add_video(catalog, 1, [make_segment(random)])
    catalog.kept_out.add(KeptOut(sha256_of(2), "gone", None, None, 10, 0.0))
    others = [new_video(100 + number, [make_segment(random)]) for number in range(num_others)]
    some = [
        *others,
        new_video(1, [make_segment(random)], id="again"),
        new_video(2, [make_segment(random)]),
        new_video(3, [make_segment(random)], id="video-1"),
        new_video(4, [make_segment(random)] * 2, title="four", transcripts=[SAID]),
        new_video(4, [make_segment(random)], id="another"),
        new_video(5, [make_segment(random)], id="video-4"),
        new_video(6, []),
        new_video(7, [make_segment(random)], title="seven"),
    ]
    outcomes = catalog.add_videos(some)[num_others:]
    ids = [outcome.video_id if isinstance(outcome, AddOutcome) else type(outcome) for outcome in outcomes]
    refused = (KeptOutError, DuplicateIdError, DuplicateIdError, InvalidRecordError)
    assert ids == ["video-1", *refused[:2], "video-4", "video-4", *refused[2:], "video-7"]
    assert catalog.totals() == (3 + num_others, 4 + num_others)
    assert [change.video_id for change in catalog.changes_since(num_others + 1)] == ["video-4", "video-7"]
    assert [len(catalog.video_segments(f"video-{number}")) for number in (1, 4, 7)] == [1, 2, 1]
    assert len(catalog.find_words("seven").video_keys) == len(catalog.find_words("spoken").video_keys) == 1
    assert list(catalog.damages()) == []


def test_videos_added_together_are_all_there_or_none(catalog, random):
    with pytest.raises(KeyboardInterrupt), catalog.transaction() as transaction:
        catalog.add_videos([new_video(n, [make_segment(random)]) for n in range(40)], transaction)
        raise KeyboardInterrupt
    assert catalog.totals() == (0, 0) and list(catalog.damages()) == []


def test_a_killed_writer_leaves_whole_videos(tmp_path, random):
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from indexer.store.sqlite.catalog import Catalog\n"
        "from tests.support.catalog_builders import add_video, make_segment\n"
        "catalog, random = Catalog.open(sys.argv[1]), np.random.default_rng(0)\n"
        "for number in range(10**6):\n"
        "    add_video(catalog, number, [make_segment(random) for _ in range(5)])\n"
    )
    with create_catalog(tmp_path) as catalog:
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY)
        deadline = time.monotonic() + 30
        while catalog.num_videos < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    with Catalog.open(tmp_path) as catalog:
        num_videos, num_segments = catalog.totals()
        assert num_videos >= 20 and num_segments == 5 * num_videos
        assert sum(len(block) for block in catalog.iterate_features()) == num_segments
        changes = catalog.changes_since(0)
        assert len(changes) == num_videos == len(catalog.list_videos(10**6))
        assert all(len(change.segment_ids) == 5 for change in changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""}, {"id": "a/b"}, {"id": "a b"}, {"id": ".."}, {"id": "x" * 201}, {"id": "a\x00"},
        {"id": "\ud800"},
        {"content_sha256": "F" * 64}, {"content_sha256": "12"}, {"title": "\ud800"}, {"title": "x" * 10_001},
        {"metadata": {"a": float("nan")}}, {"metadata": {"a": object()}}, {"metadata": {"a": "x" * 70_000}},
        {"metadata": {"a": "\ud800"}}, {"codec": "\ud800"},
        {"width": -1}, {"height": 2**63}, {"size_bytes": -1},
        {"duration_seconds": float("nan")}, {"duration_seconds": float("inf")}, {"duration_seconds": -1.0},
        {"frame_rate": float("nan")}, {"fraction_read": 1.5}, {"added_at": float("nan")},
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused(catalog, random, changes):
    with pytest.raises(InvalidRecordError):
        add_video(catalog, 1, [make_segment(random)], **changes)
    assert catalog.totals() == (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"video_feature": np.zeros(7, np.float32)},
        {"video_feature": np.zeros(8, np.float64)},
        {"video_feature": np.full(8, np.nan, np.float32)},
        {"frame_features": np.zeros((3, 8), np.float16)},
        {"frame_features": np.zeros((4, 8), np.float32)},
        {"frame_features": np.full((4, 8), np.inf, np.float16)},
        {"num_frames": 0},
        {"num_frames": 5},
        {"frame_times": np.zeros(3)},
        {"start_seconds": -1.0},
        {"end_seconds": float("inf")},
        {"start_seconds": 11.0},
    ],
)
def test_a_segment_that_does_not_fit_the_index_is_refused(catalog, random, changes):
    good = make_segment(random)
    with pytest.raises(InvalidRecordError, match="segment 1"):
        add_video(catalog, 1, [good, replace(good, **changes)])
    assert catalog.totals() == (0, 0)


def test_a_zero_may_have_a_sign(catalog, random):
    """SQLite forgets it, and a checksum over the sign would call the row damaged."""
    segment = replace(make_segment(random), start_seconds=-0.0)
    numbers = dict.fromkeys(("duration_seconds", "frame_rate", "fraction_read", "added_at"), -0.0)
    add_video(catalog, 1, [segment], **numbers)
    assert catalog.get_video("video-1").duration_seconds == 0
    assert catalog.video_segments("video-1")[0].start_seconds == 0
    assert verify(catalog.address).is_clean


def test_a_video_without_segments_is_refused(catalog):
    with pytest.raises(InvalidRecordError):
        add_video(catalog, 1, [])


# Deleting and changing


def test_a_deleted_video_is_gone_and_its_segment_ids_never_come_back(catalog, random):
    add_video(catalog, 1, [make_segment(random)])
    add_video(catalog, 2, [make_segment(random)] * 2)
    catalog.delete_video("video-2")
    for read in (catalog.get_video, catalog.video_segments, catalog.delete_video, catalog.update_video):
        with pytest.raises(VideoNotFoundError):
            read("video-2")
    assert catalog.find_by_sha256(sha256_of(2)) is None
    assert catalog.totals() == (1, 1)
    assert len(catalog.segment_features([1, 2, 3])) == 1 and list(catalog.segment_infos([1, 2, 3])) == [1]
    assert [len(block) for block in catalog.iterate_features()] == [1]
    add_video(catalog, 2, [make_segment(random)])
    assert [info.segment_id for info in catalog.video_segments("video-2")] == [4]
    assert [(c.sequence, c.kind, c.video_id, c.segment_ids) for c in catalog.changes_since(0)] == [
        (1, "add", "video-1", (1,)),
        (2, "add", "video-2", (2, 3)),
        (3, "delete", "video-2", (2, 3)),
        (4, "add", "video-2", (4,)),
    ]


def test_an_update_changes_what_it_names_and_nothing_else(catalog, random):
    add_video(catalog, 1, [make_segment(random)], title="old", uri="u", metadata={"a": 1})
    before = catalog.get_video("video-1")
    assert catalog.update_video("video-1", title="new") == replace(before, title="new")
    assert catalog.update_video("video-1", title=None, metadata={"b": 2}) == replace(
        before, title=None, metadata={"b": 2}
    )
    assert [(c.kind, c.segment_ids) for c in catalog.changes_since(1)] == [("update", ()), ("update", ())]
    assert catalog.update_video("video-1").uri == "u" and catalog.sequence == 3


def test_pages_of_videos_are_newest_first_and_do_not_shift(catalog, random):
    for number in range(6):
        add_video(catalog, number, [make_segment(random)])
    first = catalog.list_videos(limit=2)
    assert [video.id for video in first] == ["video-5", "video-4"]
    add_video(catalog, 6, [make_segment(random)])
    catalog.delete_video("video-4")
    second = catalog.list_videos(limit=2, after=first[-1].sequence)
    assert [video.id for video in second] == ["video-3", "video-2"]
    assert catalog.list_videos(limit=0) == [] == catalog.list_videos(after=1)


@pytest.mark.parametrize("sort", get_args(Sort))
def test_pages_of_every_order_hold_each_video_once_whatever_comes_and_goes_in_between(catalog, random, sort):
    times = [None, 5.0, -1e9, 5.0, None, 1e9, 2.5, 5.0, None]
    for number, recorded_at in enumerate(times):
        add_video(catalog, number, [make_segment(random)], recorded_at=recorded_at)
    sign = -1 if sort.startswith("-") else 1
    by_time = sort.endswith("recorded_at")

    def place(number: int) -> tuple[float, ...]:
        time = times[number]
        known = (time is None, sign * (time or 0)) if by_time else ()
        return (*known, sign * number)

    wanted = sorted(range(len(times)), key=place)
    for size in (1, 2, 4, 20):
        found, after = [], {}
        while page := catalog.list_videos(size, sort=sort, **after):
            found += page
            after = {"after": page[-1].sequence, "after_recorded_at": page[-1].recorded_at}
        assert [video.id for video in found] == [f"video-{number}" for number in wanted]
    chosen = parse_filter({"recorded_at": {"gt": 0}})
    expected = [number for number in wanted if (times[number] or 0) > 0]
    assert [video.id for video in catalog.list_videos(sort=sort, chosen=chosen)] == [
        f"video-{n}" for n in expected
    ]
    first = catalog.list_videos(4, sort=sort)
    catalog.delete_video(first[-1].id)
    rest = catalog.list_videos(20, first[-1].sequence, sort=sort, after_recorded_at=first[-1].recorded_at)
    assert [video.id for video in rest] == [f"video-{number}" for number in wanted[4:]]


@pytest.mark.store("sqlite")
def test_a_page_of_videos_by_recording_time_is_read_through_an_index(catalog):
    with catalog.connections.reading() as connection:
        for direction, before in (("DESC", "<"), ("ASC", ">")):
            for where in (f"(recorded_at, sequence) {before} (1, 1)", "recorded_at IS NOT NULL"):
                plan = connection.execute(
                    f"EXPLAIN QUERY PLAN SELECT * FROM videos WHERE {where}"
                    f" ORDER BY recorded_at {direction}, sequence {direction} LIMIT 9"
                ).fetchall()
                assert "videos_by_recorded_at" in str(plan) and "TEMP B-TREE" not in str(plan)


# Changes


def test_changes_are_followed_page_by_page_by_another_catalog_object(catalog, random):
    with open_store(catalog.address) as other:
        assert other.sequence == 0 and other.changes_since(0) == []
        for number in range(5):
            add_video(catalog, number, [make_segment(random)])
        sequences, last = [], 0
        while changes := other.changes_since(last, limit=2):
            assert len(changes) <= 2
            sequences += [change.sequence for change in changes]
            last = sequences[-1]
        assert sequences == [1, 2, 3, 4, 5] and other.sequence == 5


def test_a_follower_behind_a_shortened_change_log_gets_an_error(catalog, random):
    for number in range(5):
        add_video(catalog, number, [make_segment(random)])
    catalog.forget_changes(4)
    for behind in (0, 1, 3):
        with pytest.raises(ChangesForgottenError):
            catalog.changes_since(behind)
    assert [change.sequence for change in catalog.changes_since(4)] == [5]
    catalog.forget_changes(100)
    assert catalog.sequence == 5 and catalog.changes_since(5) == []


def test_a_follower_of_another_history_gets_an_error(catalog, random):
    with pytest.raises(ChangesForgottenError):
        catalog.changes_since(3)
    add_video(catalog, 1, [make_segment(random)])
    token = catalog.change_token(1)
    assert token and catalog.change_token(2) is None and catalog.change_token(0) == ""
    add_video(catalog, 2, [make_segment(random)])
    assert catalog.change_token(1) == token != catalog.change_token(2)


# Features


def test_features_come_in_the_order_asked_without_the_missing(catalog, random):
    segments = [make_segment(random) for _ in range(6)]
    for number in range(3):
        add_video(catalog, number, segments[2 * number : 2 * number + 2])
    features = catalog.segment_features(np.array([6, 99, 1, 3, 3]))
    assert features.segment_ids.tolist() == [6, 1, 3, 3] and len(features) == 4
    for row, position in enumerate([5, 0, 2, 2]):
        assert np.array_equal(features.frames[row], segments[position].frame_features)
    nothing = catalog.segment_features([])
    assert (
        nothing.frames.shape == (0, 4, 8)
        and nothing.video.shape == (0, 8)
        and nothing.frame_mask.shape == (0, 4)
    )
    ids, video = catalog.video_features([6, 99, 1])
    assert ids.tolist() == [1, 6] and np.array_equal(video[1], segments[5].video_feature)


def test_more_features_than_fit_in_one_query_come_in_order(catalog, random):
    num_segments = MAX_IDS_PER_QUERY + 50
    add_video(catalog, 1, [make_segment(random)] * num_segments)
    order = random.permutation(num_segments) + 1
    assert np.array_equal(catalog.segment_features(order).segment_ids, order)
    assert len(catalog.segment_infos(order)) == num_segments
    assert len(catalog.video_features(order)[0]) == num_segments


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_reading_in_blocks_is_reading_in_one_block(catalog, random, block_size):
    for number in range(7):
        add_video(catalog, number, [make_segment(random)])
    blocks = list(catalog.iterate_features(block_size))
    assert all(len(block) <= block_size for block in blocks)
    whole = catalog.segment_features(range(1, 8))
    assert np.array_equal(np.concatenate([block.frames for block in blocks]), whole.frames)
    pairs = list(catalog.iterate_video_features(block_size))
    assert np.array_equal(np.concatenate([ids for ids, _ in pairs]), whole.segment_ids)
    assert np.array_equal(np.concatenate([video for _, video in pairs]), whole.video)


# Damage


@pytest.mark.store("sqlite")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE segment_frames SET frame_features = substr(frame_features, 3) WHERE segment_id = 2",
        "UPDATE segment_frames SET frame_features = CAST(frame_features || x'00' AS BLOB)"
        " WHERE segment_id = 2",
        "UPDATE segment_frames SET frame_features = zeroblob(64) WHERE segment_id = 2",
        "UPDATE segments SET video_feature = zeroblob(32) WHERE id = 2",
        "UPDATE segments SET video_feature = x'' WHERE id = 2",
        "UPDATE segments SET num_frames = 5 WHERE id = 2",
    ],
)
def test_damaged_features_are_never_given_out(catalog, random, statement):
    add_video(catalog, 1, [make_segment(random)] * 3)
    with_sqlite(catalog, statement)
    assert len(catalog.segment_features([1, 3])) == 2
    with pytest.raises(IndexDamagedError):
        catalog.segment_features([1, 2])
    with pytest.raises(IndexDamagedError):
        list(catalog.iterate_features())
    if "video_feature" in statement:
        with pytest.raises(IndexDamagedError, match="segment 2"):
            list(catalog.iterate_video_features())
    catalog.delete_video("video-1")  # What the message advises works.
    assert catalog.totals() == (0, 0)


@pytest.mark.store("sqlite")
def test_frame_times_that_do_not_fit_are_never_given_out(catalog, random):
    add_video(catalog, 1, [make_segment(random)])
    with_sqlite(catalog, "UPDATE segments SET frame_times = x'00'")
    with pytest.raises(IndexDamagedError):
        catalog.segment_infos([1])


def test_a_file_that_is_no_database_is_damaged(tmp_path, random):
    create_catalog(tmp_path).close()
    path = tmp_path / "catalog.sqlite3"
    whole = path.read_bytes()
    for content in (
        b"",
        b"not a database at all" * 1000,
        b"\x00" * len(whole),
        whole[:100] + b"\xff" * 20_000,
    ):
        path.write_bytes(content)
        with pytest.raises(IndexDamagedError):
            Catalog.open(tmp_path)


def test_another_database_is_not_taken_for_a_catalog(tmp_path):
    connection = sqlite3.connect(tmp_path / "catalog.sqlite3")
    connection.execute("CREATE TABLE videos (id TEXT)")
    connection.close()
    with pytest.raises(IndexDamagedError, match="not a catalog"):
        Catalog.open(tmp_path)


def test_a_catalog_of_another_format_is_refused(tmp_path):
    with create_catalog(tmp_path) as catalog:
        with_sqlite(catalog, "PRAGMA user_version = 99")
    with pytest.raises(IndexVersionError, match="99"):
        Catalog.open(tmp_path)


def test_a_catalog_that_lacks_its_facts_is_damaged(tmp_path):
    with create_catalog(tmp_path) as catalog:
        with_sqlite(catalog, "DELETE FROM facts WHERE name = 'num_frames'")
    with pytest.raises(IndexDamagedError, match="num_frames"):
        Catalog.open(tmp_path)


# Opening, creating, closing


def test_an_index_that_is_not_there_is_not_made_by_opening(tmp_path):
    with pytest.raises(IndexNotFoundError, match="nowhere"):
        Catalog.open(tmp_path / "nowhere")
    with pytest.raises(IndexNotFoundError):
        Catalog.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_creating_never_overwrites(catalog, random):
    add_video(catalog, 1, [make_segment(random)])
    with pytest.raises(IndexExistsError):
        create_store(catalog.address, catalog.facts)
    assert catalog.num_videos == 1


def test_of_many_that_create_concurrently_one_does(tmp_path):
    barrier = threading.Barrier(6)

    def create(number):
        barrier.wait()
        try:
            create_catalog(tmp_path, model_spec=str(number)).close()
        except IndexExistsError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(create, range(6))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.sqlite3"]
    Catalog.open(tmp_path).close()


def test_open_or_create_does_the_one_or_the_other(tmp_path, random):
    facts = {"model_spec": "demo", "embedding_dim": 8, "num_frames": 4, "sampling_json": "{}"}
    with Catalog.open_or_create(tmp_path, IndexFacts(fingerprint="a" * 64, **facts)) as catalog:
        add_video(catalog, 1, [make_segment(random)])
    with Catalog.open_or_create(tmp_path, IndexFacts(fingerprint="a" * 64, **facts)) as catalog:
        assert catalog.num_videos == 1
        assert (catalog.model_spec, catalog.embedding_dim, catalog.num_frames) == ("demo", 8, 4)
    with pytest.raises(FingerprintMismatchError):
        Catalog.open_or_create(tmp_path, IndexFacts(fingerprint="b" * 64, **facts))


def test_another_fingerprint_is_refused_by_both_names(catalog):
    open_store(catalog.address, fingerprint=FINGERPRINT).close()
    with pytest.raises(FingerprintMismatchError) as caught:
        open_store(catalog.address, fingerprint="0" * 64)
    assert (caught.value.expected, caught.value.found) == ("0" * 64, FINGERPRINT)
    assert "0" * 64 in str(caught.value) and FINGERPRINT in str(caught.value)


@pytest.mark.store("sqlite")
def test_the_files_are_not_for_everybody(catalog, random):
    add_video(catalog, 1, [make_segment(random)])
    modes = {path.name: path.stat().st_mode & 0o777 for path in catalog.directory.iterdir()}
    assert modes.keys() == {"catalog.sqlite3", "catalog.sqlite3-wal", "catalog.sqlite3-shm"}
    assert not any(mode & 0o027 for mode in modes.values()), modes
    assert catalog.size_bytes > 0


@pytest.mark.store("sqlite")
def test_commits_are_synchronous_and_logged_ahead(slow_disk, catalog):
    with catalog.connections.reading() as connection:
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_closed_catalog_says_so(tmp_path, random):
    catalog = create_catalog(tmp_path)
    add_video(catalog, 1, [make_segment(random)])
    catalog.close()
    catalog.close()
    with pytest.raises(RuntimeError, match="closed"):
        _ = catalog.num_videos
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.sqlite3"]


def test_a_catalog_inherited_by_a_fork_is_not_used(catalog, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("os.getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="another process"):
            _ = catalog.num_videos


def test_threads_write_and_read_together(catalog, random):
    def work(worker):
        own = np.random.default_rng(worker)
        for step in range(8):
            add_video(catalog, 100 * worker + step, [make_segment(own)] * 2)
            if step % 2:
                catalog.delete_video(f"video-{100 * worker + step}")
            assert len(catalog.list_videos()) <= 32

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(1, 5)))
    assert catalog.totals() == (16, 32)
    assert [change.sequence for change in catalog.changes_since(0)] == list(range(1, 49))
    assert sum(len(block) for block in catalog.iterate_features()) == 32


@pytest.mark.parametrize("name, is_advised", [("SQLITE_CANTOPEN", True), ("SQLITE_IOERR_READ", False)])
def test_where_files_next_to_a_catalog_cannot_be_made_the_error_says_that_readers_write_too(name, is_advised):
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode, error.sqlite_errorname = getattr(sqlite3, name), name
    translated = catalog_connections.translated(error, Path("index/catalog.sqlite3"))
    assert isinstance(translated, IndexStorageError) and name in str(translated)
    assert ("must be one that this user may write to" in str(translated)) == is_advised


def test_a_snapshot_stays_as_it_was_and_cannot_be_changed(catalog, random):
    for number in range(3):
        add_video(catalog, number, [make_segment(random)] * 2)
    with catalog.snapshot() as snapshot:
        before = snapshot.state(since=1)
        catalog.delete_video("video-0")
        add_video(catalog, 3, [make_segment(random)])
        assert snapshot.state(since=1) == before and before.sequence == 3
        assert [record.id for block in snapshot.iterate_videos(2) for record in block] == [
            "video-0",
            "video-1",
            "video-2",
        ]
        assert snapshot.segment_ids().tolist() == [1, 2, 3, 4, 5, 6]
        assert len(snapshot.segment_features(range(100))) == 6
        with pytest.raises(RuntimeError, match="snapshot"):
            add_video(snapshot, 4, [make_segment(random)])
    assert catalog.state() == StoreState(5, catalog.change_token(5), 3, 5)
    assert catalog.state(since=3).changes == catalog.changes_since(3)


def test_segments_come_with_their_videos(catalog, random):
    add_video(catalog, 1, [make_segment(random)] * 2, title="a")
    add_video(catalog, 2, [make_segment(random)])
    found = catalog.segments_and_videos([3, 1, 99])
    assert found.keys() == {1, 3}
    for segment_id, (info, record) in found.items():
        assert info.segment_id == segment_id and record == catalog.get_video(info.video_id)


def test_changes_of_one_transaction_are_stored_together_or_not_at_all(catalog, random):
    videos = [new_video(number, [make_segment(random)]) for number in range(3)]
    with pytest.raises(DuplicateIdError), catalog.transaction() as transaction:
        catalog.add_video(videos[0], transaction)
        catalog.add_video(replace(videos[1], id="video-0"), transaction)
    assert catalog.num_videos == 0 and catalog.sequence == 0
    with catalog.transaction() as transaction:
        outcomes = [catalog.add_video(video, transaction) for video in [*videos, videos[0]]]
    assert [outcome.created for outcome in outcomes] == [True, True, True, False]
    assert catalog.num_videos == catalog.sequence == 3
