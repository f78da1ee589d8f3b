"""What filters cost: seconds over many videos with ordinary metadata, and over few with the longest.

    python -m tests.faults.costly_filters                       20,000 videos
    python -m tests.faults.costly_filters --num-videos 100000   what is promised: at most a second each

Each filter is asked twice on a catalog that was opened for it: the second time a new video was added
meanwhile, and the change log says that the rest is known. `list` is a page of GET /videos that nothing
matches, so that all are read. The last table has a filter of the largest size over metadata that makes it
slow: it must end at the limit that a server sets. Exit 1 where a promise is not kept.
"""

# ruff: noqa: T201, this is a program that prints tables.

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import QueryTimeoutError
from indexer.store.filters import parse_filter
from indexer.store.records import IndexFacts, NewVideo, SegmentRecord
from indexer.store.sqlite.catalog import Catalog
from tests.support.catalog_builders import COSTLY_FILTER, LONG_METADATA

LONGEST_SECONDS = 1.0
"""Of a filter over 100,000 videos with ordinary metadata."""

LIMIT_SECONDS = 2.0
GRACE_SECONDS = 1.0
"""A query notices the limit so much later at most."""

PLACES = ("harbour", "station", "museum", "forest", "bridge", "market")

FILTERS: dict[str, dict[str, Any]] = {
    "a text": {"metadata.camera": "camera-7"},
    "a number's range": {"metadata.year": {"gte": 2020, "lt": 2022}},
    "one of a list": {"metadata.tags": "tag-3"},
    "any of 50 texts": {"metadata.camera": {"in": [f"camera-{number}" for number in range(50)]}},
    "exists": {"metadata.reviewed_by": {"exists": False}},
    "nested": {"metadata.place.name": "museum"},
    "not": {"not": {"metadata.camera": "camera-7"}},
    "title": {"title": "Recording 77"},
    "length": {"duration_seconds": {"gte": 10, "lt": 60}},
    "six together": {
        "duration_seconds": {"gte": 10},
        "metadata.year": {"gte": 2015},
        "metadata.tags": {"in": ["tag-3", "tag-4"]},
        "or": [{"metadata.place.name": "museum"}, {"metadata.camera": "camera-7"}],
        "not": {"metadata.place.indoors": True},
    },
}


def ordinary(number: int) -> dict[str, Any]:
    """Metadata as people write it, about 250 bytes."""
    return {
        "camera": f"camera-{number % 100}",
        "year": 2000 + number % 26,
        "recorded": f"2{number % 1000:03d}-05-01T12:00:00Z",
        "tags": [f"tag-{(number + step) % 40}" for step in range(4)],
        "place": {"name": PLACES[number % len(PLACES)], "indoors": number % 3 == 0, "floor": number % 5},
        "note": "what was written about this recording when it was taken in, a sentence or two",
    }


def fill(catalog: Catalog, numbers: Iterator[int], metadata: Any) -> None:
    """Add videos of these numbers."""
    feature, times = np.full(8, 8**-0.5, np.float32), np.zeros(1)
    segment = SegmentRecord(0.0, 10.0, feature, feature[None].astype(np.float16), 1, times)
    with catalog.transaction() as transaction:
        for number in numbers:
            video = NewVideo(
                id=f"video-{number}",
                content_sha256=f"{number:064x}",
                segments=[segment],
                title=f"Recording {number}",
                metadata=metadata(number),
                duration_seconds=float(number % 600),
                width=1920,
                height=1080,
                frame_rate=25.0,
                codec="h264",
                size_bytes=10_000_000,
            )
            catalog.add_video(video, transaction)


def measure(catalog: Catalog, name: str, words: dict[str, Any], number: int) -> float:
    """Print a filter's row; the longest it took. number: of the video that is added between."""
    chosen = parse_filter(words)
    nothing = parse_filter({"and": [words, {"metadata.year": 1}]})
    first, found = seconds_of(lambda: catalog.matching(chosen))
    fill(catalog, iter([number]), ordinary)
    again, _ = seconds_of(lambda: catalog.matching(chosen, found))
    listed, _ = seconds_of(lambda: catalog.list_videos(100, chosen=nothing))
    print(f"| {name} | {len(found.segment_ids)} | {first:.2f} | {again:.3f} | {listed:.2f} |", flush=True)
    return max(first, again, listed)


def seconds_of(action: Callable[[], Any]) -> tuple[float, Any]:
    """How long it takes, and what it gives."""
    started = time.perf_counter()
    given = action()
    return time.perf_counter() - started, given


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-videos", type=int, default=20_000)
    arguments = parser.parse_args()
    facts = IndexFacts(
        fingerprint="f" * 64, model_spec="none", embedding_dim=8, num_frames=1, sampling_json="{}"
    )
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder, Catalog.create(Path(folder) / "many", facts) as catalog:
        fill(catalog, iter(range(arguments.num_videos)), ordinary)
        print(f"{arguments.num_videos} videos with ordinary metadata; all records read once: ", end="")
        print(f"{seconds_of(catalog.check_records)[0]:.2f} s")
        print("| filter | matches | first, s | after a change, s | list, s |\n|---|---:|---:|---:|---:|")
        for number, (name, words) in enumerate(FILTERS.items(), start=arguments.num_videos):
            slowest = max(slowest, measure(catalog, name, words, number))
    with tempfile.TemporaryDirectory() as folder, Catalog.create(Path(folder) / "long", facts) as catalog:
        fill(catalog, iter(range(120)), lambda number: LONG_METADATA)
        catalog.check_records()
        catalog.filter_limit_seconds = LIMIT_SECONDS

        def ask_hard() -> None:
            try:
                catalog.matching(parse_filter(COSTLY_FILTER))
            except QueryTimeoutError as error:
                print(f"120 videos with the longest metadata: {error}", end=" ")

        ended, _ = seconds_of(ask_hard)
        print(f"(ended after {ended:.2f} s)")
    promised = LONGEST_SECONDS * max(1.0, arguments.num_videos / 100_000)
    print(f"slowest filter: {slowest:.2f} s")
    sys.exit(1 if slowest > promised or ended > LIMIT_SECONDS + GRACE_SECONDS else 0)


if __name__ == "__main__":
    main()
