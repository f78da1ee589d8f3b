"""verify and rebuild: nothing that was changed behind the index's back goes unnoticed."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from indexer.coarse.index import CoarseIndex
from indexer.errors import IndexDamagedError, IndexNotFoundError
from indexer.maintenance.verification import rebuild, verify
from indexer.store.records import Damage
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from tests.support.catalog_builders import (
    add_video,
    create_catalog,
    enqueue,
    falsify_coarse_vector,
    make_segment,
)

D, F = 8, 4


@pytest.fixture
def directory(tmp_path):
    """Twelve videos, some deleted, some with two segments, with a saved coarse index."""
    directory = tmp_path / "index"
    random = np.random.default_rng(0)
    with create_catalog(directory, embedding_dim=D, num_frames=F) as catalog:
        for number in range(12):
            segments = [
                make_segment(random, D, F, num_real_frames=1 + number % F) for _ in range(1 + number % 2)
            ]
            add_video(catalog, number, segments, title=f"title {number}", metadata={"n": number})
        catalog.delete_video("video-3")
        catalog.update_video("video-4", title="another")
        CoarseIndex.build(catalog).save()
        add_video(catalog, 12, [make_segment(random, D, F)])
    return directory


def change(directory, *statements):
    connection = sqlite3.connect(directory / "catalog.sqlite3")
    connection.execute("PRAGMA foreign_keys = OFF")
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def parts(report):
    return {finding.part for finding in report.findings}


def test_an_untouched_index_is_clean(directory):
    seen = []
    report = verify(directory, lambda done, total: seen.append((done, total)))
    assert report.is_clean and report.complete
    assert (report.num_videos, report.num_segments) == (12, 17)
    assert seen[-1] == (17, 17)


def test_an_index_that_is_not_there_is_no_damaged_one(tmp_path):
    with pytest.raises(IndexNotFoundError):
        verify(tmp_path)


VIDEO_COLUMNS = {
    "id": "'x'",
    "content_sha256": "replace(content_sha256, substr(content_sha256, 1, 1), 'g')",
    "uri": "'/x'",
    "title": "'x'",
    "metadata": "'{\"n\":7}'",
    "duration_seconds": "duration_seconds + 1",
    "width": "width + 1",
    "height": "height + 1",
    "frame_rate": "1.0",
    "codec": "'av1'",
    "size_bytes": "1",
    "partial": "1",
    "trusted": "1",
    "fraction_read": "0.5",
    "added_at": "added_at + 1",
    "sequence": "1000",
}
SEGMENT_COLUMNS = {
    "id": "1000",
    "video_number": "2",
    "start_seconds": "start_seconds + 0.5",
    "end_seconds": "end_seconds + 1",
    "num_frames": "num_frames % 4 + 1",
    "frame_times": "zeroblob(length(frame_times))",
    "fingerprint": "randomblob(32)",
    "video_feature": "zeroblob(length(video_feature))",
    "video_feature_crc32": "0",
    "row_crc32": "0",
}
CHANGE_COLUMNS = {
    "kind": "'delete'",
    "video_id": "'x'",
    "segment_ids": "'[1]'",
    "changed_at": "0.0",
    "token": "'x'",
    "sequence": "1000",
}
DAMAGE = [
    *(f"UPDATE videos SET {name} = {value} WHERE id = 'video-5'" for name, value in VIDEO_COLUMNS.items()),
    *(f"UPDATE segments SET {name} = {value} WHERE id = 9" for name, value in SEGMENT_COLUMNS.items()),
    *(f"UPDATE changes SET {name} = {value} WHERE sequence = 6" for name, value in CHANGE_COLUMNS.items()),
    "UPDATE segment_frames SET frame_features = zeroblob(length(frame_features)) WHERE segment_id = 9",
    "UPDATE segment_frames SET frame_features = x'00' WHERE segment_id = 9",
    "UPDATE segment_frames SET segment_id = 1000 WHERE segment_id = 9",
    "DELETE FROM segment_frames WHERE segment_id = 9",
    "DELETE FROM segments WHERE id = 9",
    "DELETE FROM videos WHERE id = 'video-5'",
    "DELETE FROM changes WHERE sequence = 6",
    "DELETE FROM changes WHERE sequence = (SELECT max(sequence) FROM changes)",
    "UPDATE totals SET num_videos = 3",
]


@pytest.mark.parametrize("statement", DAMAGE)
def test_whatever_is_changed_behind_its_back_is_found(directory, statement):
    change(directory, statement)
    assert not verify(directory).is_clean


@pytest.mark.parametrize("statement", DAMAGE[: len(VIDEO_COLUMNS)])
def test_a_changed_record_is_never_given_out(directory, statement):
    change(directory, statement)
    with Catalog.open(directory) as catalog, pytest.raises(IndexDamagedError):
        catalog.list_videos(limit=100)


@pytest.mark.parametrize(
    "name", ["video_number", "start_seconds", "end_seconds", "num_frames", "frame_times"]
)
def test_a_changed_segment_is_never_given_out(directory, name):
    change(directory, f"UPDATE segments SET {name} = {SEGMENT_COLUMNS[name]} WHERE id = 9")
    with Catalog.open(directory) as catalog:
        with pytest.raises(IndexDamagedError, match="segment 9"):
            catalog.segment_infos([9])
        if name in ("video_number", "num_frames"):
            with pytest.raises(IndexDamagedError, match="segment 9"):
                catalog.segment_features([9])


def test_a_changed_change_is_never_followed(directory):
    change(directory, "UPDATE changes SET segment_ids = '[]' WHERE sequence = 6")
    with Catalog.open(directory) as catalog, pytest.raises(IndexDamagedError, match="change 6"):
        catalog.changes_since(0)


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_damage_to_what_is_derived_is_distinguished_and_rebuilt(directory):
    (coarse,) = directory.glob("coarse-*.faiss")
    flip(coarse, coarse.stat().st_size // 2)
    change(directory, "UPDATE totals SET num_segments = 99")
    report = verify(directory)
    assert parts(report) == {"coarse index", "totals"}
    assert all(finding.is_derived for finding in report.findings)
    assert rebuild(directory) == (12, 17)
    assert verify(directory).is_clean
    with Catalog.open(directory) as catalog:
        assert CoarseIndex.open(catalog).num_pending == 0


def test_a_coarse_index_that_lacks_a_segment_is_found(directory):
    """As a mistake of ours would make it: whole, by its checksum, and wrong."""
    with Catalog.open(directory) as catalog:
        index = CoarseIndex.open(catalog)
        index.compact()
        falsify_coarse_vector(index, 4)
        index.save()
    report = verify(directory)
    assert parts(report) == {"coarse index"} and "segment" in report.findings[0].problem


def test_no_saved_coarse_index_is_no_damage(directory):
    for path in directory.glob("coarse*"):
        path.unlink()
    assert verify(directory).is_clean


def test_a_damaged_index_of_sqlite_is_found_and_rebuilt(directory):
    connection = sqlite3.connect(directory / "catalog.sqlite3")
    connection.execute("PRAGMA writable_schema = ON")
    with connection:  # An entry disappears from the index while its row stays.
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'segments_by_video'"
        ).fetchone()
        connection.execute(
            "INSERT INTO sqlite_schema VALUES ('table', 'copy', 'copy', ?,"
            " 'CREATE TABLE copy (a, b, PRIMARY KEY (a, b)) WITHOUT ROWID')",
            (root,),
        )
    connection.close()
    connection = sqlite3.connect(directory / "catalog.sqlite3")
    with connection:
        connection.execute("DELETE FROM copy WHERE a = 5")
    connection.execute("PRAGMA writable_schema = ON")
    with connection:
        connection.execute("DELETE FROM sqlite_schema WHERE name = 'copy'")
    connection.close()
    assert not verify(directory).is_clean
    rebuild(directory)
    assert verify(directory).is_clean


JOB_COLUMNS = {
    "id": "'x'",
    "video_id": "'x'",
    "content_sha256": "NULL",
    "source_path": "'/etc/passwd'",
    "uri": "'file:///x'",
    "title": "'x'",
    "metadata": "'{}'",
    "delete_source": "0",
    "created_at": "created_at + 1",
    "row_crc32": "0",
}


@pytest.mark.parametrize("name", JOB_COLUMNS)
def test_a_job_that_is_not_what_was_written_is_never_done_and_holds_up_no_other(directory, name):
    fields = {"title": "t", "metadata": {"n": 1}, "content_sha256": "a" * 64, "delete_source": True}
    with Catalog.open(directory) as catalog:
        queue = JobQueue(catalog)
        enqueue(queue, "first", "/first", **fields)
        enqueue(queue, "second", "/second")
        change(directory, f"UPDATE jobs SET {name} = {JOB_COLUMNS[name]} WHERE number = 1")
        with pytest.raises(IndexDamagedError, match="job number 1"):
            queue.list_jobs()
        (finding,) = verify(directory).findings
        assert finding.part == "jobs" and finding.is_derived
        assert queue.lease("worker", 60).video_id == "second"
        assert queue.counts()["failed"] == 1
        rebuild(directory)
        assert verify(directory).is_clean and [job.number for job in queue.list_jobs()] == [2]


def test_rebuild_refuses_to_derive_anything_from_damage(directory):
    change(directory, "UPDATE segments SET video_feature = zeroblob(length(video_feature)) WHERE id = 9")
    with pytest.raises(IndexDamagedError, match="segment 9"):
        rebuild(directory)


def test_a_damaged_page_that_claims_more_than_fits_into_memory_is_reported(directory, monkeypatch):
    def damages(catalog, on_progress):
        yield Damage("catalog", "page 19 is out of order")
        raise MemoryError  # As SQLite does for a row whose size is damaged.

    monkeypatch.setattr(Catalog, "damages", damages)
    assert [finding.part for finding in verify(directory).findings] == ["catalog", "catalog"]


def test_a_file_that_is_no_catalog_any_more_is_reported(directory):
    path = directory / "catalog.sqlite3"
    path.write_bytes(path.read_bytes()[: 3 * 8192])
    report = verify(directory)
    assert parts(report) == {"catalog"}
