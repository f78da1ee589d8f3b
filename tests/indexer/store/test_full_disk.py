"""Where a file cannot grow or the disk is full: a clear error, reads go on, nothing acknowledged is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from indexer.errors import IndexFullError
from indexer.store.sqlite.disk import RESERVE_SIZES_BYTES
from tests.conftest import REPOSITORY
from tests.faults.full_disk_worker import SCENARIOS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_FSIZE as Linux has it")


def run_worker(scenario: str, folder) -> dict:
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults.full_disk_worker", scenario, str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_write_fails_nothing_is_lost_and_writes_go_on_later(scenario, tmp_path):
    reports = run_worker(scenario, tmp_path)
    assert len(reports) == len(SCENARIOS[scenario][1])
    assert [report["problems"] for report in reports.values()] == [[]] * len(reports)
    failed = [report["failed"] for report in reports.values()]
    assert failed[0] > 0, "with no space at all something fails"
    assert failed[-1] == 0, "with enough space nothing does"


def test_a_full_disk_is_reported_and_all_is_well_when_it_has_space_again(tmp_path):
    report = run_worker("full_disk", tmp_path)
    if "skipped" in report:
        pytest.skip(f"no file system of our own here: {report['skipped']}")
    assert report["problems"] == []
    assert report["failed"] > 3 and report["refused"] == 3
    assert report["kinds"] == [IndexFullError.__name__]


def test_videos_are_deleted_and_jobs_cancelled_where_not_a_byte_is_free(tmp_path):
    report = run_worker("full_disk_deletions", tmp_path)
    if "skipped" in report:
        pytest.skip(f"no file system of our own here: {report['skipped']}")
    assert report == {
        "refused": True,
        "left": 10,
        "states": ["failed", "failed"],
        "reserve": RESERVE_SIZES_BYTES[0],
    }


def test_an_index_on_a_read_only_file_system_is_searched(tmp_path):
    (tmp_path / "there").mkdir()
    report = run_worker("read_only", tmp_path / "there")
    if "skipped" in report:
        pytest.skip(f"no file system of our own here: {report['skipped']}")
    num_videos, num_found, needs_saving = report["closed"]
    assert num_videos == 20 and num_found >= 20 and not needs_saving
    assert "read-only file system: it can be searched, not changed" in report["refused"]
    assert (report["open elsewhere"], report["changed again"], report["closed again"]) == (21, 19, 19)
    assert "catalog.sqlite3-wal" in report["with a log"] and "xclip-search info" in report["with a log"]
