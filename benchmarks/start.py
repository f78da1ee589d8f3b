"""How long `xclip-search search` without a server takes, next to Python that reads the same weights.

    python -m benchmarks.start [--videos 10000] [--json PATH]

The floor is a fresh Python that imports torch and copies the weights' file into memory. Each is a whole
process, in turns, the files in the operating system's cache. Seconds of the clock and of processors: on a
busy machine read the latter. The decode child is ready when it has answered a first request: that a file is
no video.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import REPOSITORY
from benchmarks.report import Report, Timing, arguments, interleaved
from benchmarks.synthetic_index import make_index

MODEL = "openclip:ViT-B-32-quickgelu/random?seed=0"
TEXT = "a dog runs on the beach"
HELP_SECONDS, MORE_THAN_LOADING_SECONDS = 0.4, 1.5

FLOOR = """
import sys, torch
from safetensors.torch import load_file
weights = {name: tensor.clone() for name, tensor in load_file(sys.argv[1]).items()}
"""
LOAD = """
import sys
from model.quick_start import shorten_import
shorten_import()
from model import XClip
XClip.load(sys.argv[1], "cpu")
"""
DECODE_CHILD = """
import sys
from indexer.media.decode_pool import DecodePool
with DecodePool(1) as pool:
    pool.submit_hash(sys.argv[1]).exception()
"""


def run(*command: str) -> tuple[float, float, str]:
    """Seconds of the clock, seconds of processors, and what a command prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used, done.stdout


def measure(report: Report, folder: Path, num_videos: int) -> None:
    """Print the table."""
    from model import XClip

    model, index = folder / "model", folder / "index"
    XClip.load(MODEL, "cpu").save(model)
    make_index(index, str(model), num_videos)
    ours = (sys.executable, "-m", "xclip_search")
    search = (*ours, "search", TEXT, "--index", str(index))
    found = run(*search, "--json")[2]  # the first search saves the coarse index
    commands: dict[str, tuple[str, ...]] = {
        "torch and the weights": (sys.executable, "-c", FLOOR, str(model / "model.safetensors")),
        "XClip.load": (sys.executable, "-c", LOAD, str(model)),
        "xclip-search search": search,
        "xclip-search --help": (*ours, "--help"),
        "a decode child ready": (sys.executable, "-c", DECODE_CHILD, str(model / "config.json")),
        "python": (sys.executable, "-c", "pass"),
    }
    processors: dict[str, list[float]] = {name: [] for name in commands}

    def timed(name: str) -> Callable[[], None]:
        return lambda: processors[name].append(run(*commands[name])[1])

    rounds = 3 if report.short else 9
    timings = interleaved({name: timed(name) for name in commands}, rounds=rounds, within_seconds=600)
    used = {name: Timing(tuple(values[1:])) for name, values in processors.items()}  # without the warm-up
    floor = timings["torch and the weights"]
    table = report.table(
        f"Whole processes, {num_videos:,} videos, ViT-B/32",
        {
            "process": "",
            "seconds": ".2f",
            "of processors": ".2f",
            "to the floor": ".2f",
            "more than the floor, s": ".2f",
        },
    )
    for name, timing in timings.items():
        more = timing.median - floor.median
        table.add(name, timing.spread("s"), used[name].spread("s"), timing.ratio_to(floor), more)
    more = timings["xclip-search search"].median - timings["XClip.load"].median
    report.target("a search, seconds more than loading", more, at_most=MORE_THAN_LOADING_SECONDS)
    report.target("--help, seconds", timings["xclip-search --help"].median, at_most=HELP_SECONDS)
    report.check("a search finds ten videos", found.count('"id"') == 10)


def main() -> None:
    """Measure."""
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, help="in the index; 10,000, or 1,000 with --short")
    choices = parser.parse_args()
    with Report("start", choices) as report, tempfile.TemporaryDirectory() as folder:
        measure(report, Path(folder), choices.videos or (1_000 if report.short else 10_000))


if __name__ == "__main__":
    main()
