"""Killed at any moment, an index holds what it acknowledged; and the program that shows it would notice."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from indexer.coarse import snapshots as coarse_files
from indexer.coarse.index import CoarseIndex
from indexer.maintenance import verification
from indexer.maintenance.verification import verify
from indexer.store.sqlite.catalog import Catalog
from tests.conftest import REPOSITORY
from tests.faults.crash_cycles import FAILURES, Ledger, compare
from tests.faults.crash_worker import D, F, segments_of
from tests.support.catalog_builders import add_video, create_catalog, falsify_coarse_vector


def run_cycles(num_cycles: int, seed: int) -> dict:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.faults.crash_cycles",
            f"--cycles={num_cycles}",
            f"--seed={seed}",
            "--json",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 1), result.stderr
    return json.loads(result.stdout)


def assert_nothing_lost(report: dict, num_cycles: int) -> None:
    assert report["failures"] == dict.fromkeys((*FAILURES, "errors"), 0), report
    assert report["cycles"] == num_cycles <= report["kills"]
    assert report["acknowledged"] > num_cycles, "the processes lived long enough to do something"


def test_twenty_kills_and_more_lose_nothing():
    assert_nothing_lost(run_cycles(20, seed=int(time.time())), 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hundred_kills_at_every_kind_of_moment_lose_nothing():
    report = run_cycles(300, seed=1)
    assert_nothing_lost(report, 300)
    assert {"open", "add", "delete", "update", "save", "checkpoint"} <= report["killed during"].keys()
    assert report["generations of two processes"] > 50


# The judge is judged: each kind of failure, made on purpose, is seen.


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "index"
    with create_catalog(directory, embedding_dim=D, num_frames=F) as catalog:
        for number in range(6):
            add(catalog, number)
        CoarseIndex.build(catalog).save()
    return directory


def add(catalog, number, **changes):
    fields = {"title": "a title", "metadata": {"n": 1}, **changes}
    return add_video(catalog, number, segments_of(number), **fields)


def said_of_adding(number, *, acknowledged=True):
    begin = {
        "begin": "add",
        "number": number,
        "id": f"video-{number}",
        "title": "a title",
        "metadata": {"n": 1},
    }
    return [begin, {"done": True, "id": f"video-{number}", "created": True}][: 1 + acknowledged]


@pytest.fixture
def ledger():
    ledger = Ledger()
    for number in range(6):
        ledger.write(said_of_adding(number))
    return ledger


def seen(directory, ledger) -> set[str]:
    return set(+compare(directory, ledger))


def test_what_was_acknowledged_and_is_there_is_right(directory, ledger):
    assert seen(directory, ledger) == set()


def test_an_operation_under_way_may_have_happened_or_not(directory, ledger):
    ledger.write(said_of_adding(7, acknowledged=False))
    ledger.write(
        [{"begin": "delete", "number": 1}],
    )
    ledger.write([{"begin": "update", "number": 2, "title": "new", "metadata": {}}])
    assert seen(directory, ledger) == set()
    ledger.write(said_of_adding(7, acknowledged=False))
    ledger.write([{"begin": "delete", "number": 1}])
    ledger.write([{"begin": "update", "number": 2, "title": "new", "metadata": {}}])
    with Catalog.open(directory) as catalog:
        add(catalog, 7)
        catalog.delete_video("video-1")
        catalog.update_video("video-2", title="new", metadata={})
    assert seen(directory, ledger) == set()
    with Catalog.open(directory) as catalog:
        catalog.delete_video("video-7")
    assert seen(directory, ledger) == {"lost"}, "what was seen once has to stay"


def test_a_lost_video_is_seen(directory, ledger):
    ledger.write(said_of_adding(9))
    assert seen(directory, ledger) == {"lost"}


def test_a_resurrected_video_is_seen(directory, ledger):
    ledger.write([{"begin": "delete", "number": 3}, {"done": True}])
    assert seen(directory, ledger) == {"resurrected"}


def test_a_video_added_twice_is_seen(directory, ledger):
    ledger.write(said_of_adding(3))
    assert seen(directory, ledger) == {"duplicated"}
    with Catalog.open(directory) as catalog:
        add_video(catalog, 3, segments_of(3), id="other", content_sha256="0" * 64, title="a title")
    assert {"duplicated", "torn"} <= seen(directory, ledger)


def test_a_half_written_update_is_seen(directory, ledger):
    ledger.write([{"begin": "update", "number": 2, "title": "new", "metadata": {}}])
    with Catalog.open(directory) as catalog:
        catalog.update_video("video-2", title="new")
    assert seen(directory, ledger) == {"torn"}


def test_other_features_are_seen(directory, ledger):
    with Catalog.open(directory) as catalog:
        catalog.delete_video("video-4")
        add_video(catalog, 4, segments_of(1), title="a title", metadata={"n": 1})
    assert seen(directory, ledger) == {"torn"}


def test_a_missing_segment_is_seen(directory, ledger):
    connection = sqlite3.connect(directory / "catalog.sqlite3")
    with connection:
        connection.execute("DELETE FROM segments WHERE id = 3")
        connection.execute("DELETE FROM segment_frames WHERE segment_id = 3")
        connection.execute("UPDATE totals SET num_segments = num_segments - 1")
    connection.close()
    assert "torn" in seen(directory, ledger)


def test_a_coarse_index_that_lacks_a_segment_is_seen(directory, ledger):
    with Catalog.open(directory) as catalog:
        index = CoarseIndex.open(catalog)
        index.compact()
        falsify_coarse_vector(index, 2)
        index.save()
    assert seen(directory, ledger) == {"wrong answers", "not clean"}


# Saving


def test_two_that_save_at_the_same_moment_leave_a_whole_pair(directory, monkeypatch):
    publish = coarse_files.replace_file
    others: list[threading.Thread] = []

    def save() -> None:
        with Catalog.open(directory) as catalog:
            CoarseIndex.build(catalog).save()

    def interrupted(unfinished, path):
        """Between the file and its manifest another process saves too."""
        publish(unfinished, path)
        if not others:
            others.append(threading.Thread(target=save))
            others[0].start()
            others[0].join(0.5)

    monkeypatch.setattr(coarse_files, "replace_file", interrupted)
    save()
    others[0].join()
    with Catalog.open(directory) as catalog:
        assert not CoarseIndex.open(catalog).needs_saving
    assert verify(directory).is_clean and len(list(directory.glob("coarse-*.faiss"))) == 1


def test_what_is_saved_while_verify_reads_is_no_damage(directory, monkeypatch):
    load, saved = verification.load_snapshot, []

    def interrupted(*arguments):
        """Another process saves between the reading of the manifest and that of the file it names."""
        if not saved:
            saved.append(True)
            with Catalog.open(directory) as catalog:
                CoarseIndex.build(catalog).save()
            raise verification.SnapshotUnusableError("the file is gone")
        return load(*arguments)

    monkeypatch.setattr(verification, "load_snapshot", interrupted)
    assert verify(directory).is_clean and saved


def test_unfinished_files_of_killed_processes_are_cleaned_away_and_young_ones_left(directory):
    old = directory / f"coarse-{'0' * 16}.faiss.new"
    young = Path(f"{directory}/coarse.json.{'1' * 16}.new")
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - coarse_files.UNFINISHED_KEPT_SECONDS - 1))
    with Catalog.open(directory) as catalog:
        CoarseIndex.open(catalog).save()
    assert not old.exists() and young.exists()
