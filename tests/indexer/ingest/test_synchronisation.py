"""An index is brought in line with a library: content is identity, the path is where it lives now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.errors import IndexFullError
from indexer.ingest import storing, synchronisation
from indexer.ingest.manifest import VideoSource
from indexer.ingest.synchronisation import Progress, Synchronisation, SyncOptions
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.files import FileTable, KeptOutTable
from tests.support.catalog_builders import create_catalog
from tests.support.library_stand_in import (
    BROKEN,
    PARTIAL,
    StandInEncoder,
    StandInLibrary,
    counts,
    touch,
    write_file,
)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInLibrary]:
    with create_catalog(tmp_path / "index") as catalog:
        yield StandInLibrary(catalog, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos, in a library of their own."""
    for name in "abc":
        write_file(tmp_path / f"library/{name}.mp4", f"content of {name}, {'x' * ord(name)}")
    return tmp_path / "library"


@pytest.fixture
def indexed(library: StandInLibrary, folder: Path) -> StandInLibrary:
    assert counts(library.sync(folder)) == {"added": 3}
    return library


def only_video(library: StandInLibrary, title: str):
    (video,) = [video for video in library.catalog.list_videos(100) if video.title == title]
    return video


def test_what_is_known_by_path_size_and_time_is_not_read_again(indexed: StandInLibrary, folder: Path) -> None:
    assert counts(indexed.sync(folder)) == {"unchanged": 3}
    assert indexed.read == indexed.encoded == []
    assert counts(indexed.sync(folder, rehash=True)) == {"unchanged": 3}
    assert len(indexed.read) == 3 and indexed.encoded == []


def test_another_time_leads_to_reading_and_the_same_content_stays(
    indexed: StandInLibrary, folder: Path
) -> None:
    touch(folder / "a.mp4", 1000)
    assert counts(indexed.sync(folder)) == {"unchanged": 3}
    assert indexed.read == [folder / "a.mp4"]
    indexed.sync(folder)
    assert indexed.read == []


def test_bytes_that_changed_with_size_and_time_kept_are_found_by_rehash_alone(
    indexed: StandInLibrary, folder: Path
) -> None:
    path = folder / "a.mp4"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert counts(indexed.sync(folder)) == {"unchanged": 3}
    assert counts(indexed.sync(folder, rehash=True)) == {"added": 1, "replaced": 1, "unchanged": 2}


@pytest.mark.parametrize("target", ["sub/a.mp4", "another name.mkv", "without"])
def test_a_moved_file_keeps_its_video(indexed: StandInLibrary, folder: Path, target: str) -> None:
    before = only_video(indexed, "a")
    (folder / target).parent.mkdir(exist_ok=True)
    (folder / "a.mp4").rename(folder / target)
    report = indexed.sync(folder)
    assert counts(report) == {"moved": 1, "unchanged": 2}
    assert report.moved == [(str(folder / target), before.uri)]
    assert indexed.encoded == []
    after = indexed.catalog.get_video(before.id)
    assert after.uri == (folder / target).as_uri()
    assert after.title == (folder / target).stem, "a title that was the file's name follows it"


def test_a_title_that_a_person_gave_stays_when_the_file_moves(indexed: StandInLibrary, folder: Path) -> None:
    video = only_video(indexed, "a")
    indexed.catalog.update_video(video.id, title="Holiday")
    (folder / "a.mp4").rename(folder / "z.mp4")
    indexed.sync(folder)
    assert indexed.catalog.get_video(video.id).title == "Holiday"


def test_a_library_that_moved_as_a_whole_keeps_all_its_videos(
    indexed: StandInLibrary, folder: Path, tmp_path: Path
) -> None:
    ids = set(indexed.catalog.video_ids())
    shutil.move(folder, tmp_path / "elsewhere")
    assert counts(indexed.sync(tmp_path / "elsewhere")) == {"moved": 3}
    assert set(indexed.catalog.video_ids()) == ids and indexed.encoded == []


