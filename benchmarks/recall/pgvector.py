"""The nearest 200 of drawn vectors by pgvector's HNSW, beside our coarse indexes.

    python -m benchmarks.recall.pgvector --size 100000

pgvector comes in an environment of its own, with a PostgreSQL of its own (`benchmarks.alternatives`), and
builds its graphs for minutes. Ours search on one thread, in memory, and compute exact products of what they
find; pgvector's times have a round trip to the server in them. Recall is of the exact 200, for texts, whose
vectors lie apart from the videos'.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.alternatives.__main__ import PGVECTOR
from benchmarks.alternatives.environments import UnavailableError, Worker
from benchmarks.recall.coarse import DIMENSION, NUM_QUERIES, NUM_WANTED, Drawn, draw
from benchmarks.report import Report, Table, arguments
from indexer.coarse.approximate import (
    ApproximateSearch,
    SelectedPerList,
    empty_approximate_index,
    num_training_vectors,
)
from indexer.coarse.exact import CoarseKind, SegmentSet, Selection, empty_exact_index, search_exact

BEAMS: Final = (200, 400, 1000)
"""`hnsw.ef_search`: at least as many as are wanted, and at most what pgvector takes."""

LEAST_RECALL: Final = 0.99

Answers = list[NDArray[np.int64]]


def ours(drawn: Drawn, kind: CoarseKind) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.int64]], float]:
    """A search of one query [1, D], and the seconds that the index took to build."""
    rows, started = SegmentSet(drawn.every_id), time.perf_counter()
    whole = Selection.of(rows)
    if kind == "exact":
        flat: Any = empty_exact_index(DIMENSION)
        flat.add_with_ids(drawn.vectors, drawn.every_id)
        seconds = time.perf_counter() - started
        return lambda query: search_exact(flat, query, NUM_WANTED, whole)[1][0], seconds
    size = num_training_vectors(kind, len(drawn.vectors))
    sample = drawn.vectors[np.random.default_rng(0).choice(len(drawn.vectors), size, replace=False)]
    index: Any = empty_approximate_index(kind, sample, len(drawn.vectors))
    index.add_with_ids(drawn.vectors, drawn.every_id)
    seconds = time.perf_counter() - started

    def fetch(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return ids, drawn.vectors[ids - 1]

    approximate = ApproximateSearch(kind, index, rows.ids, fetch, SelectedPerList(index))
    return lambda query: approximate.search(query, NUM_WANTED, whole)[1][0], seconds


def add(table: Table, name: str, built: float, seconds: list[float], found: Answers, drawn: Drawn) -> float:
    """Add a row; returns recall."""
    shares = [np.isin(best, some) for best, some in zip(drawn.best, found, strict=True)]
    recall = float(np.mean(shares))
    table.add(name, built, 1e3 * statistics.median(seconds), recall)
    return recall


def compare(report: Report, num_vectors: int, environments: Path) -> None:
    """Print the table."""
    drawn = draw(num_vectors)
    table = report.table(
        f"The nearest {NUM_WANTED} of {num_vectors:,} x {DIMENSION}",
        {"index": "", "built in, s": ",.1f", "a query, ms": ".2f", "recall": ".4f"},
    )
    all_threads = faiss.omp_get_max_threads()
    kinds: tuple[CoarseKind, ...] = ("exact", "ivf-sq", "hnsw")
    for kind in kinds:
        faiss.omp_set_num_threads(all_threads)
        search, built = ours(drawn, kind)
        faiss.omp_set_num_threads(1)
        seconds, found = [], []
        for query in drawn.queries[:, None]:
            started = time.perf_counter()
            found.append(search(query))
            seconds.append(time.perf_counter() - started)
        recall = add(table, f"ours, {kind}", built, seconds, found, drawn)
        if kind == "exact":
            report.check("the exact one finds the exact ones", recall > 1 - 1e-3, f"recall {recall:.4f}")
    best = 0.0
    for type_name in ("vector", "halfvec"):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            np.save(folder / "videos.npy", drawn.vectors)
            np.save(folder / "queries.npy", drawn.queries)
            beams = ",".join(map(str, BEAMS))
            try:
                python = PGVECTOR.python(environments)
                worker = Worker(python, "pgvector_hnsw", folder, folder / "postgres", type_name, beams)
            except UnavailableError as error:
                report.note(f"pgvector was left out: {error}")
                return
            with worker:
                said = worker.ready
                report.note(
                    f"pgvector {said['pgvector']}, {type_name}: {said['index_bytes'] / 2**20:,.0f} MiB"
                )
                for position, beam in enumerate(BEAMS):
                    numbers = range(position * NUM_QUERIES, (position + 1) * NUM_QUERIES)
                    worker.ask(numbers[0])  # Warm.
                    answers = [worker.ask(number) for number in numbers]
                    found = [np.array(answer["answer"], np.int64) + 1 for answer in answers]
                    seconds = [answer["seconds"] for answer in answers]
                    name = f"pgvector HNSW, {type_name}, ef_search {beam}"
                    best = max(best, add(table, name, said["build_seconds"], seconds, found, drawn))
    report.target("best recall of pgvector", best, at_least=LEAST_RECALL)


def main() -> None:
    """Compare."""
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, help="vectors; 100,000, or 10,000 with --short")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path(tempfile.gettempdir()) / "xclip-alternatives",
        help="where pgvector's environment is made, and kept",
    )
    choices = parser.parse_args()
    with Report("recall.pgvector", choices) as report:
        compare(report, choices.size or (10_000 if report.short else 100_000), choices.environments)


if __name__ == "__main__":
    main()
