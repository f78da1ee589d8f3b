"""The recorded paths of an index follow files that are elsewhere now."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from indexer.errors import InvalidRecordError
from indexer.maintenance.relocation import relocate
from indexer.maintenance.verification import verify
from indexer.store.filters import parse_filter
from indexer.store.sqlite.catalog import Catalog
from tests.support.catalog_builders import create_catalog
from tests.support.library_stand_in import StandInLibrary, counts, write_file
from xclip_search import app


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInLibrary]:
    for name in ("films/a.mp4", "films/sub/b ü.mp4", "films-old/c.mp4"):
        write_file(tmp_path / name, name)
    with create_catalog(tmp_path / "index") as catalog:
        library = StandInLibrary(catalog, monkeypatch)
        library.sync(tmp_path / "films", tmp_path / "films-old")
        yield library


def test_addresses_below_a_folder_change_at_a_boundary_and_nothing_is_read(
    library: StandInLibrary, tmp_path: Path
) -> None:
    index = library.catalog.index_directory
    shutil.move(tmp_path / "films", tmp_path / "moved")
    planned = relocate(index, f"{tmp_path}/films/", str(tmp_path / "moved"), dry_run=True)
    assert library.addresses()["a"] == (tmp_path / "films/a.mp4").as_uri()
    done = relocate(index, str(tmp_path / "films"), str(tmp_path / "moved"))
    assert planned == done and (done.num_videos, done.num_files, done.num_there, done.num_all) == (2, 2, 2, 3)
    assert library.addresses() == {
        "a": (tmp_path / "moved/a.mp4").as_uri(),
        "b ü": (tmp_path / "moved/sub/b ü.mp4").as_uri(),
        "c": (tmp_path / "films-old/c.mp4").as_uri(),
    }
    assert counts(library.sync(tmp_path / "moved", tmp_path / "films-old")) == {"unchanged": 3}
    assert library.read == []


def test_the_new_place_need_not_be_here_nor_be_a_path(library: StandInLibrary, tmp_path: Path) -> None:
    index = library.catalog.index_directory
    assert relocate(index, str(tmp_path / "films"), "/videos").num_there == 0
    assert library.addresses()["a"] == "file:///videos/a.mp4"
    assert relocate(index, "/videos", "https://films.example/all/").num_videos == 2
    assert library.addresses()["a"] == "https://films.example/all/a.mp4"
    assert relocate(index, "https://films.example/all", str(tmp_path / "films")).num_there == 2
    assert relocate(index, "/nowhere", "/elsewhere").num_videos == 0
    with pytest.raises(InvalidRecordError, match="the same"):
        relocate(index, "/a", "/a/")


def test_a_folder_may_move_into_itself_and_a_plain_path_moves_too(
    library: StandInLibrary, tmp_path: Path
) -> None:
    index = library.catalog.index_directory
    (video,) = library.catalog.find_by_uris([(tmp_path / "films/a.mp4").as_uri()]).popitem()[1]
    library.catalog.update_video(video.id, uri=str(tmp_path / "films/a.mp4"), missing_since=1.0)
    assert relocate(index, str(tmp_path / "films"), str(tmp_path / "films/films")).num_videos == 2
    assert library.addresses()["a"] == str(tmp_path / "films/films/a.mp4")
    assert library.catalog.get_video(video.id).missing_since == 1.0
    relocate(index, str(tmp_path / "films/films"), str(tmp_path / "films"))
    assert library.catalog.get_video(video.id).missing_since is None


def test_missing_files_are_listed_filtered_and_verified(library: StandInLibrary, tmp_path: Path) -> None:
    index = library.catalog.index_directory
    (tmp_path / "films/a.mp4").unlink()
    write_file(tmp_path / "films-old/c.mp4", "another size")
    parts = [finding.part for finding in verify(index, files=True).findings]
    assert parts == ["missing files", "changed files"] and verify(index).is_clean
    assert library.catalog.list_videos(chosen=parse_filter({"missing": True})) == []
    library.sync(tmp_path / "films")
    for chosen, titles in (({"missing": True}, {"a"}), ({"missing": {"eq": False}}, {"b ü", "c"})):
        found = library.catalog.list_videos(chosen=parse_filter(chosen))
        assert {video.title for video in found} == titles
    result = CliRunner().invoke(app, ["list", "--index", str(index), "--filter", '{"missing": true}'])
    assert result.exit_code == 0 and " a" in result.stdout and "1 of 3" in result.stderr
    result = CliRunner().invoke(app, ["verify", "--index", str(index), "--files"])
    assert result.exit_code == 1 and "missing files: the file of video" in result.stderr


def test_the_commands_say_what_they_did(library: StandInLibrary, tmp_path: Path) -> None:
    index = str(library.catalog.index_directory)
    run = CliRunner().invoke
    result = run(app, ["relocate", str(tmp_path / "films"), "/videos", "--index", index, "--dry-run"])
    assert result.exit_code == 0
    assert result.stdout == "2 videos would be relocated, of 3 in the index; 0 of their files are there\n"
    video_id = library.catalog.list_videos()[0].id
    assert run(app, ["delete", video_id, "--keep-out", "--index", index]).exit_code == 0
    assert run(app, ["kept-out", "--index", index]).stdout.startswith(video_id)
    assert run(app, ["kept-out", "--index", index, "--let-in", "other"]).exit_code == 2
    assert run(app, ["kept-out", "--index", index, "--let-in", video_id]).exit_code == 0
    with Catalog.open(index) as catalog:
        assert catalog.kept_out.list_all() == []
