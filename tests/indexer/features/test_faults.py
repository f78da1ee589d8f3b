"""What may befall a feature file: answers stay the store's, and the file is made again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import IndexDamagedError
from indexer.features import feature_file, writing
from indexer.features.feature_file import MANIFEST_FILE, Manifest
from indexer.features.writing import (
    LOCK_FILE,
    WritingStoppedError,
    feature_file_problems,
    save_feature_file,
    update_feature_file,
)
from indexer.maintenance.backup import backup, restore
from indexer.maintenance.verification import rebuild, verify
from indexer.store.sqlite.catalog import Catalog
from tests.indexer.features.test_reader import (
    D,
    F,
    add,
    assert_as_in_catalog,
    ids_from_file,
    reader_of,
    written_at_once,
)
from tests.support.catalog_builders import create_catalog

__all__ = ["written_at_once"]

pytestmark = pytest.mark.usefixtures("written_at_once")


@pytest.fixture
def catalog(tmp_path, request):
    with create_catalog(tmp_path / "index", embedding_dim=D, num_frames=F) as catalog:
        add(catalog, range(40))
        update_feature_file(catalog, precision=getattr(request, "param", "float16"))
        yield catalog


def path_of(catalog, suffix):
    return Manifest.read(catalog.directory).path(catalog.directory, suffix)


def change(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


in_both_precisions = pytest.mark.parametrize("catalog", ["float16", "int8"], indirect=True)


@in_both_precisions
@pytest.mark.parametrize("suffix", ["frames", "videos", "rows"])
def test_whichever_bit_flips_the_answers_are_the_catalogs_and_the_file_is_made_again(catalog, suffix, caplog):
    size = path_of(catalog, suffix).stat().st_size
    former = path_of(catalog, suffix).name
    for offset in np.random.default_rng(0).choice(size, 12, replace=False).tolist():
        change(path_of(catalog, suffix), offset)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="indexer.features"):
            reader = reader_of(catalog)
            assert_as_in_catalog(reader, catalog, range(1, 43))
        # Only the mark of a deletion, and the bytes that pad nothing, may change unnoticed.
        if caplog.records:
            assert reader.needs_update
            reader.update()
            assert path_of(catalog, suffix).name != former
            assert ids_from_file(reader, catalog) == set(range(1, 41))
            former = path_of(catalog, suffix).name
        else:
            assert suffix == "rows" and offset % feature_file.RECORD.itemsize >= 28
            change(path_of(catalog, suffix), offset)


@in_both_precisions
@pytest.mark.parametrize("suffix", ["frames", "videos"])
def test_a_check_finds_the_record_that_no_search_has_come_to(catalog, suffix, caplog):
    size = path_of(catalog, suffix).stat().st_size
    change(path_of(catalog, suffix), size // 40 * 17 + 3)
    reader = reader_of(catalog)
    assert not reader.needs_update
    reader.check()
    assert reader.needs_update and "is damaged" in caplog.text
    assert_as_in_catalog(reader, catalog, range(1, 43))
    reader.update()
    reader.check()
    assert not reader.needs_update
    assert ids_from_file(reader, catalog) == set(range(1, 41))


@in_both_precisions
@pytest.mark.parametrize("flag", [None, 0x7FFF0000], ids=["unknown", "not taken by the file system"])
def test_systems_that_cannot_say_what_is_in_memory_read_the_same(catalog, monkeypatch, flag):
    monkeypatch.setattr(feature_file, "_IF_IN_MEMORY", flag)
    assert ids_from_file(reader_of(catalog), catalog) == set(range(1, 41))


@in_both_precisions
def test_what_memory_holds_in_part_is_read_to_its_end(catalog, monkeypatch):
    whole = os.preadv

    def in_part(descriptor, buffers, offset, flags=0):
        if flags and offset:
            buffers = [buffers[0][: len(buffers[0]) // 2 + 1]]
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(feature_file, "_IF_IN_MEMORY", 8)
    monkeypatch.setattr(os, "preadv", in_part)
    assert_as_in_catalog(reader_of(catalog), catalog, range(1, 41))
    assert ids_from_file(reader_of(catalog), catalog) == set(range(1, 41))


@in_both_precisions
@pytest.mark.parametrize("suffix", ["frames", "videos", "rows"])
@pytest.mark.parametrize("fate", ["cut", "gone", "empty"])
def test_a_file_that_is_cut_or_gone_is_made_again(catalog, suffix, fate):
    path = path_of(catalog, suffix)
    if fate == "gone":
        path.unlink()
    else:
        os.truncate(path, 0 if fate == "empty" else path.stat().st_size - 1)
    reader = reader_of(catalog)
    assert_as_in_catalog(reader, catalog, range(1, 43))
    assert reader.needs_update
    reader.update()
    assert ids_from_file(reader, catalog) == set(range(1, 41))


@in_both_precisions
@pytest.mark.parametrize("suffix", ["frames", "videos"])
def test_a_file_that_is_cut_while_it_is_open_is_not_looked_at_any_more(catalog, suffix):
    reader = reader_of(catalog)
    assert_as_in_catalog(reader, catalog, range(1, 43))
    os.truncate(path_of(catalog, suffix), 3)
    assert_as_in_catalog(reader, catalog, range(1, 43))
    assert [len(block) for block in reader.blocks(np.arange(1, 41), 16)] == [16, 16, 8]
    assert reader.needs_update


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "0" * 64},
        {"embedding_dim": D + 1},
        {"format": 2},
        {"num_records": 41},
        {"num_records": -1},
        {"token": "another history"},
        {"sequence": 7},
        {"file": "../catalog.sqlite3"},
        {"unknown": 1},
    ],
)
def test_the_file_of_another_index_or_history_is_not_used(catalog, changes):
    path = catalog.directory / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    reader = reader_of(catalog)
    assert ids_from_file(reader, catalog) == set()
    reader.update()
    assert ids_from_file(reader, catalog) == set(range(1, 41))


def test_a_catalog_that_went_back_to_an_older_copy_does_not_get_features_of_its_other_future(tmp_path):
    directory = tmp_path / "index"
    with create_catalog(directory, embedding_dim=D, num_frames=F) as catalog:
        add(catalog, range(10))
        catalog.copy_to(tmp_path / "older.sqlite3")
        add(catalog, range(10, 20))
        update_feature_file(catalog)
    for path in directory.glob("catalog.sqlite3*"):
        path.unlink()
    (tmp_path / "older.sqlite3").rename(directory / "catalog.sqlite3")
    with Catalog.open(directory) as catalog:
        add(catalog, range(30, 40))
        assert_as_in_catalog(reader_of(catalog), catalog, range(1, 23))


@in_both_precisions
def test_verify_finds_what_differs_and_rebuild_repairs_it(catalog):
    assert verify(catalog.directory).is_clean
    change(path_of(catalog, "frames"), 5 * Manifest.read(catalog.directory).record_bytes["frames"])
    change(path_of(catalog, "videos"), 7 * D * 4)
    report = verify(catalog.directory)
    assert {(finding.part, finding.is_derived) for finding in report.findings} == {("feature file", True)}
    assert [finding.problem for finding in report.findings] == [
        f"the record of segment {number} is not what the catalog holds" for number in (6, 8)
    ]
    rebuild(catalog.directory)
    assert list(feature_file_problems(catalog)) == []
    os.truncate(path_of(catalog, "rows"), 10)
    assert [finding.part for finding in verify(catalog.directory).findings] == ["feature file"]


def test_a_backup_leaves_it_out_and_a_removed_file_comes_back(catalog, tmp_path):
    backup(catalog.directory, tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("features*"))
    restore(tmp_path / "copy", tmp_path / "restored")
    with Catalog.open(tmp_path / "restored") as restored:
        reader = reader_of(restored)
        assert_as_in_catalog(reader, restored, range(1, 43))
        reader.update()
        assert ids_from_file(reader, restored) == set(range(1, 41))


def test_a_reader_of_a_read_only_index_uses_the_file_and_writes_nothing(catalog, monkeypatch):
    add(catalog, range(40, 43))
    monkeypatch.setattr(type(catalog), "is_read_only", property(lambda self: True))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in catalog.directory.glob("features*"))
    reader = reader_of(catalog)
    assert not reader.needs_update
    save_feature_file(catalog)
    reader.update()
    assert ids_from_file(reader, catalog) == set(range(1, 41))
    assert_as_in_catalog(reader, catalog, range(1, 46))
    after = sorted((path.name, path.stat().st_mtime_ns) for path in catalog.directory.glob("features*"))
    assert before == after


@pytest.mark.parametrize("when", ["appending", "making"])
def test_a_disk_that_becomes_full_leaves_the_file_as_it_was(catalog, monkeypatch, when):
    add(catalog, range(40, 45))
    damaged = Manifest.read(catalog.directory).file if when == "making" else None
    before = {path.name: path.read_bytes() for path in catalog.directory.glob("features*")}

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(writing.os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            update_feature_file(catalog, damaged=damaged)
        save_feature_file(catalog)
    assert before == {path.name: path.read_bytes() for path in catalog.directory.glob("features*")}
    reader = reader_of(catalog)
    assert_as_in_catalog(reader, catalog, range(1, 48))
    reader.update()
    assert ids_from_file(reader, catalog) == set(range(1, 46))


def test_a_disk_that_is_nearly_full_is_left_to_what_cannot_be_made_again(catalog, monkeypatch):
    add(catalog, range(40, 45))
    monkeypatch.setattr(writing, "KEPT_FREE_BYTES", 1 << 60)
    with pytest.raises(OSError, match="shall stay free"):
        reader_of(catalog).update()
    assert Manifest.read(catalog.directory).num_records == 40


def test_one_process_writes_at_a_time_and_the_others_do_not_wait(catalog):
    add(catalog, range(40, 45))
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, fcntl.LOCK_EX); "
    code += "print('locked', flush=True); time.sleep(60)"
    arguments = [sys.executable, "-c", code, str(catalog.directory / LOCK_FILE)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        assert update_feature_file(catalog) is False
        assert Manifest.read(catalog.directory).num_records == 40
        other.kill()
        other.wait()
        assert update_feature_file(catalog) is True
    assert Manifest.read(catalog.directory).num_records == 45


def test_a_writer_that_is_asked_to_stop_leaves_the_file_as_it_was(catalog):
    before = {path.name: path.read_bytes() for path in catalog.directory.glob("features*")}
    with pytest.raises(WritingStoppedError):
        update_feature_file(catalog, damaged=Manifest.read(catalog.directory).file, should_stop=lambda: True)
    assert before == {path.name: path.read_bytes() for path in catalog.directory.glob("features*")}
    reader = reader_of(catalog)
    add(catalog, range(40, 45))
    reader.close()
    reader.update()
    assert Manifest.read(catalog.directory).num_records == 40


def test_damage_of_the_catalog_is_reported_and_not_copied(catalog, monkeypatch):
    def damaged(*_):
        raise IndexDamagedError("the catalog is damaged")

    add(catalog, range(40, 45))
    monkeypatch.setattr(type(catalog), "segment_features", damaged)
    with pytest.raises(IndexDamagedError):
        update_feature_file(catalog)
    assert Manifest.read(catalog.directory).num_records == 40


WRITER = """
import sys
from indexer.features import writing
from indexer.store.sqlite.catalog import Catalog
writing.MIN_DELETED = 0
with Catalog.open(sys.argv[1]) as catalog:
    print("ready", flush=True)
    while True:
        writing.update_feature_file(catalog)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_writers_that_are_killed_leave_records_that_are_whole_or_not_seen(catalog):
    """Two processes write as videos come and go, and are killed at any moment; a third reads all the time."""
    random, reader = np.random.default_rng(0), reader_of(catalog)
    root, number = Path(__file__).parents[3], 40
    for _ in range(4):
        arguments = [sys.executable, "-c", WRITER, str(catalog.directory)]
        writers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=root) for _ in range(2)]
        assert all(writer.stdout.readline() == b"ready\n" for writer in writers)
        end = time.monotonic() + random.uniform(0.05, 0.4)
        while time.monotonic() < end:
            add(catalog, [number])
            if number % 3 == 0:
                catalog.delete_video(f"video-{number - 30}")
            number += 1
            assert_as_in_catalog(reader, catalog, random.integers(1, number + 2, size=20))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        assert_as_in_catalog(reader_of(catalog), catalog, range(1, number + 2))
        assert list(feature_file_problems(catalog)) == []
    update_feature_file(catalog)
    assert len(list(catalog.directory.glob("features-*"))) == 3
    assert threading.active_count() < 20
