"""Videos added to one PostgreSQL by one, two and four writing processes, and imported from Parquet.

    python -m benchmarks.cluster.writers

Each video is a transaction of its own, as indexing makes it: 12 frames x 512 dimensions, drawn. All writers
lock one row first, so that adding is one at a time; a writer beyond the first gains what it does outside of
that. An import adds some hundred together. Processes are timed from their first video to their last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cluster.places import DIMENSION, FACTS, NUM_FRAMES, database
from benchmarks.machine import REPOSITORY
from benchmarks.report import Report, arguments
from benchmarks.synthetic_index import draw_segments, drawn_video
from indexer.maintenance.exporting import export_index
from indexer.maintenance.importing import import_index
from indexer.store.store import create_store, open_store

LEAST_OF_FOUR, LEAST_OF_IMPORT = 150, 2_000
"""Videos a second."""


def write(address: str, first: int, num_videos: int) -> None:
    """Add drawn videos, each in a transaction; what one writing process does."""
    blocks = draw_segments(first + num_videos, NUM_FRAMES, DIMENSION, first=first)
    segments = [segment for _, block in blocks for segment in block]
    with open_store(address) as store:
        store.totals()  # Connected.
        print("ready", flush=True)
        sys.stdin.readline()
        for number, segment in enumerate(segments, start=first):
            store.add_video(drawn_video(number, segment))
        print("done", flush=True)


def timed_writers(address: str, num_writers: int, num_videos: int) -> float:
    """Seconds until all have added their share."""
    share = num_videos // num_writers
    command = [sys.executable, "-m", "benchmarks.cluster.writers", "--write", address]
    writers = [
        subprocess.Popen(
            [*command, "--first", str(number * share), "--count", str(share)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(num_writers)
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    started = time.perf_counter()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.close()
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    seconds = time.perf_counter() - started
    if any(writer.wait() for writer in writers):
        raise SystemExit("a writer failed")
    return seconds


def compare(choices: argparse.Namespace) -> None:
    """The tables of writers and of an import."""
    num_videos = 400 if choices.short else 8_000
    with (
        tempfile.TemporaryDirectory() as temporary,
        database() as server,
        Report("cluster.writers", choices) as report,
    ):
        report.note("The server runs with fsync=off: what a disk takes for each transaction comes on top.")
        table = report.table(
            f"{num_videos} videos, a transaction each", {"writers": "d", "s": ".1f", "videos/s": ",.0f"}
        )
        for num_writers in (1, 2, 4):
            address = server.address()
            create_store(address, FACTS).close()
            seconds = timed_writers(address, num_writers, num_videos)
            table.add(num_writers, seconds, num_videos / seconds)
            with open_store(address) as store:
                report.check(f"{num_writers} writers: no video is lost", store.num_videos == num_videos)
        report.target("videos/s of four writers", num_videos / seconds, at_least=LEAST_OF_FOUR)
        files, target = Path(temporary) / "exported", server.address()
        export_index(address, files)
        started = time.perf_counter()
        import_index(files, target)
        seconds = time.perf_counter() - started
        table = report.table("Import of the same from Parquet", {"s": ".1f", "videos/s": ",.0f"})
        table.add(seconds, num_videos / seconds)
        report.target("videos/s of an import", num_videos / seconds, at_least=LEAST_OF_IMPORT)


def main() -> None:
    """Compare, or be one of the writers."""
    parser = arguments(__doc__)
    parser.add_argument("--write", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    choices = parser.parse_args()
    if choices.write is not None:
        write(choices.write, choices.first, choices.count)
    else:
        compare(choices)


if __name__ == "__main__":
    main()
