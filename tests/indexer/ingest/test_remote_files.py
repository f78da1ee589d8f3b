"""Files at addresses are indexed like those in folders: listed, fetched once, known when they come again."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from indexer.errors import FetchError
from indexer.ingest import local_copies
from indexer.ingest.local_copies import LocalCopies
from indexer.ingest.manifest import VideoSource, read_manifest
from indexer.ingest.remote_files import RemoteFile, describe, list_address
from tests.support.catalog_builders import create_catalog
from tests.support.library_stand_in import HEAD, StandInLibrary, counts, write_file


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInLibrary]:
    with create_catalog(tmp_path / "index") as catalog:
        yield StandInLibrary(catalog, monkeypatch)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all files that were fetched."""
    paths: list[str] = []
    get_file = MemoryFileSystem.get_file

    def note(self: MemoryFileSystem, path: str, *arguments: Any, **options: Any) -> None:
        paths.append(path)
        get_file(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", note)
    return paths


class Bucket:
    """A folder in the memory of this process, whose files have times that no two share."""

    def __init__(self) -> None:
        self.address = f"memory://{uuid.uuid4().hex}"
        self._seconds = itertools.count()

    def put(self, name: str, content: str | bytes, *, head: bytes = HEAD) -> str:
        address = f"{self.address}/{name}"
        with fsspec.open(address, "wb") as opened:
            opened.write(head + (content.encode() if isinstance(content, str) else content))
        return address

    def remove(self, name: str) -> None:
        fsspec.filesystem("memory").rm(f"{self.address}/{name}")

    def rename(self, name: str, to: str) -> None:
        fsspec.filesystem("memory").mv(f"{self.address}/{name}", f"{self.address}/{to}")


@pytest.fixture
def bucket() -> Bucket:
    """Three videos, one of them in a folder, and what is none."""
    bucket = Bucket()
    for name in ("a.mp4", "b.mkv", "sub/c.mp4"):
        bucket.put(name, f"content of {name} {'x' * len(name)}")
    for name in ("notes.txt", ".hidden.mp4", "@eaDir/a.mp4"):
        bucket.put(name, name)
    return bucket


def test_all_videos_below_an_address_are_added_and_known_by_it(
    library: StandInLibrary, bucket: Bucket
) -> None:
    report = library.sync(bucket.address)
    assert counts(report) == {"added": 3, "left_out": 3}
    assert report.left_out == {".txt": 1, "hidden": 1, "of the system": 1}
    assert library.addresses() == {
        "a": f"{bucket.address}/a.mp4",
        "b": f"{bucket.address}/b.mkv",
        "c": f"{bucket.address}/sub/c.mp4",
    }
    assert not any(video.trusted for video in library.catalog.list_videos(10)), "decord reads none of them"


def test_what_is_known_is_not_fetched_again(
    library: StandInLibrary, bucket: Bucket, fetched: list[str]
) -> None:
    library.sync(bucket.address)
    assert len(fetched) == 3
    for named in (bucket.address, f"{bucket.address}/"):
        assert counts(library.sync(named)) == {"unchanged": 3, "left_out": 3}
    assert counts(library.sync(f"{bucket.address}/a.mp4")) == {"unchanged": 1}
    assert len(fetched) == 3
    assert counts(library.sync(bucket.address, rehash=True)) == {"unchanged": 3, "left_out": 3}
    assert len(fetched) == 6


def test_copies_are_gone_when_a_run_has_ended(
    library: StandInLibrary, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(local_copies.tempfile, "tempdir", str(tmp_path / "temporary"))
    library.sync(bucket.address)
    assert library.encoded and list((tmp_path / "temporary").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copies.tempfile, "tempdir", str(tmp_path))
    left_over = tmp_path / "xclip-fetched-of-the-dead"
    write_file(left_over / "in-use")
    write_file(left_over / "film.mp4")
    file = RemoteFile(f"{bucket.address}/a.mp4")
    with LocalCopies(1) as one, LocalCopies(1) as other:
        first, second = one.fetch(file), other.fetch(file)
        assert first.read_bytes() == second.read_bytes() != b""
        assert not left_over.exists()
    assert list(tmp_path.iterdir()) == []


def test_other_content_at_an_address_replaces_its_video(library: StandInLibrary, bucket: Bucket) -> None:
    library.sync(bucket.address)
    bucket.put("a.mp4", "quite another content")
    assert counts(library.sync(bucket.address)) == {
        "added": 1,
        "replaced": 1,
        "unchanged": 2,
        "left_out": 3,
    }
    assert len(library.addresses()) == 3


def test_the_same_bytes_written_again_keep_their_video(
    library: StandInLibrary, bucket: Bucket, fetched: list[str]
) -> None:
    library.sync(bucket.address)
    before = {video.id for video in library.catalog.list_videos(10)}
    with fsspec.open(f"{bucket.address}/a.mp4", "rb") as opened:
        content = opened.read()
    bucket.put("a.mp4", content, head=b"")
    assert counts(library.sync(bucket.address)) == {"unchanged": 3, "left_out": 3}
    assert {video.id for video in library.catalog.list_videos(10)} == before
    assert len(fetched) == 4, "once, to learn that it is the same"


def test_a_renamed_file_keeps_its_video(library: StandInLibrary, bucket: Bucket) -> None:
    library.sync(bucket.address)
    bucket.rename("a.mp4", "sub/new name.mp4")
    report = library.sync(bucket.address, prune=True)
    assert counts(report) == {"moved": 1, "unchanged": 2, "left_out": 3}
    assert library.addresses()["new name"] == f"{bucket.address}/sub/new name.mp4"
    assert library.encoded == []


def test_a_file_that_is_gone_is_missing_and_pruned_on_request(
    library: StandInLibrary, bucket: Bucket
) -> None:
    library.sync(bucket.address)
    bucket.remove("a.mp4")
    assert counts(library.sync(bucket.address)) == {"unchanged": 2, "missing": 1, "left_out": 3}
    assert counts(library.sync(bucket.address, prune=True)) == {
        "unchanged": 2,
        "missing": 1,
        "pruned": 1,
        "left_out": 3,
    }
    assert len(library.addresses()) == 2


def test_an_address_that_holds_nothing_any_more_prunes_nothing(
    library: StandInLibrary, bucket: Bucket
) -> None:
    library.sync(bucket.address)
    for name in ("a.mp4", "b.mkv", "sub/c.mp4", "notes.txt", ".hidden.mp4", "@eaDir/a.mp4"):
        bucket.remove(name)
    report = library.sync(bucket.address, prune=True)
    assert counts(report) == {"failed": 1}
    assert report.failures[0][0] == bucket.address and "there is no such file" in report.failures[0][1]
    assert len(library.addresses()) == 3


def test_a_copy_here_and_its_original_elsewhere_are_one_video(
    library: StandInLibrary, bucket: Bucket, tmp_path: Path, fetched: list[str]
) -> None:
    library.sync(bucket.address)
    with fsspec.open(f"{bucket.address}/a.mp4", "rb") as opened:
        write_file(tmp_path / "here/copy.mp4", opened.read(), head=b"")
    report = library.sync(tmp_path / "here")
    assert report.duplicates == [(str(tmp_path / "here/copy.mp4"), f"{bucket.address}/a.mp4")]
    assert len(fetched) == 3


def test_an_address_that_cannot_be_read_fails_alone(library: StandInLibrary, bucket: Bucket) -> None:
    report = library.sync("memory://nothing-is-here/x", "no-such-scheme://a/b.mp4", bucket.address)
    assert report.num_added == 3 and report.num_failed == 2
    assert dict(report.failures) == {
        "memory://nothing-is-here/x": "there is no such file",
        "no-such-scheme://a/b.mp4": "no file system is known for no-such-scheme://",
    }


def test_patterns_leave_out_files_at_addresses(library: StandInLibrary, bucket: Bucket) -> None:
    report = library.sync(bucket.address, exclude=["sub/", "*.mkv", "!.hidden.mp4"])
    assert report.left_out == {"excluded": 2, ".txt": 1, "of the system": 1}
    assert counts(report)["added"] == 2


def test_a_dry_run_fetches_nothing(library: StandInLibrary, bucket: Bucket, fetched: list[str]) -> None:
    assert counts(library.sync(bucket.address, dry_run=True)) == {"added": 3, "left_out": 3}
    assert fetched == [] and library.addresses() == {}


def test_transcripts_beside_a_video_come_with_it(library: StandInLibrary, bucket: Bucket) -> None:
    line = b"00:00:01,000 --> 00:00:02,000\nHello\n"
    bucket.put("a.en.srt", line, head=b"")
    report = library.sync(bucket.address)
    assert report.num_transcripts == 1 and report.num_added == 3
    (video,) = [video for video in library.catalog.list_videos(10) if video.title == "a"]
    (kept,) = library.catalog.transcripts.of_videos([video.id])[video.id]
    assert (kept.track, kept.lines[0].text) == ("en", "Hello")
    assert kept.file is not None and kept.file.uri == f"{bucket.address}/a.en.srt"
    assert library.sync(bucket.address).num_transcripts == 0, "it is known"
    library.sync(f"{bucket.address}/a.mp4")
    assert library.catalog.transcripts.of_videos([video.id]), "nobody looked beside it, so it stays"
    bucket.remove("a.en.srt")
    assert counts(library.sync(bucket.address))["updated"] == 1
    assert not library.catalog.transcripts.of_videos([video.id])


def test_a_manifest_names_addresses_with_titles_and_transcripts(
    library: StandInLibrary, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.put("said.de.vtt", b"WEBVTT\n\n00:01.000 --> 00:02.000\nHallo\n", head=b"")
    (tmp_path / "list.csv").write_text(
        "path,id,title,transcript,year\n"
        f"{bucket.address}/a.mp4,first,A film,{bucket.address}/said.de.vtt,1999\n"
        f"{bucket.address}/absent.mp4,second,,,2000\n"
    )
    report = library.sync(sources=read_manifest(tmp_path / "list.csv").sources)
    assert report.failures == [(f"{bucket.address}/absent.mp4", "there is no such file")]
    video = library.catalog.get_video("first")
    assert (video.title, video.metadata, video.uri) == (
        "A film",
        {"year": 1999},
        f"{bucket.address}/a.mp4",
    )
    assert library.catalog.transcripts.of_videos(["first"])["first"][0].track == "de"


def test_many_files_of_one_folder_are_asked_for_by_listing_it(
    library: StandInLibrary, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [bucket.put(f"many/{number}.mp4", str(number)) for number in range(60)]
    asked: list[str] = []
    info = MemoryFileSystem.info

    def note(self: MemoryFileSystem, path: str, **options: Any) -> dict[str, Any]:
        asked.append(path)
        return info(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "info", note)
    named = [*addresses, f"{bucket.address}/many/no.mp4"]
    sources = [VideoSource(RemoteFile(address)) for address in named]
    report = library.sync(sources=sources)
    assert counts(report) == {"added": 60, "failed": 1}
    asked.clear()
    assert counts(library.sync(sources=sources)) == {"unchanged": 60, "failed": 1}
    assert asked == []


def test_a_file_that_changes_while_it_is_fetched_is_left_to_the_next_run(
    bucket: Bucket, tmp_path: Path
) -> None:
    (listed,), _ = list_address(f"{bucket.address}/a.mp4")
    time.sleep(0.001)  # Clocks tick in microseconds.
    with fsspec.open(listed.uri, "rb") as opened:
        content = opened.read()
    bucket.put("a.mp4", content, head=b"")
    assert describe(listed.uri).version != listed.version
    with pytest.raises(FetchError, match="changed while it was fetched"):
        local_copies.fetch_to(listed, tmp_path / "copy.mp4")


def test_a_second_run_over_hundreds_of_files_fetches_none(
    library: StandInLibrary, fetched: list[str]
) -> None:
    bucket = Bucket()
    for number in range(600):
        bucket.put(f"{number}.mp4", f"content {number}")
    library.sync(bucket.address)
    fetched.clear()
    assert counts(library.sync(bucket.address)) == {"unchanged": 600}
    assert fetched == []
