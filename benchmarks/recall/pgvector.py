"""The nearest 200 of drawn vectors by pgvector's HNSW, beside our coarse indexes.

    python -m benchmarks.recall.pgvector --size 100000

pgvector comes in an environment of its own, with a PostgreSQL of its own (`benchmarks.alternatives`), and
builds its graphs for minutes. Ours search on one thread, in memory, and compute exact products of what they
find; pgvector's times have a round trip to the server in them. Recall is of the exact 200, for texts, whose
vectors lie apart from the videos'.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.alternatives.__main__ import PGVECTOR
from benchmarks.alternatives.environments import UnavailableError, Worker
from benchmarks.recall.coarse import DIMENSION, NUM_QUERIES, NUM_WANTED, Drawn, draw
from benchmarks.report import Report, Timing, arguments
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

Ask = Callable[[int], tuple[NDArray[np.int64], float]]
"""The ids that answer the n-th query, and seconds."""


@dataclass(frozen=True)
class Contender:
    """Who answers. built_seconds: of its index."""

    name: str
    built_seconds: float
    ask: Ask


def ours(drawn: Drawn, kind: CoarseKind) -> Contender:
    """One of our coarse indexes."""
    rows, started = SegmentSet(drawn.every_id), time.perf_counter()
    whole = Selection.of(rows)
    if kind == "exact":
        index: Any = empty_exact_index(DIMENSION)
    else:
        size = num_training_vectors(kind, len(drawn.vectors))
        sample = drawn.vectors[np.random.default_rng(0).choice(len(drawn.vectors), size, replace=False)]
        index = empty_approximate_index(kind, sample, len(drawn.vectors))
    index.add_with_ids(drawn.vectors, drawn.every_id)
    built_seconds = time.perf_counter() - started

    def fetch(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return ids, drawn.vectors[ids - 1]

    if kind == "exact":
        search = partial(search_exact, index)
    else:
        search = ApproximateSearch(kind, index, rows.ids, fetch, SelectedPerList(index)).search

    def ask(number: int) -> tuple[NDArray[np.int64], float]:
        started = time.perf_counter()
        found = search(drawn.queries[[number]], NUM_WANTED, whole)[1][0]
        return found, time.perf_counter() - started

    return Contender(f"ours, {kind}", built_seconds, ask)


def theirs(drawn: Drawn, type_name: str, environments: Path, stack: ExitStack) -> list[Contender]:
    """pgvector's graph of vectors of this type, asked with each of BEAMS. Raises UnavailableError."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    np.save(folder / "videos.npy", drawn.vectors)
    np.save(folder / "queries.npy", drawn.queries)
    python, beams = PGVECTOR.python(environments), ",".join(map(str, BEAMS))
    worker = Worker(python, "pgvector_hnsw", folder, folder / "postgres", type_name, beams)
    stack.enter_context(worker)
    said = worker.ready

    def ask(first: int, number: int) -> tuple[NDArray[np.int64], float]:
        answer = worker.ask(first + number)
        return np.array(answer["answer"], np.int64) + 1, answer["seconds"]

    size_mib = said["index_bytes"] / 2**20
    name = f"pgvector {said['pgvector']} HNSW, {type_name}, {size_mib:,.0f} MiB, ef_search"
    return [
        Contender(f"{name} {beam}", said["build_seconds"], partial(ask, position * NUM_QUERIES))
        for position, beam in enumerate(BEAMS)
    ]


def compare(report: Report, num_vectors: int, environments: Path) -> None:
    """Print the table."""
    drawn = draw(num_vectors)
    kinds: tuple[CoarseKind, ...] = ("exact", "ivf-sq", "hnsw")
    with ExitStack() as stack:
        contenders = [ours(drawn, kind) for kind in kinds]
        try:
            for type_name in ("vector", "halfvec"):
                contenders += theirs(drawn, type_name, environments, stack)
        except UnavailableError as error:
            report.note(f"pgvector was left out: {error}")
        faiss.omp_set_num_threads(1)
        found: list[list[NDArray[np.int64]]] = [[] for _ in contenders]
        seconds: list[list[float]] = [[] for _ in contenders]
        for number in (0, *range(NUM_QUERIES)):  # The first once before.
            for ids, taken, contender in zip(found, seconds, contenders, strict=True):
                answer, one = contender.ask(number)
                ids.append(answer)
                taken.append(one)
    table = report.table(
        f"The nearest {NUM_WANTED} of {num_vectors:,} x {DIMENSION}, asked in turns",
        {"index": "", "built in, s": ",.1f", "a query, ms": ".2f", "to ours, ivf-sq": ".1f", "recall": ".4f"},
    )
    timings = [Timing(tuple(taken[1:])) for taken in seconds]
    recalls = []
    for ids, timing, contender in zip(found, timings, contenders, strict=True):
        shares = [np.isin(best, some) for best, some in zip(drawn.best, ids[1:], strict=True)]
        recalls.append(float(np.mean(shares)))
        ratio = timing.ratio_to(timings[kinds.index("ivf-sq")])
        table.add(contender.name, contender.built_seconds, timing.spread(), ratio, recalls[-1])
    report.check("the exact one finds the exact ones", recalls[0] > 0.999, f"recall {recalls[0]:.4f}")
    report.target("recall of ours, the least", min(recalls[: len(kinds)]), at_least=LEAST_RECALL)
    if len(contenders) > len(kinds):
        report.target("recall of pgvector, the best", max(recalls[len(kinds) :]), at_least=LEAST_RECALL)


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