def test_two_files_that_changed_places_both_moved(indexed: StandInLibrary, folder: Path) -> None:
    a, b = only_video(indexed, "a"), only_video(indexed, "b")
    (folder / "a.mp4").rename(folder / "t")
    (folder / "b.mp4").rename(folder / "a.mp4")
    (folder / "t").rename(folder / "b.mp4")
    assert counts(indexed.sync(folder)) == {"moved": 2, "unchanged": 1}
    assert indexed.catalog.get_video(a.id).uri == b.uri and indexed.catalog.get_video(b.id).uri == a.uri


def test_a_log_that_is_rotated_moves_the_old_and_adds_the_new(indexed: StandInLibrary, folder: Path) -> None:
    before = only_video(indexed, "a")
    (folder / "a.mp4").rename(folder / "a.1.mp4")
    write_file(folder / "a.mp4", "of today, and of no size that was there before")
    assert counts(indexed.sync(folder)) == {"added": 1, "moved": 1, "unchanged": 2}
    assert indexed.catalog.get_video(before.id).uri == (folder / "a.1.mp4").as_uri()


def test_a_second_living_path_is_a_duplicate_and_takes_over_when_the_first_goes(
    indexed: StandInLibrary, folder: Path
) -> None:
    video = only_video(indexed, "a")
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    report = indexed.sync(folder)
    assert counts(report) == {"duplicate": 1, "unchanged": 3}
    assert report.duplicates == [(str(folder / "copy.mp4"), video.uri)]
    assert counts(indexed.sync(folder)) == {"duplicate": 1, "unchanged": 3} and indexed.read == []
    (folder / "a.mp4").unlink()
    assert counts(indexed.sync(folder)) == {"moved": 1, "unchanged": 2}
    assert indexed.catalog.get_video(video.id).uri == (folder / "copy.mp4").as_uri()


def test_a_duplicate_beyond_the_folders_takes_over_too(
    indexed: StandInLibrary, folder: Path, tmp_path: Path
) -> None:
    video = only_video(indexed, "a")
    copy = tmp_path / "backup/a.mp4"
    copy.parent.mkdir()
    shutil.copy(folder / "a.mp4", copy)
    assert counts(indexed.sync(tmp_path / "backup")) == {"duplicate": 1}
    (folder / "a.mp4").unlink()
    assert counts(indexed.sync(folder, prune=True)) == {"moved": 1, "unchanged": 2}
    assert indexed.catalog.get_video(video.id).uri == copy.as_uri()


def test_a_duplicate_that_goes_is_forgotten(indexed: StandInLibrary, folder: Path) -> None:
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    indexed.sync(folder)
    (folder / "copy.mp4").unlink()
    assert counts(indexed.sync(folder)) == {"unchanged": 3}
    assert FileTable(indexed.catalog).find([(folder / "copy.mp4").as_uri()]) == {}


def test_two_new_files_of_one_content_are_one_video(library: StandInLibrary, tmp_path: Path) -> None:
    for name in "ab":
        write_file(tmp_path / f"l/{name}.mp4", "the same")
    planned = library.sync(tmp_path / "l", dry_run=True)
    done = library.sync(tmp_path / "l")
    assert counts(planned) == counts(done) == {"added": 1, "duplicate": 1}
    assert planned.duplicates == done.duplicates


def test_a_file_replaced_in_place_replaces_its_video_and_never_are_there_none(
    indexed: StandInLibrary, folder: Path
) -> None:
    before = only_video(indexed, "a")
    indexed.catalog.update_video(before.id, title="Stairs", metadata={"camera": "north"})
    write_file(folder / "a.mp4", "cut again")
    numbers: list[int] = []

    def look() -> None:
        with Catalog.open(indexed.catalog.index_directory) as other:
            numbers.append(other.num_videos)

    real = Catalog.add_video

    def add(self: Catalog, *values: object) -> object:
        look()
        return real(self, *values)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "add_video", add)
        assert counts(indexed.sync(folder)) == {"added": 1, "replaced": 1, "unchanged": 2}
    look()
    assert numbers == [3, 3]
    (after,) = [video for video in indexed.catalog.list_videos() if video.uri == before.uri]
    assert after.content_sha256 != before.content_sha256
    assert (after.title, after.metadata) == ("Stairs", {"camera": "north"}), "what was said of it stays"
    assert before.id not in indexed.catalog.video_ids()


