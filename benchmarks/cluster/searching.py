"""Whole searches of one index in a directory and in PostgreSQL, side by side; and the start over a large one.

    python -m benchmarks.cluster.searching
    python -m benchmarks.cluster.searching --start-videos 1000000

Videos of 12 frames x 512 are drawn (`benchmarks.synthetic_index`); the model has the size of ViT-B/32. The
database runs on this machine: a network's round trips come on top, five or fewer a search. A start is that of
a process which finds the coarse index saved on its machine: of a searcher, and of the HTTP server from its
command to the first answer. It is over videos of a tiny model, 8 frames x 32, of which a million take 3 GB:
with 512 dimensions the saved file to be read is 16 times as large, as it is for an index in a directory.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.cluster.places import database
from benchmarks.machine import REPOSITORY
from benchmarks.report import PAUSE_SECONDS, Report, Timing, arguments, interleaved
from benchmarks.serving.http_load import serving
from benchmarks.synthetic_index import make_index
from indexer.index import Index
from indexer.maintenance.exporting import export_index
from indexer.maintenance.importing import import_index
from indexer.search.searcher import Searcher
from indexer.search.types import SearchQuery
from model import XClip, XClipConfig

MODEL = "openclip:ViT-B-32-quickgelu/random?seed=0"
WORDS = ["dog", "red", "beach", "runs", "people", "car", "night", "cooks", "jumps", "sea", "snow", "horse"]
CASES: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("rerank", {}, False),
    ("rerank, text encoded before", {}, True),
    ("the same, half of the videos", {"filter": {"metadata.even": True}}, True),
    ("coarse, text encoded before", {"mode": "coarse"}, True),
)
"""Name, fields of the query, and whether its text is encoded before."""

MAX_MORE_FROM_DATABASE, MAX_TIMES_FROM_DATABASE, MAX_MORE_AT_HAND = 0.012, 1.4, 0.004
MAX_START_SECONDS = 5.0


def texts() -> Iterator[str]:
    """Another one each time."""
    return (f"{number} {' '.join(some)}" for number, some in enumerate(itertools.permutations(WORDS, 3)))


def compare(report: Report, num_videos: int) -> None:
    """The table of searches."""
    ways = {
        "directory": ("index", True),
        "PostgreSQL, feature file": ("address", True),
        "PostgreSQL, no file": ("address", False),
        "directory, no file": ("index", False),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(database())
        places: dict[str, str | Path] = {"index": folder / "index", "address": server.address()}
        make_index(folder / "index", MODEL, num_videos)
        export_index(folder / "index", folder / "exported")
        import_index(folder / "exported", places["address"])
        with Index.open(folder / "index", device="cpu") as index:
            model = index.model
        model.prepare("scores")  # As a server does.
        searchers: dict[str, Searcher] = {}
        for name, (place, with_file) in ways.items():
            searcher = Searcher(places[place], model, feature_file=with_file)
            searchers[name] = stack.enter_context(searcher)
            searcher.search(SearchQuery("a first search"))
            searcher._refresher.wait()
        others = [name for name in ways if name != "directory"]
        title = f"{num_videos:,} videos, 10 results"
        table = report.comparison(title, None, "directory", others)
        for case, fields, is_encoded in CASES:
            timings = timed_searches(report, searchers, fields, is_encoded=is_encoded)
            table.add(case, timings)
            check_targets(report, case, timings)
        equal = [
            [result.id for result in searcher.search(SearchQuery("a red car", limit=50)).results]
            for searcher in searchers.values()
        ]
        report.check("all find the same", all(found == equal[0] for found in equal))


def timed_searches(
    report: Report, searchers: dict[str, Searcher], fields: dict[str, Any], *, is_encoded: bool
) -> dict[str, Timing]:
    """Seconds of each. is_encoded: whether the text is, before."""
    fresh = {name: texts() for name in searchers}

    def search_with(name: str) -> Callable[[], object]:
        searcher = searchers[name]
        known = searcher.encode(["a red car"])
        if is_encoded:
            return lambda: searcher.search(SearchQuery("a red car", **fields), known)
        return lambda: searcher.search(SearchQuery(next(fresh[name]), **fields))

    return interleaved(
        {name: search_with(name) for name in searchers},
        rounds=15 if report.short else 100,
        within_seconds=240,
        warm_up=3,
        pause_seconds=PAUSE_SECONDS / 10,
    )


def check_targets(report: Report, case: str, timings: dict[str, Timing]) -> None:
    """Of searches by the full score."""
    embedded, at_hand = timings["directory"], timings["PostgreSQL, feature file"]
    read = timings["PostgreSQL, no file"]
    if case == "rerank":
        ratio = read.ratio_to(embedded)
        report.target("features from the database / directory", ratio, at_most=MAX_TIMES_FROM_DATABASE)
    elif case == "rerank, text encoded before":
        for name, timing, most in (
            ("features from the database, ms more", read, MAX_MORE_FROM_DATABASE),
            ("feature file at hand, ms more", at_hand, MAX_MORE_AT_HAND),
        ):
            more = statistics.median(
                one - other for one, other in zip(timing.seconds, embedded.seconds, strict=True)
            )
            report.target(name, 1e3 * more, at_most=1e3 * most)


# The start


def start(address: str, model: Path) -> None:
    """Open a searcher, search once, and print the seconds of both; what a fresh process does."""
    loaded = XClip.load(model, "cpu")
    started = time.perf_counter()
    searcher = Searcher(address, loaded)
    opened = time.perf_counter()
    num_found = len(searcher.search(SearchQuery("a red car")).results)
    print(opened - started, time.perf_counter() - opened, num_found, flush=True)
    searcher._features.close()  # What begins in the background is not waited for.
    searcher.close()


def time_start(report: Report, num_videos: int) -> None:
    """The table of starts."""
    with tempfile.TemporaryDirectory() as temporary, database() as server:
        address, saved_model = server.address(), Path(temporary) / "model"
        XClip(XClipConfig.tiny()).save(saved_model)
        model = XClip.load(saved_model, "cpu")
        taken = make_index(address, str(saved_model), num_videos)
        report.note(f"Adding {num_videos:,} videos took {taken:.0f} s.")
        started = time.perf_counter()
        with Searcher(address, model) as searcher:
            while searcher._index.needs_compaction or searcher._index.needs_saving:
                searcher._refresher.start_where_needed(after_search=False)
                searcher._refresher.wait()
        report.note(f"The first start, all made and saved, took {time.perf_counter() - started:.0f} s.")
        table = report.table(
            f"A further process, {num_videos:,} videos, the coarse index saved",
            {"opened, s": ".2f", "first search, s": ".2f"},
        )
        found = []
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.cluster.searching", "--start", address, str(saved_model)],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            )
            opened, searched, num_found = map(float, done.stdout.split())
            table.add(opened, searched)
            found.append((opened + searched, num_found))
        report.check("it finds ten videos", all(num_found == 10 for _, num_found in found))
        seconds = statistics.median(taken for taken, _ in found)
        report.target("started and searched, s", seconds, at_most=MAX_START_SECONDS)
        time_server_start(report, address, num_videos)


def time_server_start(report: Report, address: str, num_videos: int) -> None:
    """The table of starts of `xclip-search serve`."""
    table = report.table(
        f"`xclip-search serve`, {num_videos:,} videos, seconds after the command",
        {"ready": ".2f", "first search answered": ".2f"},
    )
    answered = []
    for _ in range(3):
        started = time.perf_counter()
        with serving(address) as (_, port):
            ready = time.perf_counter() - started
            answer = httpx.post(f"http://127.0.0.1:{port}/search", json={"query": "a red car"}, timeout=60)
            answered.append(time.perf_counter() - started)
            is_right = len(answer.raise_for_status().json()["results"]) == 10
        table.add(ready, answered[-1])
        report.check("the server finds ten videos", is_right)
    seconds = statistics.median(answered)
    report.target("server started and a search answered, s", seconds, at_most=MAX_START_SECONDS)


def main() -> None:
    """Compare, or be what starts."""
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, help="to search; 20,000, or 2,000 with --short")
    parser.add_argument("--start-videos", type=int, default=0, help="also start with so many")
    parser.add_argument("--start", nargs=2, metavar=("ADDRESS", "MODEL"), help=argparse.SUPPRESS)
    choices = parser.parse_args()
    if choices.start is not None:
        start(choices.start[0], Path(choices.start[1]))
        return
    with Report("cluster.searching", choices) as report:
        compare(report, choices.videos or (2_000 if choices.short else 20_000))
        if choices.start_videos:
            time_start(report, choices.start_videos)


if __name__ == "__main__":
    main()
