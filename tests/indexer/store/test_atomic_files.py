"""What is on disk when a file, a folder or an index has been made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from model.atomic_files import make_directories, write_atomically
from tests.support.catalog_builders import create_catalog

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file is brought to disk")


@pytest.fixture
def synchronized(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files and folders that were brought to disk, in their order, by the names that they had then."""
    found: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        found.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return found


def test_a_file_is_on_disk_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, synchronized: list[Path]
) -> None:
    path = tmp_path / "file"
    path.write_text("former")
    write_atomically(path, lambda unfinished: unfinished.write_text("new"))
    assert path.read_text() == "new"
    unfinished, folder = synchronized
    assert unfinished.parent == folder == tmp_path and unfinished != path


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("former")

    def fail(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "former" and list(tmp_path.iterdir()) == [path]


def test_the_name_of_each_new_folder_lasts(tmp_path: Path, synchronized: list[Path]) -> None:
    make_directories(tmp_path / "a" / "b", mode=0o700)
    assert set(synchronized) == {tmp_path, tmp_path / "a"}
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    synchronized.clear()
    make_directories(tmp_path / "a" / "b")
    assert synchronized == []


def test_a_new_index_lasts_with_the_folders_that_lead_to_it(tmp_path: Path, synchronized: list[Path]) -> None:
    index = tmp_path / "corpora" / "index"
    create_catalog(index).close()
    assert {tmp_path, index.parent, index} <= set(synchronized)
