"""How long `index` takes over a library that has not changed, against one that is new to it.

    python benchmarks/second_run.py [--files 10000]

Files of a few bytes that pass for videos stand for a library, and what decodes and encodes is stood in for:
what is measured is everything else, of the first run too. Each row is the median of several runs, but for the
first.
"""

from __future__ import annotations

import argparse
import hashlib
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


def seconds(catalog: Catalog, folder: Path, expected: str, num_runs: int, **options: bool) -> float:
    """Median time of a run, whose every file must have become `expected`."""
    times = []
    for _ in range(num_runs):
        started = time.perf_counter()
        run = Synchronisation(catalog, _never, SyncOptions(**options))  # type: ignore[arg-type]
        report = run.run([folder])
        times.append(time.perf_counter() - started)
        assert getattr(report, f"num_{expected}") == report.num_files, report
    return statistics.median(times)


def _never() -> None:
    raise AssertionError("nothing is encoded")


def command_seconds(index: Path, folder: Path) -> float:
    """Median time of the whole command, with the start of Python."""
    times = []
    for _ in range(NUM_RUNS):
        started = time.perf_counter()
        command = [sys.executable, "-m", "xclip_search", "index", folder, "--index", index]
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


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
    print(f"| {num_files} files | seconds |\n| --- | --- |")
    print(f"| unchanged, the whole command | {command:.2f} |")
    print(f"| unchanged | {unchanged:.2f} |")
    print(f"| unchanged, dry run | {planned:.2f} |")
    print(f"| moved, each hashed | {moved:.2f} |")


if __name__ == "__main__":
    main()
