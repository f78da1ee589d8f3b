"""Run the benchmarks, each in a process of its own: the short form of all within a quarter of an hour.

    python -m benchmarks [NAME ...] [--full] [--folder runs/benchmarks]

A program that fails or finds something wrong does not keep the others from running; the exit status is 1
then. Each writes its figures into the folder. `--full` runs the sizes that the documents quote, which takes
hours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import REPOSITORY

PROGRAMS = (
    "alternatives",
    "recall.cascade",
    "recall.coarse",
    "features_at_hand",
    "indexing",
    "media.decoding",
    "scoring",
    "serving.answering",
    "start",
    "towers",
    "training.evaluation_memory",
)
"""What `python -m benchmarks` runs, in this order. Each takes the options of `report.arguments`."""

LIMIT_SECONDS = 300.0
"""Of one program in its short form."""


def run(name: str, folder: Path, *, full: bool) -> int | str:
    """Run one program; its exit status, or why there is none."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(folder / f"{name}.json")]
    try:
        return subprocess.run(
            command if full else [*command, "--short"],
            cwd=REPOSITORY,
            timeout=None if full else LIMIT_SECONDS,
        ).returncode
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_SECONDS:.0f} s"


def main() -> None:
    """Run the named ones, or all, and say how each ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROGRAMS)}; by default all")
    parser.add_argument("--full", action="store_true", help="the sizes that the documents quote")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "benchmarks", help="of the JSON")
    choices = parser.parse_args()
    unknown = set(choices.names) - set(PROGRAMS)
    if unknown:
        parser.error(f"no such program: {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    ended: dict[str, tuple[int | str, float]] = {}
    for name in choices.names or PROGRAMS:
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        status = run(name, choices.folder.absolute(), full=choices.full)
        ended[name] = status, time.perf_counter() - started
    print("\n| program | exit status | seconds |\n| --- | --- | ---: |")
    for name, (status, seconds) in ended.items():
        print(f"| {name} | {status} | {seconds:.0f} |")
    sys.exit(any(status != 0 for status, _ in ended.values()))


if __name__ == "__main__":
    main()
