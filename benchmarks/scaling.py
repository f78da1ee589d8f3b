"""How an index grows: disk, start-up, memory, kinds of the coarse index, filtered and whole searches.

    python -m benchmarks.scaling --sizes 10000,100000 --folder /tmp/scaling

Indexes are drawn (benchmarks/synthetic_index.py) and kept in the folder, so that a second run measures only,
or resumes where the first was interrupted. What is measured alone has a process of its own; what is compared
takes turns. Memory is what /proc/self/status says of that process (Linux): more resident than before opening,
and the highest meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import forget_peak, in_process, resident_mib
from benchmarks.synthetic_index import World, draw_segments, make_index
from indexer.coarse.exact import KindChoice, SegmentSet
from indexer.coarse.index import CoarseIndex
from indexer.features import Precision
from indexer.search.searcher import Searcher, SearchQuery
from indexer.store.store import open_store
from model import TextFeatures, XClip

MODEL = "openclip:ViT-B-32-quickgelu/random?seed=0"
KINDS: tuple[KindChoice, ...] = ("exact", "ivf-sq", "ivf-pq", "hnsw")
PARTS = ("size", "kinds", "searches", "exhaustive")
TEXT = "a dog runs on the beach"
NUM_QUERIES, NUM_CANDIDATES, NUM_ROUNDS = 100, 200, 60
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "half of the videos": {"metadata.even": True},
    "1 % of the videos": {"metadata.shelf": 7},
}
SOURCES: dict[str, bool | Precision] = {"rows": False, "float16": "float16", "int8": "int8"}
"""What `Searcher` is told of the feature file: to go without, or in which precision to keep frames."""


# Measuring


def milliseconds(function: Callable[[int], object], count: int) -> list[float]:
    """Of `count` calls with 0, 1, ..."""
    times = []
    for number in range(count):
        started = time.perf_counter()
        function(number)
        times.append(1e3 * (time.perf_counter() - started))
    return times


def wait_for_refresh() -> None:
    """Wait until what a first search starts in the background has ended."""
    for thread in threading.enumerate():
        if thread.name == "index-refresh":
            thread.join()


def row(*values: object) -> None:
    """Print a row of a table."""
    print("|", " | ".join(str(value) for value in values), "|", flush=True)


# Queries


@functools.cache
def texts(dimension: int) -> NDArray[np.float32]:
    """Queries like texts of videos of the first block, float32 [NUM_QUERIES, D]."""
    videos, _ = next(draw_segments(NUM_QUERIES, 1, dimension))
    return World.of(dimension, 0).texts(np.random.default_rng(99), videos)


@contextmanager
def drawn_texts(searcher: Searcher, sentences: NDArray[np.float32]) -> Iterator[None]:
    """Let the model encode as ever, and take for the n-th TEXT the n-th of these sentence features.

    Weights that were not learnt give all texts the same neighbours.
    """
    encoder, number = searcher.text_encoder, 0

    def encode(texts: list[str]) -> TextFeatures:
        nonlocal number
        features = searcher.model.encode_text(texts)
        if texts != [TEXT]:
            return features
        sentence = torch.from_numpy(sentences[number % len(sentences)][None]).to(features.sentence)
        number += 1
        return TextFeatures(sentence, features.words, features.word_mask, features.word_weights)

    encoder.encode = torch.inference_mode()(encode)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del encoder.encode


def allowed_segments(num_videos: int, fields: dict[str, Any]) -> SegmentSet | None:
    """Segments of the videos that match a filter of FILTERS."""
    numbers = np.arange(num_videos)
    if not fields:
        return None
    inside = numbers % 2 == 0 if "metadata.even" in fields else numbers % 100 == fields["metadata.shelf"]
    return SegmentSet(np.flatnonzero(inside) + 1)


# Parts: each prints a table


def print_sizes(folder: Path, sizes: list[int]) -> None:
    """Writing, disk, start-up and memory with a saved coarse index of the kind that `auto` takes."""
    row(
        "videos",
        "written in s",
        "catalog, bytes each",
        "coarse, bytes each",
        "kind",
        "open after s",
        "processor s",
    )
    row("---:", "---:", "---:", "---:", "---", "---:", "---:")
    later = []
    for size in sizes:
        index = folder / str(size)
        seconds = f"{make_index(index, MODEL, size):.0f}" if not index.exists() else "-"
        in_process(save_coarse, index, "auto")
        disk = [sum(path.stat().st_size for path in index.glob(name)) for name in ("catalog*", "coarse*")]
        start = in_process(start_up, index)
        row(
            f"{size:,}",
            seconds,
            *(f"{part / size:,.0f}" for part in disk),
            start["kind"],
            f"{start['opened']:.2f}",
            f"{start['opened_processor']:.2f}",
        )
        later.append((size, start))
    print()
    row("videos", "first answer after s", "memory opened MiB", "highest MiB", "after 60 searches MiB")
    row(*["---:"] * 5)
    for size, start in later:
        numbers = (f"{start[name]:,.0f}" for name in ("opened_mib", "highest_mib", "searched_mib"))
        row(f"{size:,}", f"{start['answered']:.2f}", *numbers)


def save_coarse(index: Path, kind: KindChoice) -> dict[str, float]:
    """Build, save; seconds and the highest memory."""
    with open_store(index) as catalog:
        before = resident_mib()
        forget_peak()
        started = time.perf_counter()
        coarse = CoarseIndex.build(catalog, kind=kind)
        built = time.perf_counter() - started
        highest = resident_mib("VmHWM") - before
        coarse.save()
        return {"built": built, "saved": time.perf_counter() - started - built, "highest_mib": highest}


def start_up(index: Path) -> dict[str, Any]:
    """Open and search, without HTTP: seconds and memory."""
    model = XClip.load(MODEL, "cpu")
    model.encode_text(["what torch does once"])
    before = resident_mib()
    forget_peak()
    started, processor_started = time.perf_counter(), time.process_time()
    with Searcher(index, model) as searcher:
        found: dict[str, Any] = {
            "opened": time.perf_counter() - started,
            "opened_processor": time.process_time() - processor_started,
            "opened_mib": resident_mib() - before,
        }
        with drawn_texts(searcher, texts(model.config.embedding_dim)):
            searcher.search(SearchQuery(TEXT))
            found["answered"] = time.perf_counter() - started
            for _ in range(NUM_ROUNDS - 1):
                searcher.search(SearchQuery(TEXT))
        found["searched_mib"] = resident_mib() - before
        found["highest_mib"] = resident_mib("VmHWM") - before
        found["kind"] = searcher.stats()["coarse_kind"]
    return found


def print_kinds(folder: Path, sizes: list[int], kinds: Iterable[KindChoice]) -> None:
    """For each kind: build, file, start-up, memory, and with each filter latency and recall."""
    row("videos", "kind", "built in s", "highest MiB", "file MiB", "loaded in s", "memory MiB", *FILTERS)
    row("---:", "---", *["---:"] * (5 + len(FILTERS)))
    for size in sizes:
        index = folder / str(size)
        right = in_process(ask_coarse, index, size, "exact", None)["ids"]
        for kind in kinds:
            made = in_process(save_coarse, index, kind)
            file_mib = sum(path.stat().st_size for path in index.glob("coarse-*.faiss")) / 2**20
            found = in_process(ask_coarse, index, size, kind, right)
            cells = (f"{made['built']:.1f}", f"{made['highest_mib']:,.0f}", f"{file_mib:,.0f}")
            loaded = (f"{found['opened']:.2f}", f"{found['opened_mib']:,.0f}")
            answers = (f"{ms:.2f} ms, {recall:.4f}" for ms, recall in found["answers"])
            row(f"{size:,}", kind, *cells, *loaded, *answers)
        in_process(save_coarse, index, "auto")


def ask_coarse(
    index: Path, num_videos: int, kind: KindChoice, right: list[NDArray[np.int64]] | None
) -> dict[str, Any]:
    """Open a saved coarse index and ask it with each filter; recall against `right`, where that is given."""
    with open_store(index) as catalog:
        before = resident_mib()
        started = time.perf_counter()
        coarse = CoarseIndex.open(catalog, kind=kind)
        found: dict[str, Any] = {
            "opened": time.perf_counter() - started,
            "opened_mib": resident_mib() - before,
        }
        queries = texts(catalog.embedding_dim)
        found["ids"], found["answers"] = [], []
        for position, fields in enumerate(FILTERS.values()):
            allowed = allowed_segments(num_videos, fields)
            ids = coarse.search(queries, NUM_CANDIDATES, allowed)[1]
            found["ids"].append(ids)
            if right is not None:
                recall = np.mean([np.isin(r, f).mean() for r, f in zip(right[position], ids, strict=True)])

                def ask(number: int, allowed: SegmentSet | None = allowed) -> object:
                    return coarse.search(queries[number : number + 1], NUM_CANDIDATES, allowed)

                found["answers"].append((statistics.median(milliseconds(ask, 50)), recall))
    return found


def print_searches(folder: Path, sizes: list[int], sources: list[str]) -> None:
    """Whole searches without HTTP, sizes interleaved: without a filter and with, for some of SOURCES."""
    model = XClip.load(MODEL, "cpu")
    model.prepare("scores")  # As a server does.
    names = ("encode", "coarse", "rerank")
    row("features from", "filter", "videos", "median ms", "95 % ms", "to the smallest", *names, "page")
    row("---", "---", *["---:"] * 8)
    for source in sources:
        feature_file = SOURCES[source]
        with ExitStack() as stack:
            searchers = {
                size: stack.enter_context(Searcher(folder / str(size), model, feature_file=feature_file))
                for size in sizes
            }
            for filter_name, fields in FILTERS.items():
                taken: dict[int, list[tuple[float, ...]]] = {size: [] for size in sizes}
                for number in range(NUM_ROUNDS + 5):
                    for size, searcher in searchers.items():
                        query = SearchQuery(TEXT, filter=fields or None)
                        sentence = texts(model.config.embedding_dim)[number % NUM_QUERIES]
                        with drawn_texts(searcher, sentence[None]):
                            timings = searcher.search(query).timings
                        parts = [getattr(timings, f"{name}_seconds") for name in names]
                        total = timings.total_seconds
                        if number < 5:
                            wait_for_refresh()
                        else:
                            taken[size].append((total, *parts, total - sum(parts)))
                medians = {size: 1e3 * np.median(taken[size], axis=0) for size in sizes}
                for size in sizes:
                    highest = 1e3 * statistics.quantiles([one[0] for one in taken[size]], n=20)[-1]
                    row(
                        *(source, filter_name, f"{size:,}", f"{medians[size][0]:.1f}", f"{highest:.1f}"),
                        f"{medians[size][0] / medians[sizes[0]][0]:.2f}",
                        *(f"{value:.1f}" for value in medians[size][1:]),
                    )


def print_exhaustive(folder: Path, sizes: list[int], sources: list[str]) -> None:
    """The full score on everything, up to 100,000: median of 5, after one more."""
    model = XClip.load(MODEL, "cpu")
    model.prepare("scores")
    row("videos", "features from", "exhaustive search s")
    row("---:", "---", "---:")
    for size in (size for size in sizes if size <= 100_000):
        for name in sources:
            with Searcher(folder / str(size), model, feature_file=SOURCES[name]) as searcher:
                query = SearchQuery(TEXT, mode="exhaustive")
                searcher.search(query)
                wait_for_refresh()
                asked = functools.partial(_ask, searcher, query)
                seconds = statistics.median(milliseconds(asked, 5)) / 1e3
            row(f"{size:,}", name, f"{seconds:.2f}")


def _ask(searcher: Searcher, query: SearchQuery, _: int) -> object:
    return searcher.search(query)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10000")
    parser.add_argument("--folder", type=Path, help="Where indexes are kept; by default for this run only.")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--sources", default=",".join(SOURCES), help="Of features, for searches.")
    parser.add_argument("--parts", default=",".join(PARTS), help="Tables to print.")
    choices = parser.parse_args()
    sizes = [int(size) for size in choices.sizes.split(",")]
    sources: list[str] = choices.sources.split(",")
    kinds: tuple[Any, ...] = tuple(choices.kinds.split(","))
    print(f"{os.cpu_count()} processors, {torch.get_num_threads()} threads, {MODEL}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = choices.folder or Path(temporary)
        for size in sizes:
            if not (folder / str(size)).exists() and "size" not in choices.parts:
                parser.error(f"there is no index of {size} videos yet: the part `size` makes it")
        tables = {
            "size": functools.partial(print_sizes, folder, sizes),
            "kinds": functools.partial(print_kinds, folder, sizes, kinds),
            "searches": functools.partial(print_searches, folder, sizes, sources),
            "exhaustive": functools.partial(print_exhaustive, folder, sizes, sources),
        }
        for part in choices.parts.split(","):
            print()
            tables[part]()


if __name__ == "__main__":
    main()