def test_what_cannot_be_read_replaces_nothing(indexed: StandInLibrary, folder: Path) -> None:
    write_file(folder / "a.mp4", BROKEN)
    assert counts(indexed.sync(folder)) == {"failed": 1, "unchanged": 2}
    assert len(indexed.catalog.video_ids()) == 3
    (folder / "b.mp4").write_bytes(b"")
    assert counts(indexed.sync(folder, prune=True)) == {"failed": 2, "unchanged": 1}
    assert len(indexed.catalog.video_ids()) == 3


def test_a_write_that_fails_leaves_the_video_that_was_to_be_replaced(
    indexed: StandInLibrary, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(folder / "a.mp4", "cut again")

    def refuse(*_: object) -> None:
        raise IndexFullError("the disk is full")

    monkeypatch.setattr(Catalog, "add_video", refuse)
    with pytest.raises(IndexFullError):
        indexed.sync(folder)
    assert only_video(indexed, "a")


def test_known_content_that_replaces_a_file_leaves_one_video(indexed: StandInLibrary, folder: Path) -> None:
    (folder / "b.mp4").replace(folder / "a.mp4")
    assert counts(indexed.sync(folder)) == {"moved": 1, "replaced": 1, "unchanged": 1}
    assert indexed.addresses().keys() == {"a", "c"}
    shutil.copy(folder / "c.mp4", folder / "a.mp4")
    assert counts(indexed.sync(folder)) == {"duplicate": 1, "replaced": 1, "unchanged": 1}


def test_a_file_that_grew_is_one_video_the_whole_one(library: StandInLibrary, tmp_path: Path) -> None:
    path = write_file(tmp_path / "l/live.mp4", PARTIAL)
    report = library.sync(tmp_path / "l")
    assert counts(report) == {"added": 1, "partial": 1}
    assert report.partial == [(str(path), "only 40% could be read")]
    write_file(path, "all of it")
    assert counts(library.sync(tmp_path / "l")) == {"added": 1, "replaced": 1}
    (video,) = library.catalog.list_videos()
    assert not video.partial


def test_what_a_manifest_changes_is_updated(library: StandInLibrary, folder: Path) -> None:
    def sources(**changes: object) -> list[VideoSource]:
        return [VideoSource(folder / "a.mp4", title="A", metadata={"n": 1}, **changes)]  # type: ignore[arg-type]

    assert counts(library.sync(sources=sources())) == {"added": 1}
    assert counts(library.sync(sources=sources())) == {"unchanged": 1}
    (video,) = library.catalog.list_videos()
    library.catalog.update_video(video.id, title="other", metadata={})
    report = library.sync(sources=sources())
    assert counts(report) == {"updated": 1} and report.updated == [str(folder / "a.mp4")]
    assert library.catalog.get_video(video.id).metadata == {"n": 1} and library.read == []
    assert counts(library.sync(folder)) == {"added": 2, "unchanged": 1}, "a folder says nothing of it"
    assert counts(library.sync(sources=sources(uri="https://films.example/a"))) == {"updated": 1}
    assert counts(library.sync(folder)) == {"unchanged": 3}, "an address elsewhere stays"
    assert library.catalog.get_video(video.id).uri == "https://films.example/a"


def test_a_listed_file_that_is_not_there_failed(library: StandInLibrary, folder: Path) -> None:
    report = library.sync(sources=[VideoSource(folder / "a.mp4"), VideoSource(folder / "z.mp4")])
    assert counts(report) == {"added": 1, "failed": 1}
    assert report.failures == [(str(folder / "z.mp4"), "there is no such file")]


def test_missing_files_are_counted_on_each_run_and_found_again(
    indexed: StandInLibrary, folder: Path, tmp_path: Path
) -> None:
    video = only_video(indexed, "a")
    (folder / "a.mp4").rename(tmp_path / "a.mp4")
    for _ in range(2):
        report = indexed.sync(folder)
        assert counts(report) == {"missing": 1, "unchanged": 2}
        assert report.missing == [(video.id, video.uri)]
    assert indexed.catalog.get_video(video.id).missing_since is not None
    (tmp_path / "a.mp4").rename(folder / "a.mp4")
    assert counts(indexed.sync(folder)) == {"unchanged": 3} and indexed.read == []
    assert indexed.catalog.get_video(video.id).missing_since is None


def test_prune_deletes_the_videos_of_missing_files_below_the_folders_alone(
    indexed: StandInLibrary, folder: Path, tmp_path: Path
) -> None:
    other = write_file(tmp_path / "other/x.mp4", "x")
    indexed.sync(other.parent)
    other.unlink()
    (folder / "a.mp4").unlink()
    assert counts(indexed.sync(folder, prune=True, dry_run=True)) == {
        "missing": 1,
        "pruned": 1,
        "unchanged": 2,
    }
    assert len(indexed.catalog.video_ids()) == 4
    assert counts(indexed.sync(folder, prune=True)) == {"missing": 1, "pruned": 1, "unchanged": 2}
    assert indexed.addresses().keys() == {"b", "c", "x"}
    assert counts(indexed.sync(folder, prune=True)) == {"unchanged": 2}


def test_an_unmounted_disk_empties_no_index(indexed: StandInLibrary, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "unplugged")
    with pytest.raises(FileNotFoundError, match="3 videos there, which are kept"):
        indexed.sync(folder, prune=True)
    folder.mkdir()
    (folder / "lost+found").mkdir()
    report = indexed.sync(folder, prune=True)
    assert counts(report) == {"missing": 3}
    assert "is its disk mounted?" in report.notes[0]
    videos = indexed.catalog.list_videos()
    assert len(videos) == 3 and all(video.missing_since is None for video in videos)
    folder.joinpath("lost+found").rmdir()
    folder.rmdir()
    shutil.move(tmp_path / "unplugged", folder)
    assert counts(indexed.sync(folder, prune=True)) == {"unchanged": 3}


def test_a_folder_that_cannot_be_read_has_no_missing_files(
    indexed: StandInLibrary, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub").mkdir()
    (folder / "a.mp4").rename(folder / "sub/a.mp4")
    indexed.sync(folder)
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = indexed.sync(folder, prune=True)
    assert counts(report) == {"unchanged": 2}
    assert "could not be read" in report.notes[0]
    assert report.folders_left_out == [(str(folder / "sub"), "Permission denied")]


def test_what_is_excluded_later_is_not_missing(indexed: StandInLibrary, folder: Path) -> None:
    report = indexed.sync(folder, exclude=["b.mp4"], prune=True)
    assert counts(report) == {"left_out": 1, "unchanged": 2}
    assert report.left_out == {"excluded": 1} and len(indexed.catalog.video_ids()) == 3


def test_a_dry_run_says_all_and_does_nothing(indexed: StandInLibrary, folder: Path) -> None:
    (folder / "a.mp4").rename(folder / "moved.mp4")
    shutil.copy(folder / "b.mp4", folder / "b2.mp4")
    (folder / "c.mp4").unlink()
    write_file(folder / "new.mp4", "new")
    before = indexed.catalog.sequence, FileTable(indexed.catalog).find([(folder / "b2.mp4").as_uri()])
    planned = indexed.sync(folder, dry_run=True, prune=True)
    assert planned.dry_run and indexed.encoded == []
    assert before == (
        indexed.catalog.sequence,
        FileTable(indexed.catalog).find([(folder / "b2.mp4").as_uri()]),
    )
    done = indexed.sync(folder, prune=True)
    expected = {"added": 1, "moved": 1, "duplicate": 1, "unchanged": 1, "missing": 1, "pruned": 1}
    assert counts(planned) == counts(done) == expected


def test_a_dry_run_needs_no_index(tmp_path: Path, folder: Path) -> None:
    make_pipeline = StandInEncoder
    run = Synchronisation(None, make_pipeline, SyncOptions(dry_run=True))  # type: ignore[arg-type]
    assert counts(run.run([folder])) == {"added": 3}
    with pytest.raises(ValueError, match="dry run"):
        Synchronisation(None, make_pipeline)  # type: ignore[arg-type]


def test_content_that_is_kept_out_does_not_come_back_by_itself(indexed: StandInLibrary, folder: Path) -> None:
    video = only_video(indexed, "a")
    indexed.catalog.delete_video(video.id, keep_out=True)
    for _ in range(2):
        report = indexed.sync(folder)
        assert counts(report) == {"left_out": 1, "unchanged": 2} and report.left_out == {"kept out": 1}
    (folder / "a.mp4").rename(folder / "renamed.mp4")
    assert counts(indexed.sync(folder, dry_run=True)) == {"left_out": 1, "unchanged": 2}
    assert counts(indexed.sync(folder)) == {"left_out": 1, "unchanged": 2}
    KeptOutTable(indexed.catalog).let_in_video(video.id)
    assert counts(indexed.sync(folder)) == {"added": 1, "unchanged": 2}


def test_what_was_deleted_otherwise_comes_back(indexed: StandInLibrary, folder: Path) -> None:
    indexed.catalog.delete_video(only_video(indexed, "a").id)
    assert counts(indexed.sync(folder)) == {"added": 1, "unchanged": 2}


def test_a_file_that_cannot_become_a_video_is_named_on_each_run_and_read_once(
    library: StandInLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "l/a.mp4", BROKEN)
    for num_read in (1, 0):
        report = library.sync(tmp_path / "l")
        assert report.failures == [(str(path), "a codec that we do not read")]
        assert len(library.encoded) == num_read
    assert counts(library.sync(tmp_path / "l", rehash=True)) == {"failed": 1} and library.encoded
    monkeypatch.setattr(storing, "xclip_version", lambda: "99")
    monkeypatch.setattr(synchronisation, "xclip_version", lambda: "99")
    library.sync(tmp_path / "l")
    assert library.encoded == [path], "another version may read it"


def test_files_still_being_written_wait_and_nothing_is_pruned_meanwhile(
    indexed: StandInLibrary, folder: Path, tmp_path: Path
) -> None:
    (folder / "a.mp4").rename(folder / "z.mp4")
    touch(folder / "z.mp4", 5)
    waiting = Progress(is_settled=lambda file: not file.path.endswith("z.mp4"))
    report = indexed.sync(folder, progress=waiting, prune=True)
    assert counts(report) == {"missing": 1, "unchanged": 2, "waiting": 1}
    assert counts(indexed.sync(folder, prune=True)) == {"moved": 1, "unchanged": 2}


def test_the_file_of_an_upload_is_left_alone(library: StandInLibrary, folder: Path) -> None:
    library.sync(folder)
    video = only_video(library, "a")
    library.catalog.update_video(video.id, uri=None)
    report = library.sync(folder)
    assert counts(report) == {"duplicate": 1, "unchanged": 2}
    assert library.catalog.get_video(video.id).uri is None


def test_an_address_that_is_a_plain_path_is_the_same_file(indexed: StandInLibrary, folder: Path) -> None:
    video = only_video(indexed, "a")
    indexed.catalog.update_video(video.id, uri=str(folder / "a.mp4"))
    assert counts(indexed.sync(folder)) == {"unchanged": 3}
    (folder / "a.mp4").unlink()
    assert counts(indexed.sync(folder)) == {"missing": 1, "unchanged": 2}


def test_an_index_of_a_former_version_learns_its_files_by_reading_once(
    indexed: StandInLibrary, folder: Path
) -> None:
    FileTable(indexed.catalog).forget([(folder / f"{name}.mp4").as_uri() for name in "abc"])
    assert counts(indexed.sync(folder)) == {"unchanged": 3} and len(indexed.read) == 3
    assert counts(indexed.sync(folder)) == {"unchanged": 3} and indexed.read == []


def test_many_actions_are_few_transactions(
    library: StandInLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        write_file(tmp_path / f"l/{number}.mp4", f"{number}")
    library.sync(tmp_path / "l")
    (tmp_path / "l").rename(tmp_path / "m")
    monkeypatch.setattr(synchronisation, "_ACTIONS_AT_ONCE", 10)
    num_transactions = 0
    real = Catalog.transaction

    def counted(self: Catalog) -> object:
        nonlocal num_transactions
        num_transactions += 1
        return real(self)

    monkeypatch.setattr(Catalog, "transaction", counted)
    assert counts(library.sync(tmp_path / "m")) == {"moved": 30}
    assert num_transactions == 3
