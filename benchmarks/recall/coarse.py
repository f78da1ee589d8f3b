"""What an inverted file of compressed vectors misses, and where it pays to spend: lists, margin, training.

    python -m benchmarks.recall.coarse --sizes 10000,100000,1000000

Vectors are drawn (benchmarks/synthetic_index.py), 2 GB in float32 at a million. Three losses are told apart:
a segment may lie in a list that is not visited, be pushed out of the first by compressed products, or be
overlooked where a filter has to do with what is looked for. Times are of one query.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report, arguments, interleaved
from benchmarks.synthetic_index import BLOCK, World, unit
from indexer.coarse.approximate import (
    ApproximateSearch,
    SelectedPerList,
    empty_approximate_index,
    num_probed,
    num_training_vectors,
)
from indexer.coarse.exact import SegmentSet, Selection

_faiss: Any = faiss  # Its stubs do not know all of it.

DIMENSION, NUM_FRAMES, NUM_QUERIES, NUM_WANTED = 512, 12, 100, 200
PROBED = (0.5, 0.75, 1.0, 1.5)
"""Times the number of lists that a search visits."""

MARGINS = (0, 16, 32, 57, 114)
"""Vectors more than wanted whose exact products are computed; 57 are what a search for 200 takes."""


CODES, FIRST = ("SQ8", "SQ4", "RaBitQ", "PQ128x4fs"), (257, 1000, 4000)


@dataclass(frozen=True, eq=False)
class Drawn:
    """vectors: float32 [N, D], of segments 1 to N. clusters: int64 [N], that they are drawn from. queries:
    float32 [Q, D]. best: int64 [Q, NUM_WANTED], the ids with the highest products."""

    vectors: NDArray[np.float32]
    clusters: NDArray[np.int64]
    queries: NDArray[np.float32]
    best: NDArray[np.int64]

    @functools.cached_property
    def every_id(self) -> NDArray[np.int64]:
        """1 to N."""
        return np.arange(1, len(self.vectors) + 1)


def draw(num_vectors: int) -> Drawn:
    """Pooled frames of drawn videos, as an index of them would have them."""
    world = World.of(DIMENSION, 0)
    vectors = np.empty((num_vectors, DIMENSION), np.float32)
    clusters = np.empty(num_vectors, np.int64)
    queries = np.empty((0, DIMENSION), np.float32)
    for row in range(0, num_vectors, BLOCK):
        random, again = np.random.default_rng((0, row)), np.random.default_rng((0, row))
        videos = world.videos(random, BLOCK)
        again.standard_normal(videos.shape, dtype=np.float32)  # What `videos` draws before the clusters.
        numbers = again.integers(len(world.centres), size=BLOCK)
        if row == 0:
            queries = world.texts(np.random.default_rng(99), videos[:NUM_QUERIES])
        size = min(BLOCK, num_vectors - row)
        vectors[row : row + size] = unit(world.frames(random, videos, NUM_FRAMES).mean(axis=1))[:size]
        clusters[row : row + size] = numbers[:size]
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(vectors)
    return Drawn(vectors, clusters, queries, flat.search(queries, NUM_WANTED)[1] + 1)


def trained(drawn: Drawn, **clustering: Any) -> tuple[Any, float]:
    """An empty index as the engine trains one, and seconds of a processor that it took.

    clustering: other parameters of its k-means.
    """
    num_vectors = len(drawn.vectors)
    size = num_training_vectors("ivf-sq", num_vectors)
    sample = drawn.vectors[np.random.default_rng(0).choice(num_vectors, size, replace=False)]
    started = time.process_time()
    if not clustering:
        return empty_approximate_index("ivf-sq", sample, num_vectors), time.process_time() - started
    index = empty_approximate_index("ivf-sq", sample, num_vectors)
    for name, value in clustering.items():
        setattr(index.cp, name, value)
    index.is_trained = False
    index.quantizer.reset()
    started = time.process_time()
    index.train(sample)
    return index, time.process_time() - started


def share_in_lists(index: Any, drawn: Drawn, visited: int) -> float:
    """Of the best, those that lie in the nearest `visited` lists."""
    own = index.quantizer.search(drawn.vectors[drawn.best.ravel() - 1], 1)[1].reshape(drawn.best.shape)
    lists = index.quantizer.search(drawn.queries, visited)[1]
    return float(np.mean([np.isin(o, some) for o, some in zip(own, lists, strict=True)]))


def print_lists(report: Report, drawn: Drawn) -> Any:
    """Recall by visited lists and by the length of training. Returns the engine's index, filled."""
    size = f"{len(drawn.vectors):,}"
    table = report.table(
        f"{size} vectors: of the best {NUM_WANTED}, those in the lists that are visited",
        {"k-means": "", "processor s": ".1f", "lists": ",", "visited": ",", "share": ".4f"},
    )
    for name, clustering in (("10 iterations", {}), ("25 iterations", {"niter": 25})):
        index, seconds = trained(drawn, **clustering)
        for factor in PROBED:
            visited = min(index.nlist, math.ceil(factor * num_probed(index.nlist)))
            table.add(name, seconds, index.nlist, visited, share_in_lists(index, drawn, visited))
    index, _ = trained(drawn)
    started = time.process_time()
    index.add_with_ids(drawn.vectors, drawn.every_id)
    report.note(f"filled in {time.process_time() - started:.1f} s of a processor")
    return index


