"""How an index grows: disk, start-up, memory, coarse latency and recall by kind, filtered and whole searches.

    python benchmarks/scaling.py --sizes 10000,100000 --folder /tmp/scaling

Indexes are drawn (benchmarks/synthetic_index.py) and kept in the folder, so that a second run measures only.
Each measurement of start-up and memory is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from synthetic_index import World, draw_segments, make_index

from indexer.catalog import Catalog
from indexer.coarse_index import CoarseIndex
from indexer.searcher import Searcher, SearchQuery
from model import XClip

MODEL = "openclip:ViT-B-32-quickgelu/random?seed=0"
KINDS = ("exact", "ivf-sq", "ivf-pq", "hnsw")
NUM_QUERIES, NUM_CANDIDATES = 100, 200
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "half of the videos": {"metadata.even": True},
    "1 % of the videos": {"metadata.shelf": 7},
}

START_UP = """
import json, resource, sys, time
from indexer.searcher import Searcher, SearchQuery
from model import XClip
model = XClip.load(sys.argv[2], "cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
searcher = Searcher(sys.argv[1], model)
opened = time.perf_counter() - started
searcher.search(SearchQuery("a dog runs"))
first = time.perf_counter() - started
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"opened_seconds": opened, "first_answer_seconds": first,
    "memory_mib": (after - before) / 1024, "kind": searcher.stats()["coarse_kind"]}))
searcher.close()
"""


def texts(num_videos: int, catalog: Catalog) -> NDArray[np.float32]:
    """Queries like texts of videos of the first block, float32 [NUM_QUERIES, D]."""
    world = World.of(num_videos, catalog.embedding_dim, 0)
    videos, _ = next(draw_segments(num_videos, 1, catalog.embedding_dim, 0))
    return world.texts(np.random.default_rng(99), videos[:NUM_QUERIES])


def median_milliseconds(function: Callable[[int], object], count: int) -> float:
    """Of `count` calls with 0, 1, ..."""
    seconds = []
    for number in range(count):
        started = time.perf_counter()
        function(number)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def measure_start_up(index: Path) -> dict[str, Any]:
    """A fresh process: seconds until the index is open and until the first answer, and the memory taken."""
    command = [sys.executable, "-c", START_UP, str(index), MODEL]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(answer.stdout))


def measure_kinds(index: Path, num_videos: int, kinds: tuple[str, ...]) -> None:
    """Print a row for each kind: build, size, latency, recall against exact, with each filter."""
    with Catalog.open(index) as catalog:
        queries = texts(num_videos, catalog)
        exact = CoarseIndex.build(catalog, kind="exact")
        for kind in kinds:
            started = time.perf_counter()
            coarse = exact if kind == "exact" else CoarseIndex.build(catalog, kind=kind)  # type: ignore[arg-type]
            build_seconds = time.perf_counter() - started
            for name, fields in FILTERS.items():
                allowed = None
                if fields:
                    ((key, value),) = fields.items()
                    numbers = np.arange(num_videos)
                    inside = numbers % 2 == 0 if key == "metadata.even" else numbers % 100 == value
                    allowed = np.flatnonzero(inside) + 1
                right = exact.search(queries, NUM_CANDIDATES, allowed)[1]
                found = coarse.search(queries, NUM_CANDIDATES, allowed)[1]
                recall = np.mean([np.isin(r, f).mean() for r, f in zip(right, found, strict=True)])
                latency = median_milliseconds(
                    lambda n, c=coarse, a=allowed: c.search(queries[n : n + 1], NUM_CANDIDATES, a), 50
                )
                row = f"| {num_videos:,} | {kind} | {build_seconds:.1f} | {name}"
                print(f"{row} | {latency:.2f} | {recall:.4f} |")


def measure_searches(index: Path, model: XClip, num_videos: int) -> None:
    """Print whole searches, without HTTP."""
    with Searcher(index, model) as searcher:
        for name, fields in FILTERS.items():
            query = SearchQuery("a dog runs on the beach", filter=fields or None)
            searcher.search(query)
            latency = median_milliseconds(lambda n, q=query: searcher.search(q), 50)
            timings = searcher.search(query).timings
            print(
                f"| {num_videos:,} | {searcher.stats()['coarse_kind']} | {name} | {latency:.1f}"
                f" | {1e3 * timings.encode_seconds:.1f} | {1e3 * timings.coarse_seconds:.1f}"
                f" | {1e3 * timings.rerank_seconds:.1f} |"
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10000")
    parser.add_argument("--folder", type=Path, help="Where indexes are kept; by default for this run only.")
    parser.add_argument("--kinds", default=",".join(KINDS))
    choices = parser.parse_args()
    sizes = [int(size) for size in choices.sizes.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        measure(choices.folder or Path(temporary), sizes, tuple(choices.kinds.split(",")))


def measure(folder: Path, sizes: list[int], kinds: tuple[str, ...]) -> None:
    """Print all tables."""
    model = XClip.load(MODEL, "cpu")
    print("| videos | written in s | bytes each | open after s | first answer after s | memory MiB | kind |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for size in sizes:
        index = folder / str(size)
        seconds = "before"
        if not index.exists():
            seconds = f"{make_index(index, model, MODEL, size):.0f}"
            with Catalog.open(index) as catalog:
                CoarseIndex.build(catalog).save()
        size_bytes = sum(path.stat().st_size for path in index.iterdir())
        start = measure_start_up(index)
        print(
            f"| {size:,} | {seconds} | {size_bytes / size:,.0f} | {start['opened_seconds']:.2f}"
            f" | {start['first_answer_seconds']:.2f} | {start['memory_mib']:,.0f} | {start['kind']} |"
        )
    print("\n| videos | kind | built in s | filter | one query ms | recall of the exact 200 |")
    print("| ---: | --- | ---: | --- | ---: | ---: |")
    for size in sizes:
        measure_kinds(folder / str(size), size, kinds)
    print("\n| videos | kind | filter | whole search ms | encode | coarse | rerank |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for size in sizes:
        measure_searches(folder / str(size), model, size)


if __name__ == "__main__":
    main()
