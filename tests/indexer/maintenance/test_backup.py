"""backup and restore: all of one moment while it is in use, and nothing damaged comes back."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from indexer.coarse.index import CoarseIndex
from indexer.errors import (
    BackupDamagedError,
    IndexBusyError,
    IndexExistsError,
    IndexNotFoundError,
)
from indexer.maintenance import backup as backup_module
from indexer.maintenance.backup import backup, restore
from indexer.maintenance.verification import verify
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.connections import BUSY_TIMEOUT_SECONDS
from indexer.store.sqlite.jobs import JobQueue
from tests.support.catalog_builders import add_video, create_catalog, enqueue, kept_changing, make_segment
from xclip_search import app

run = CliRunner().invoke


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def index(tmp_path, random):
    directory = tmp_path / "index"
    with create_catalog(directory) as catalog:
        for number in range(5):
            add_video(catalog, number, [make_segment(random)], title=f"title {number}")
        CoarseIndex.build(catalog).save()
    (directory / "media").mkdir()
    (directory / "media" / f"{'0' * 32}.mp4").write_bytes(b"a video")
    (directory / "uploads").mkdir()
    return directory


def contents(directory):
    with Catalog.open(directory) as catalog:
        records = catalog.list_videos(limit=1000)
        features = list(catalog.iterate_features())
    return records, [(f.segment_ids.tolist(), f.video.tobytes(), f.frames.tobytes()) for f in features]


def test_a_restored_index_is_the_one_that_was_backed_up(index, tmp_path, random):
    before = contents(index)
    report = backup(index, tmp_path / "backup")
    assert (report.num_videos, report.num_segments, report.num_files) == (5, 5, 2)
    with Catalog.open(index) as catalog:
        catalog.delete_video("video-1")
        add_video(catalog, 9, [make_segment(random)])
    assert restore(tmp_path / "backup", tmp_path / "new") == report
    assert contents(tmp_path / "new") == before
    assert verify(tmp_path / "new").is_clean
    assert (tmp_path / "new" / "media" / f"{'0' * 32}.mp4").read_bytes() == b"a video"
    assert not list((tmp_path / "new").glob("coarse*"))
    with Catalog.open(tmp_path / "new") as catalog:
        add_video(catalog, 10, [make_segment(random)])
        assert CoarseIndex.open(catalog).num_segments == 6


def test_a_follower_of_the_index_before_notices_that_another_history_came_back(index, tmp_path, random):
    backup(index, tmp_path / "backup")
    with Catalog.open(index) as catalog:
        add_video(catalog, 9, [make_segment(random)])
        CoarseIndex.build(catalog).save()
    restore(tmp_path / "backup", tmp_path / "new")
    for path in index.glob("coarse*"):  # As if only the catalog had been put back.
        (tmp_path / "new" / path.name).write_bytes(path.read_bytes())
    with Catalog.open(tmp_path / "new") as catalog:
        add_video(catalog, 10, [make_segment(random)])
        ids = np.concatenate([ids for ids, _ in CoarseIndex.open(catalog).blocks()])
        assert ids.tolist() == [
            ids for block in catalog.iterate_video_features() for ids in block[0].tolist()
        ]


def test_uploads_that_wait_are_found_at_their_new_path(index, tmp_path):
    upload = index / "uploads" / ("a" * 32)
    upload.write_bytes(b"waiting")
    elsewhere = tmp_path / "elsewhere.mp4"
    with Catalog.open(index) as catalog:
        queue = JobQueue(catalog)
        enqueue(queue, video_id="waiting", source_path=str(upload.resolve()), delete_source=True)
        enqueue(queue, video_id="placed", source_path=str(elsewhere), delete_source=False)
    backup(index, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "new")
    with Catalog.open(tmp_path / "new") as catalog:
        paths = {job.video_id: Path(job.source_path) for job in JobQueue(catalog).list_jobs()}
    assert paths["waiting"] == (tmp_path / "new").resolve() / "uploads" / ("a" * 32)
    assert paths["waiting"].read_bytes() == b"waiting"
    assert paths["placed"] == elsewhere


def test_a_backup_made_under_writers_is_of_one_moment(index, tmp_path, random):
    with kept_changing(index, random):
        reports = [backup(index, tmp_path / f"backup-{number}") for number in range(5)]
    assert reports[-1].sequence > reports[0].sequence
    for number, report in enumerate(reports):
        restore(tmp_path / f"backup-{number}", tmp_path / f"new-{number}")
        checked = verify(tmp_path / f"new-{number}")
        assert checked.is_clean, checked.findings
        assert (checked.num_videos, checked.num_segments) == (report.num_videos, report.num_segments)


def test_a_file_that_goes_away_after_it_was_listed_was_not_wanted_any_more(index, tmp_path, monkeypatch):
    upload = index.resolve() / "uploads" / ("a" * 32)
    upload.write_bytes(b"its job ends meanwhile")
    list_files, num_listed = backup_module._files, 0

    def list_files_and_end_the_job(directory):
        nonlocal num_listed
        found = list_files(directory)
        num_listed += directory == upload.parent
        if num_listed == 2:
            upload.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(backup_module, "_files", list_files_and_end_the_job)
    backup(index, tmp_path / "backup")
    assert num_listed >= 2 and not upload.exists()


def test_a_backup_never_overwrites_anything(index, tmp_path):
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "mine").write_text("precious")
    with pytest.raises(IndexExistsError):
        backup(index, tmp_path / "backup")
    with pytest.raises(IndexExistsError):
        backup(index, index / "backup")
    backup(index, tmp_path / "good")
    with pytest.raises(IndexExistsError):
        restore(tmp_path / "good", tmp_path / "backup")
    with pytest.raises(IndexExistsError):
        restore(tmp_path / "good", index)
    assert (tmp_path / "backup" / "mine").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "good", "index"]


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """An empty folder that cannot be replaced, with a read-only parent: as a volume in a container."""
    directory = (tmp_path / "read-only" / "index").resolve()
    directory.mkdir(parents=True)
    make, rename = Path.mkdir, Path.rename

    def make_beneath(path, *arguments, **options):
        if path.parent == directory.parent and path != directory:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *arguments, **options)

    def rename_another(path, target):
        if Path(target) == directory:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "mkdir", make_beneath)
    monkeypatch.setattr(Path, "rename", rename_another)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == directory)
    return directory


def test_an_index_comes_back_into_a_volume(index, tmp_path, mounted):
    backup(index, tmp_path / "backup")
    restore(tmp_path / "backup", mounted)
    assert verify(mounted).is_clean
    assert contents(mounted) == contents(index)
    assert not list(mounted.glob(".*"))


def test_a_backup_goes_to_a_volume(index, mounted, tmp_path):
    report = backup(index, mounted)
    assert restore(mounted, tmp_path / "new") == report


def test_nothing_is_left_in_a_volume_of_a_backup_that_is_damaged(index, tmp_path, mounted):
    backup(index, tmp_path / "backup")
    (tmp_path / "backup" / "media" / f"{'0' * 32}.mp4").write_bytes(b"")
    with pytest.raises(BackupDamagedError):
        restore(tmp_path / "backup", mounted)
    assert list(mounted.iterdir()) == []


def test_nothing_in_a_volume_is_overwritten_that_came_meanwhile(index, tmp_path, mounted):
    backup(index, tmp_path / "backup")

    def begin_another_index(done, total):
        (mounted / "catalog.sqlite3").write_text("precious")

    with pytest.raises(IndexExistsError):
        restore(tmp_path / "backup", mounted, begin_another_index)
    assert [(path.name, path.read_text()) for path in mounted.iterdir()] == [("catalog.sqlite3", "precious")]


def test_what_is_no_index_or_no_backup_is_said_so(index, tmp_path):
    with pytest.raises(IndexNotFoundError):
        backup(tmp_path / "nothing", tmp_path / "backup")
    with pytest.raises(IndexNotFoundError):
        restore(index, tmp_path / "new")


DAMAGES = ["flip", "cut", "remove"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["catalog.sqlite3", f"media/{'0' * 32}.mp4"])
def test_a_damaged_backup_is_not_restored(index, tmp_path, name, damage):
    backup(index, tmp_path / "backup")
    path = tmp_path / "backup" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    assert [(finding.part, name in finding.problem) for finding in verify(tmp_path / "backup").findings] == [
        ("backup", True)
    ]
    with pytest.raises(BackupDamagedError):
        restore(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_backup_that_was_verified_can_still_be_restored(index, tmp_path):
    report = backup(index, tmp_path / "backup")
    for _ in range(2):
        verified = verify(tmp_path / "backup")
        assert verified.is_clean and verified.num_videos == 5
    assert restore(tmp_path / "backup", tmp_path / "new") == report


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: {},
        lambda manifest: [],
        lambda manifest: {**manifest, "format": 99},
        lambda manifest: {**manifest, "files": {}},
        lambda manifest: {
            **manifest,
            "files": {**manifest["files"], "../x": {"sha256": "", "size_bytes": 0}},
        },
        lambda manifest: {**manifest, "files": {**manifest["files"], "/x": {"sha256": "", "size_bytes": 0}}},
        lambda manifest: {**manifest, "files": {"catalog.sqlite3": {}}},
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(index, tmp_path, change):
    backup(index, tmp_path / "backup")
    path = tmp_path / "backup" / "backup.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert not verify(tmp_path / "backup").is_clean
    with pytest.raises(BackupDamagedError):
        restore(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_writer_that_waits_too_long_gets_an_error_that_says_so(index, random, monkeypatch):
    monkeypatch.setattr("indexer.store.sqlite.connections.BUSY_TIMEOUT_SECONDS", 0.05)
    assert BUSY_TIMEOUT_SECONDS == 30.0
    with Catalog.open(index) as first, Catalog.open(index) as second:
        with first.connections.transaction(), pytest.raises(IndexBusyError, match="nothing was changed"):
            add_video(second, 77, [make_segment(random)])
        add_video(second, 77, [make_segment(random)])


def test_the_commands_say_what_they_did_and_end_as_promised(index, tmp_path):
    result = run(app, ["verify", "--index", str(index)])
    assert result.exit_code == 0 and "5 videos, 5 segments: clean" in result.stdout
    result = run(app, ["backup", "--index", str(index), str(tmp_path / "backup")])
    assert result.exit_code == 0 and "5 videos" in result.stdout
    result = run(app, ["backup", "--index", str(index), str(tmp_path / "backup")])
    assert result.exit_code == 2 and "not empty" in result.stderr
    result = run(app, ["restore", str(tmp_path / "backup"), "--index", str(tmp_path / "new"), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["num_videos"] == 5
    (coarse,) = index.glob("coarse-*.faiss")
    coarse.write_bytes(coarse.read_bytes()[:-1])
    result = run(app, ["verify", "--index", str(index)])
    assert result.exit_code == 1 and "rebuild" in result.stdout and "coarse index" in result.stderr
    result = run(app, ["verify", "--index", str(index), "--json"])
    assert result.exit_code == 1 and json.loads(result.stdout)["is_clean"] is False
    result = run(app, ["rebuild", "--index", str(index)])
    assert result.exit_code == 0 and "rebuilt for 5 videos" in result.stdout
    assert run(app, ["verify", "--index", str(index)]).exit_code == 0
    assert run(app, ["verify", "--index", str(tmp_path)]).exit_code == 2
    catalog = tmp_path / "backup" / "catalog.sqlite3"
    catalog.write_bytes(catalog.read_bytes()[:-1])
    result = run(app, ["restore", str(tmp_path / "backup"), "--index", str(tmp_path / "other")])
    assert result.exit_code == 1 and "catalog.sqlite3" in result.stderr
