"""Searches of this tree beside those of an earlier commit: what options cost that nobody asks for.

    python -m benchmarks.serving.since_commit [--commit ee90c5d] [--num-videos 10000] [--json PATH]

Each tree makes an index of the same drawn features, for their formats differ, and answers the same queries in
a process of its own, with all options off; both take turns, query by query. The commit that is named by
default is the last without words, media, `not`, `match` and folding. The time without the text is that of the
answer's `timings`, less `encode_seconds`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import REPOSITORY
from benchmarks.report import Report, Timing, arguments
from indexer.search.baseline import baseline_texts

MODEL: Final = "openclip:ViT-B-32-quickgelu/random?seed=0"
MODES: Final = ("rerank", "coarse", "exhaustive")
WARM_UP: Final = 5

CHILD: Final = """
import json, sys, time
from indexer.search.searcher import Searcher, SearchQuery
from model import XClip
with Searcher(sys.argv[1], XClip.load(sys.argv[2], "cpu")) as searcher:
    searcher.prepare()
    for line in sys.stdin:
        query = SearchQuery(**json.loads(line))
        started = time.perf_counter()
        answer = searcher.search(query)
        seconds = time.perf_counter() - started
        text = answer.timings.encode_seconds
        print(json.dumps([seconds, answer.timings.total_seconds - text, len(answer.results)]), flush=True)
"""


class Tree:
    """A checkout that answers searches in a process of its own."""

    def __init__(self, root: Path, index: Path, num_videos: int) -> None:
        environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
        make = [sys.executable, "-m", "benchmarks.synthetic_index", "--model", MODEL]
        subprocess.run(
            [*make, "--num-videos", str(num_videos), "--index", str(index)],
            cwd=root,
            env=environment,
            check=True,
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(index), MODEL],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def search(self, **fields: Any) -> tuple[float, float]:
        """Seconds of a search, and of it without its text."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(fields) + "\n")
        self._process.stdin.flush()
        whole, without_text, num_results = json.loads(self._process.stdout.readline())
        assert num_results == 10
        return whole, without_text

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit in a folder."""
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--detach", "--quiet", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--commit", default="ee90c5d")
    parser.add_argument("--num-videos", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=40)
    choices: argparse.Namespace = parser.parse_args()
    num_videos = 1_000 if choices.short else choices.num_videos
    rounds = 5 if choices.short else choices.rounds
    texts = baseline_texts()
    with Report("serving.since_commit", choices) as report, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with checkout(choices.commit, folder / "tree") as former:
            trees = {
                choices.commit: Tree(former, folder / "former", num_videos),
                "this tree": Tree(REPOSITORY, folder / "index", num_videos),
            }
            table = report.comparison(
                f"A search in {num_videos:,} videos, all options off", None, "this tree", [choices.commit]
            )
            for mode in MODES:
                seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
                for number in range(WARM_UP + rounds):
                    # A text that neither has encoded before.
                    text = f"{texts[number % len(texts)]}, number {number} of {mode}"
                    for name in sorted(trees, reverse=number % 2 == 1):
                        seconds[name].append(trees[name].search(text=text, mode=mode))
                for part, what in enumerate((mode, f"{mode}, without its text")):
                    timings = {
                        name: Timing(tuple(both[part] for both in found[WARM_UP:]))
                        for name, found in seconds.items()
                    }
                    table.add(what, timings)
                    ratio = timings["this tree"].ratio_to(timings[choices.commit])
                    report.target(f"{what}: this tree / {choices.commit}", ratio, at_most=1.03)
            for tree in trees.values():
                tree.close()


if __name__ == "__main__":
    main()