def print_margins(report: Report, drawn: Drawn, index: Any) -> None:
    """What is lost to compressed products, with all lists visited."""
    table = report.table(
        f"{len(drawn.vectors):,} vectors: of the best {NUM_WANTED}, those among the first by 8-bit scalars",
        {"first": ",", "share": ".4f"},
    )
    parameters = _faiss.SearchParametersIVF(nprobe=index.nlist)
    for margin in MARGINS:
        found = index.search(drawn.queries, NUM_WANTED + margin, params=parameters)[1]
        shares = [np.isin(best, some) for best, some in zip(drawn.best, found, strict=True)]
        table.add(NUM_WANTED + margin, float(np.mean(shares)))


def print_codes(report: Report, drawn: Drawn, index: Any) -> None:
    """Shorter codes in the same lists, whose errors have to be made up for by more exact products."""
    table = report.table(
        f"{len(drawn.vectors):,} vectors: of the best {NUM_WANTED}, those among the first by other codes",
        {"code": "", "bytes": ",", "first": ",", "ms": ".2f", "share": ".4f"},
    )
    centroids = index.quantizer.reconstruct_n(0, index.nlist)
    parameters = _faiss.SearchParametersIVF(nprobe=num_probed(index.nlist))
    for code in CODES:
        other = _faiss.index_factory(DIMENSION, f"IVF{index.nlist},{code}", faiss.METRIC_INNER_PRODUCT)
        other.quantizer.add(centroids)  # As many as lists: they are not learnt again.
        other.train(drawn.vectors[:65_536])
        other.add_with_ids(drawn.vectors, drawn.every_id)
        for num_first in FIRST:
            found, seconds = [], []
            for query in drawn.queries[:, None]:
                started = time.perf_counter()
                found.append(other.search(query, num_first, params=parameters)[1])
                seconds.append(time.perf_counter() - started)
            share = float(np.mean([np.isin(b, f) for b, f in zip(drawn.best, found, strict=True)]))
            table.add(code, other.code_size, num_first, 1e3 * statistics.median(seconds), share)


def filters(drawn: Drawn) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Which vectors a filter lets through: any, those of some clusters, and what is on one side of a plane,
    which for many queries is the far side."""
    num_vectors = len(drawn.vectors)
    random = np.random.default_rng(5)
    normal = random.standard_normal(DIMENSION).astype(np.float32) * World.of(DIMENSION, 0).spectrum
    heights = drawn.vectors @ normal
    for name, share in (("half", 0.5), ("10 %", 0.1), ("1 %", 0.01)):
        yield f"{name} of the vectors", random.random(num_vectors) < share
        yield f"{name} of the clusters", drawn.clusters < share * (drawn.clusters.max() + 1)
        yield f"{name} beyond a plane", heights > np.quantile(heights, 1 - share)


def print_searches(report: Report, drawn: Drawn, index: Any) -> None:
    """Whole coarse searches, exact products included, with and without filters: time and recall."""
    rows = SegmentSet(drawn.every_id)

    def fetch(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return ids, drawn.vectors[ids - 1]

    per_list = SelectedPerList(index)
    approximate = ApproximateSearch("ivf-sq", index, rows.ids, fetch, per_list)
    whole = Selection.of(rows)
    chosen = {"none": (whole, drawn.best)}
    for name, is_selected in filters(drawn):
        allowed = SegmentSet(drawn.every_id[is_selected])
        flat = faiss.IndexFlatIP(DIMENSION)
        flat.add(drawn.vectors[is_selected])
        best = allowed.ids[flat.search(drawn.queries, min(NUM_WANTED, len(allowed)))[1]]
        chosen[name] = whole.among(rows, allowed), best
    recalls = {}
    for name, (selection, best) in chosen.items():
        found = approximate.search(drawn.queries, best.shape[1], selection)[1]
        recalls[name] = float(np.mean([np.isin(b, f) for b, f in zip(best, found, strict=True)]))
    numbers = itertools.cycle(range(NUM_QUERIES))
    counts = {"one thread": 1, "all threads": faiss.omp_get_max_threads()}

    def ask(selection: Selection, count: int, num_threads: int) -> None:
        faiss.omp_set_num_threads(num_threads)
        approximate.search(drawn.queries[[next(numbers)]], count, selection)

    asked = {
        f"{name}, {threads}": functools.partial(ask, one, best.shape[1], num_threads)
        for name, (one, best) in chosen.items()
        for threads, num_threads in counts.items()
    }
    timings = interleaved(asked, rounds=30)
    faiss.omp_set_num_threads(counts["all threads"])
    table = report.table(
        f"{len(drawn.vectors):,} vectors: ms of a search for {NUM_WANTED}, vectors at hand in memory",
        {"filter": "", **dict.fromkeys(counts, ".2f"), "to none": ".2f", "recall": ".4f"},
    )
    for name, recall in recalls.items():
        one, several = (timings[f"{name}, {threads}"] for threads in counts)
        table.add(name, one.spread(), several.spread(), one.ratio_to(timings["none, one thread"]), recall)
    report.target(f"recall of {NUM_WANTED}, {len(drawn.vectors):,} vectors", recalls["none"], at_least=0.99)
    milliseconds = 1e3 * timings["none, one thread"].median
    report.target(f"ms on one thread, {len(drawn.vectors):,} vectors", milliseconds, at_most=6.0)


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", default="10000,100000", help="Numbers of vectors.")
    parser.add_argument("--codes", action="store_true", help="Also other codes, which takes minutes more.")
    choices = parser.parse_args()
    sizes = [20_000] if choices.short else [int(size) for size in choices.sizes.split(",")]
    with Report("recall.coarse", choices) as report:
        for size in sizes:
            drawn = draw(size)
            index = print_lists(report, drawn)
            print_margins(report, drawn, index)
            if choices.codes:
                print_codes(report, drawn, index)
            print_searches(report, drawn, index)


if __name__ == "__main__":
    main()
