"""Which files are indexed: folders and manifests."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import ManifestError
from indexer.ingest.manifest import VideoSource, find_videos, read_manifest


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_are_walked_for_videos_and_named_files_taken_as_they_are(tmp_path: Path) -> None:
    _touch(
        tmp_path, "a/1.MP4", "a/b/2.webm", "a/notes.txt", "a/.hidden.mp4", "a/.git/3.mp4", "odd.bin", "z.mkv"
    )
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    found = find_videos([tmp_path / "z.mkv", tmp_path / "a", tmp_path / "odd.bin", tmp_path / "a" / "1.MP4"])
    names = [str(source.path.relative_to(tmp_path)) for source in found]
    assert names == ["z.mkv", "a/1.MP4", "a/b/2.webm", "odd.bin"]
    assert all(source.trusted and source.id is None for source in found)
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4"):
        find_videos([tmp_path / "absent.mp4"])


def test_a_folder_that_cannot_be_read_is_left_out_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _touch(tmp_path, "a/1.mp4", "closed/2.mp4", "z/3.mp4")
    read = os.scandir

    def read_what_is_open(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return read(path)

    monkeypatch.setattr(os, "scandir", read_what_is_open)
    assert [source.path.name for source in find_videos([tmp_path])] == ["1.mp4", "3.mp4"]
    assert f"the folder {tmp_path / 'closed'} is left out" in caplog.text


def test_a_json_lines_manifest_gives_ids_titles_and_metadata(tmp_path: Path) -> None:
    rows = [
        {"path": "clips/a.mp4", "id": "a", "title": "Ä dog", "metadata": {"year": 2020, "tags": ["x"]}},
        {"path": "/else/b.mp4", "uri": "https://example.org/b.mp4"},
    ]
    manifest = tmp_path / "corpus.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    assert read_manifest(manifest) == [
        VideoSource(tmp_path / "clips/a.mp4", "a", "Ä dog", {"year": 2020, "tags": ["x"]}),
        VideoSource(Path("/else/b.mp4"), uri="https://example.org/b.mp4"),
    ]


def test_a_csv_manifest_gives_the_same_and_its_other_columns_are_metadata(tmp_path: Path) -> None:
    manifest = tmp_path / "corpus.csv"
    manifest.write_text(
        '\ufeffpath,id,title,metadata,camera\r\na.mp4,a,"One, two","{""year"": 2020}",left\r\nb.mp4,,,,\r\n',
        encoding="utf-8",
    )
    assert read_manifest(manifest) == [
        VideoSource(tmp_path / "a.mp4", "a", "One, two", {"camera": "left", "year": 2020}),
        VideoSource(tmp_path / "b.mp4"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", "nonsense", "line 1 .* not JSON"),
        ("a.jsonl", '{"metadata": ' + "[" * 100_000, "line 1 .* not JSON"),
        ("a.jsonl", '{"path": "a"}\n[1]', "line 2 .* not a JSON object"),
        ("a.jsonl", '{"id": "a"}', "line 1 .* no path"),
        ("a.jsonl", '{"path": 5}', "path is not a text"),
        ("a.jsonl", '{"path": "a", "tittle": "b"}', "unknown fields tittle"),
        ("a.jsonl", '{"path": "a", "metadata": [1]}', "metadata is not an object"),
        ("a.jsonl", '{"path": "a", "id": "x"}\n{"path": "b", "id": "x"}', "'x' is in the manifest twice"),
        ("a.csv", "file,id\na,b\n", "`path` among them"),
        ("a.csv", "path,id\na\n", "not as many cells"),
        ("a.csv", "path,id\na,b,c\n", "not as many cells"),
        ("a.csv", "path,metadata\na,{nonsense\n", "metadata is not JSON"),
        ("a.csv", "path,metadata\na," + "[" * 100_000 + "\n", "metadata is not JSON"),
        ("a.csv", "path,metadata\na,[1]\n", "metadata is not an object"),
        ("a.csv", "path\n,\n", "cells"),
    ],
)
def test_a_manifest_of_another_form_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=reason):
        read_manifest(tmp_path / name)


def test_a_manifest_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    for name, reason in (("a.jsonl", "UTF-8"), ("absent.jsonl", "cannot be read")):
        with pytest.raises(ManifestError, match=reason):
            read_manifest(tmp_path / name)
