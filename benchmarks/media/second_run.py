"""How long `index` takes over a library that has not changed, against one that is new to it.

    python -m benchmarks.media.second_run [--files 10000]

Files of a few bytes that pass for videos stand for a library, and what decodes and encodes is stood in for:
what is measured is everything else, of the first run too. Each row is the median of several runs, but for the
first.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from indexer.ingest.synchronisation import Synchronisation, SyncOptions
from indexer.store.records import IndexFacts, KnownFile, NewVideo, SegmentRecord
from indexer.store.sqlite.catalog import Catalog

HEAD = b"\x00\x00\x00\x18ftypisom"
NUM_RUNS = 5
FILES_A_FOLDER = 100


def make_library(folder: Path, num_files: int) -> list[Path]:
    """Files that pass for videos, a hundred in each folder."""
    paths = []
    for number in range(num_files):
        path = folder / f"{number // FILES_A_FOLDER:04}" / f"{number:06}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(HEAD + str(number).encode())
        paths.append(path)
    return paths


def fill(catalog: Catalog, paths: list[Path]) -> None:
    """The index as a first run over these files leaves it."""
    random = np.random.default_rng(0)
    video = random.standard_normal(512).astype(np.float32)
    frames = random.standard_normal((12, 512)).astype(np.float16)
    segment = SegmentRecord(0.0, 10.0, video / np.linalg.norm(video), frames, 12, np.arange(12.0))
    with catalog.transaction() as transaction:
        for path in paths:
            status, sha256 = path.stat(), hashlib.sha256(path.read_bytes()).hexdigest()
            catalog.add_video(
                NewVideo(
                    content_sha256=sha256,
                    segments=[segment],
                    duration_seconds=10.0,
                    width=1920,
                    height=1080,
                    frame_rate=25.0,
                    codec="h264",
                    size_bytes=status.st_size,
                    uri=path.as_uri(),
                    title=path.stem,
                    metadata={"camera": "north"},
                ),
                transaction,
            )
            known = KnownFile(path.as_uri(), status.st_size, status.st_mtime_ns, sha256)
            catalog.files.remember([known], transaction)


Times = tuple[float, float]
"""Seconds of the clock and of a processor; other work on the machine lengthens the first alone."""


def seconds(catalog: Catalog, folder: Path, expected: str, num_runs: int, **options: bool) -> Times:
    """Median times of a run, whose every file must have become `expected`."""
    times: list[Times] = []
    for _ in range(num_runs):
        started, of_processor = time.perf_counter(), time.process_time()
        run = Synchronisation(catalog, _never, SyncOptions(**options))  # type: ignore[arg-type]
        report = run.run([folder])
        times.append((time.perf_counter() - started, time.process_time() - of_processor))
        assert getattr(report, f"num_{expected}") == report.num_files, report
    return _median(times)


def _median(times: list[Times]) -> Times:
    of_clock, of_processor = zip(*times, strict=True)
    return statistics.median(of_clock), statistics.median(of_processor)


def _never() -> None:
    raise AssertionError("nothing is encoded")


def command_seconds(index: Path, folder: Path) -> Times:
    """Median times of the whole command, with the start of Python."""
    times: list[Times] = []
    for _ in range(NUM_RUNS):
        started, before = time.perf_counter(), _of_children()
        command = [sys.executable, "-m", "xclip_search", "index", folder, "--index", index]
        subprocess.run(command, check=True, capture_output=True)
        times.append((time.perf_counter() - started, _of_children() - before))
    return _median(times)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    num_files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as scratch:
        folder, index = Path(scratch) / "library", Path(scratch) / "index"
        paths = make_library(folder, num_files)
        facts = IndexFacts(
            fingerprint="f" * 64, model_spec="demo", embedding_dim=512, num_frames=12, sampling_json="{}"
        )
        with Catalog.create(index, facts) as catalog:
            fill(catalog, paths)
            unchanged = seconds(catalog, folder, "unchanged", NUM_RUNS)
            planned = seconds(catalog, folder, "unchanged", NUM_RUNS, dry_run=True)
            folder.rename(folder.with_name("moved"))
            moved = seconds(catalog, folder.with_name("moved"), "moved", 1)
            folder.with_name("moved").rename(folder)
            seconds(catalog, folder, "moved", 1)
        command = command_seconds(index, folder)
    print(f"| {num_files} files | seconds | of a processor |\n| --- | --- | --- |")
    for what, (of_clock, of_processor) in (
        ("unchanged, the whole command", command),
        ("unchanged", unchanged),
        ("unchanged, dry run", planned),
        ("moved, each hashed", moved),
    ):
        print(f"| {what} | {of_clock:.2f} | {of_processor:.2f} |")


if __name__ == "__main__":
    main()
