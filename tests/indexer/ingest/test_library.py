"""The files of a library: what is walked, what is left out and said to be, and what is a video."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from indexer.ingest.library import (
    AN_INDEX,
    EXCLUDED,
    HIDDEN,
    LINK_LOOP,
    NO_FILE,
    OF_THE_SYSTEM,
    FirstLook,
    FoundFile,
    Listing,
    absolute,
    find_files,
    find_videos,
    look_at,
)
from tests.support.library_stand_in import HEAD, write_file
from tests.support.video_files import write_coloured_video

OGG_PAGE = b"OggS" + bytes(22) + b"\x01\x1e"


def names(listing: Listing, folder: Path) -> list[str]:
    return [os.path.relpath(file.path, folder) for file in listing.files]


def look(path: Path, *, is_named: bool = False) -> FirstLook:
    status = path.stat()
    return look_at(FoundFile(str(path), status.st_size, status.st_mtime_ns, is_named))


def test_folders_are_walked_in_order_and_named_files_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("a/1.MP4", "a/b/2.webm", "z.mkv", "a/c.mp4"):
        write_file(tmp_path / name)
    write_file(tmp_path / "a/notes.txt", "notes", head=b"")
    write_file(tmp_path / "odd.bin", "anything", head=b"")
    found = find_videos([tmp_path / "z.mkv", tmp_path / "a", tmp_path / "odd.bin", tmp_path / "a/1.MP4"])
    assert [str(source.path.relative_to(tmp_path)) for source in found] == [
        "z.mkv", "a/1.MP4", "a/c.mp4", "a/b/2.webm", "odd.bin",
    ]  # fmt: skip
    assert all(source.trusted and source.id is None and source.title is None for source in found)
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*absent\.mp4"):
        find_files([tmp_path / "absent.mp4"])


def test_what_is_hidden_or_of_a_system_is_left_out_and_said(tmp_path: Path) -> None:
    for folder in (
        "@eaDir", "#recycle", "$RECYCLE.BIN", ".Trash-1000", "System Volume Information", "lost+found",
        "x/.git",
    ):  # fmt: skip
        write_file(tmp_path / folder / "1.mp4")
    for name in ("a.mp4", ".DS_Store", "._a.mp4", "x/.hidden.mp4", "Thumbs.db"):
        write_file(tmp_path / name)
    listing = find_files([tmp_path])
    assert names(listing, tmp_path) == ["a.mp4"]
    assert listing.left_out == {HIDDEN: 3, OF_THE_SYSTEM: 1}
    assert {(os.path.relpath(path, tmp_path), reason) for path, reason in listing.folders_left_out} == {
        ("@eaDir", OF_THE_SYSTEM),
        ("#recycle", OF_THE_SYSTEM),
        ("$RECYCLE.BIN", OF_THE_SYSTEM),
        (".Trash-1000", HIDDEN),
        ("System Volume Information", OF_THE_SYSTEM),
        ("lost+found", OF_THE_SYSTEM),
        ("x/.git", HIDDEN),
    }


def test_a_folder_that_is_named_is_walked_though_it_is_hidden(tmp_path: Path) -> None:
    write_file(tmp_path / ".videos/a.mp4")
    assert names(find_files([tmp_path / ".videos"]), tmp_path) == [".videos/a.mp4"]


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.part"], ["a.mp4", "raw/b.mp4", "x/d.mp4", "x/raw/c.mp4"]),
        (["raw/"], ["a.mp4", "a.part", "x/d.mp4"]),
        (["/raw"], ["a.mp4", "a.part", "x/d.mp4", "x/raw/c.mp4"]),
        (["*.mp4", "!a.mp4"], ["a.mp4", "a.part"]),
        (["x/**/c.*", "# a comment", ""], ["a.mp4", "a.part", "raw/b.mp4", "x/d.mp4"]),
        (["!.hidden.mp4"], [".hidden.mp4", "a.mp4", "a.part", "raw/b.mp4", "x/d.mp4", "x/raw/c.mp4"]),
    ],
)
def test_patterns_leave_out_as_those_of_gitignore_do(
    tmp_path: Path, patterns: list[str], left: list[str]
) -> None:
    for name in ("a.mp4", "a.part", "raw/b.mp4", "x/raw/c.mp4", "x/d.mp4", ".hidden.mp4"):
        write_file(tmp_path / name)
    listing = find_files([tmp_path], patterns)
    assert sorted(names(listing, tmp_path)) == left
    assert listing.left_out[EXCLUDED] or listing.folders_left_out or ".hidden.mp4" in left


def test_an_ignore_file_counts_for_its_folder_and_those_below(tmp_path: Path) -> None:
    for name in ("a.tmp", "x/a.tmp", "x/keep.tmp", "x/y/b.mp4", "x/y/z.mp4"):
        write_file(tmp_path / name)
    (tmp_path / ".xclipignore").write_text("\ufeff*.tmp\r\n", encoding="utf-8")
    (tmp_path / "x/.xclipignore").write_text("!keep.tmp\n/y/z.mp4\n")
    listing = find_files([tmp_path])
    assert names(listing, tmp_path) == ["x/keep.tmp", "x/y/b.mp4"]
    assert listing.left_out == {EXCLUDED: 3}
    assert names(find_files([tmp_path], ["keep.tmp"]), tmp_path) == ["x/y/b.mp4"], "the caller goes first"


def test_links_to_folders_are_followed_and_loops_seen(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    write_file(root / "b/1.mp4")
    write_file(other / "2.mp4")
    (root / "a").symlink_to(root / "b")  # Its name comes first, the real folder counts.
    (root / "b" / "loop").symlink_to(root)
    (root / "out").symlink_to(other)
    (other / "back").symlink_to(root / "b")
    (root / "3.mp4").symlink_to(other / "2.mp4")
    (root / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    listing = find_files([root])
    assert names(listing, root) == ["3.mp4", "b/1.mp4", "out/2.mp4"]
    assert listing.left_out == {NO_FILE: 1}
    assert {(os.path.relpath(path, root), reason) for path, reason in listing.folders_left_out} == {
        ("a", LINK_LOOP),
        ("b/loop", LINK_LOOP),
        ("out/back", LINK_LOOP),
    }


def test_no_file_is_listed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "x/y/a.mp4")
    monkeypatch.chdir(tmp_path / "x")
    paths = [tmp_path, tmp_path / "x", "y", "../x/y/a.mp4", tmp_path / "x/../x/y"]
    assert names(find_files(paths), tmp_path) == ["x/y/a.mp4"]


def test_dots_in_a_path_mean_what_the_system_takes_them_for(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    (tmp_path / "real/a").touch()
    assert absolute(tmp_path / "link/../a") == str(tmp_path / "real/a")
    assert absolute(tmp_path / "real/../link") == str(tmp_path / "link")


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.mp4", "closed/2.mp4", "z/3.mp4"):
        write_file(tmp_path / name)
    read = os.scandir

    def read_what_is_open(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return read(path)

    monkeypatch.setattr(os, "scandir", read_what_is_open)
    listing = find_files([tmp_path])
    assert names(listing, tmp_path) == ["a/1.mp4", "z/3.mp4"]
    assert listing.unread == [(str(tmp_path / "closed"), "Permission denied")]


@pytest.mark.parametrize("inside", [[], ["lost+found/x"], [".Trash-1000/x"], [".stfolder"]])
def test_a_folder_is_empty_where_a_disk_may_not_be_mounted(tmp_path: Path, inside: list[str]) -> None:
    (tmp_path / "disk").mkdir()
    for name in inside:
        write_file(tmp_path / "disk" / name)
    assert find_files([tmp_path / "disk"]).empty == [str(tmp_path / "disk")]
    write_file(tmp_path / "disk/read.me", head=b"")
    assert find_files([tmp_path / "disk"]).empty == []


def test_an_index_among_the_videos_is_not_walked(tmp_path: Path) -> None:
    write_file(tmp_path / "a.mp4")
    write_file(tmp_path / "index/catalog.sqlite3", head=b"")
    write_file(tmp_path / "index/media/b.mp4")
    listing = find_files([tmp_path])
    assert names(listing, tmp_path) == ["a.mp4"]
    assert listing.folders_left_out == [(str(tmp_path / "index"), AN_INDEX)]


@pytest.mark.parametrize("name", ["clip", "clip.dat", "clip.jpg", "clip.tmp.1", "clip.MP4"])
def test_a_video_is_recognised_by_its_first_bytes_whatever_its_name(tmp_path: Path, name: str) -> None:
    write_coloured_video(tmp_path / "clip.mp4", (10, 20, 200), 0.4).rename(tmp_path / name)
    assert look(tmp_path / name) == FirstLook()


@pytest.mark.parametrize(
    ("name", "head", "reason"),
    [
        ("a.jpg", b"\xff\xd8\xff\xe0", ".jpg"),
        ("A.JPG", b"\xff\xd8\xff\xe0", ".jpg"),
        ("read me", b"text", "no ending"),
        ("empty.txt", b"", ".txt"),
        ("component.ts", b"import { a } from 'b';\n\texport const c = 1;\n", ".ts"),
        ("module.mts", "const é = 1;\n".encode() * 200, ".mts"),
        ("song.m4a", b"\x00\x00\x00\x20ftypM4A ", ".m4a"),
        ("song", b"\x00\x00\x00\x20ftypM4A ", "no ending"),
        ("photo.heic", b"\x00\x00\x00\x20ftypheic", ".heic"),
        ("raw.cr3", b"\x00\x00\x00\x20ftypcrx ", ".cr3"),
        ("song.ogg", OGG_PAGE + b"\x01vorbis", ".ogg"),
        ("song.opus", OGG_PAGE + b"OpusHead", ".opus"),
        ("song.mka", b"\x1a\x45\xdf\xa3", ".mka"),
        ("subtitles.srt", b"1\n00:00:01", ".srt"),
    ],
)
def test_the_rest_is_left_out_by_its_ending(tmp_path: Path, name: str, head: bytes, reason: str) -> None:
    assert look(write_file(tmp_path / name, head=head)) == FirstLook(left_out=reason)


@pytest.mark.parametrize(
    ("name", "head", "reason"),
    [
        ("page.mp4", b"<!DOCTYPE html><html>", "not a video"),
        ("empty.mkv", b"", "empty"),
        ("noise.ts", bytes(range(1, 200)), "not a video"),
        ("picture.mp4", b"\xff\xd8\xff\xe0", "JPEG"),
    ],
)
def test_a_file_that_is_named_like_a_video_and_is_none_failed(
    tmp_path: Path, name: str, head: bytes, reason: str
) -> None:
    found = look(write_file(tmp_path / name, head=head))
    assert found.left_out is None and found.failure is not None and reason in found.failure


def test_a_file_that_the_caller_named_is_never_left_out(tmp_path: Path) -> None:
    found = look(write_file(tmp_path / "words.txt", "words", head=b""), is_named=True)
    assert found.left_out is None and found.failure is not None
    assert look(write_file(tmp_path / "song.m4a", head=HEAD), is_named=True) == FirstLook()


def test_an_ogg_file_with_pictures_is_a_video(tmp_path: Path) -> None:
    assert look(write_file(tmp_path / "a.ogg", head=OGG_PAGE + b"\x80theora")) == FirstLook()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_video_that_cannot_be_read_failed(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.mp4")
    path.chmod(0)
    assert look(path).failure == "it cannot be read: Permission denied"
