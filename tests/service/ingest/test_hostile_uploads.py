"""Hostile files through a running service; and the programs that show it would notice what must not be."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.faults.hostile_uploads import STRACE, Ended, Findings, judge, run_uploads, trace_uploads


def _may_trace() -> bool:
    if STRACE is None:
        return False
    return subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_service_survives_hostile_uploads_and_reports_the_outcome_of_each(
    clips_directory: Path, model_directory: Path, tmp_path: Path
) -> None:
    findings = run_uploads(str(model_directory), clips_directory, range(90), 5, tmp_path)
    assert not any(findings.failures().values()), findings
    assert findings.num_searches > 10
    outcomes = {ended.outcome for ended in findings.uploads}
    assert {"whole", "partial", "failed"} <= outcomes and len(findings.uploads) > 90 + 26 + 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_upload_makes_any_process_of_the_service_open_another_file_or_speak_to_an_address(
    clips_directory: Path, model_directory: Path, tmp_path: Path
) -> None:
    if not _may_trace():
        pytest.skip("strace is absent or may not trace")
    findings, trace = trace_uploads(str(model_directory), clips_directory, tmp_path)
    assert not any(findings.failures().values()), findings
    num_jobs = sum(ended.attempts > 0 for ended in findings.uploads)
    assert len(trace.uploads_read) >= num_jobs > 50, "the trace saw the decoder at work"
    assert (trace.foreign, trace.addresses, trace.programs) == (frozenset(), (), ())


# The judges are judged


def test_a_trace_is_judged_by_what_is_opened_where() -> None:
    upload = "0123456789abcdef" * 2
    innocent = [
        f'7 openat(AT_FDCWD, "/i/uploads/{upload}", O_RDONLY|O_CLOEXEC) = 9',
        '7 openat(AT_FDCWD, "/usr/lib/x.so", O_RDONLY|O_CLOEXEC <unfinished ...>',
        '7 openat(AT_FDCWD, "/i/catalog.sqlite3-wal", O_RDWR|O_CREAT, 0644) = 9',
        f'7 openat(AT_FDCWD, "/i/media/{upload}.mp4", O_RDONLY) = 9',
        f'7 openat(AT_FDCWD, "/i/uploads/{upload[::-1]}", O_WRONLY|O_CREAT|O_EXCL, 0666) = 9',
    ]
    trace = judge(innocent, Path("/i"))
    assert trace.uploads_read == {upload, f"{upload}.mp4"}
    assert (trace.foreign, trace.addresses, trace.programs) == (frozenset(), (), ())
    guilty = [
        '8 openat(AT_FDCWD, "/i/uploads/canary.ts", O_RDONLY) = -1 ENOENT (No such file or directory)',
        '8 openat(AT_FDCWD, "canary.ts", O_RDONLY) = -1 ENOENT (No such file or directory)',
        '8 open("/home/secret", O_RDONLY <unfinished ...>',
        '8 openat2(4, "/home/other", {flags=O_RDONLY}, 24) = 3',
        '8 connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3.4")}, 16) = 0',
        '8 execve("/bin/sh", ["sh"], 0x0 /* 0 vars */) = 0',
    ]
    trace = judge(innocent + guilty, Path("/i"))
    assert trace.foreign == {"/i/uploads/canary.ts", "canary.ts", "/home/secret", "/home/other"}
    assert len(trace.addresses) == len(trace.programs) == 1


@pytest.mark.parametrize(
    ("seen", "count"),
    [
        ({"num_api_deaths": 1}, 1),
        ({"num_worker_restarts": 2}, 2),
        ({"search_failures": ["coarse: status 500"]}, 1),
        ({"num_tracebacks": 3}, 3),
        ({"num_videos": 1}, 1),
        ({"index_problems": ["catalog: damaged"]}, 1),
        ({"uploads": [Ended("splice", "still running")]}, 1),
        ({"uploads": [Ended("splice", "failed", "")]}, 1),
        ({"uploads": [Ended("splice", "failed", "the decoder crashed (signal 11)")]}, 1),
        ({"uploads": [Ended("splice", "failed", "too long", seconds=61)]}, 1),
        ({"uploads": [Ended("splice", "whole")]}, 1),
    ],
)
def test_each_thing_that_must_not_be_counts(seen: dict[str, Any], count: int) -> None:
    assert not any(Findings().failures().values())
    assert [number for number in Findings(**seen).failures().values() if number] == [count]
