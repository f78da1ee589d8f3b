"""How far above chance scores lie: percentiles of true captions, and of questions without an answer.

    python -m benchmarks.facts.baseline_scores [--videos 200] [--seed 0]

Draws a demo corpus into a temporary folder, indexes it with the demo model, and asks for
each caption (true of one video alone) and for sentences about things that no demo video shows. For an index
of your own take questions of both kinds, and compare the same two columns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from indexer.ingest.manifest import read_manifest
from indexer.search.searcher import Searcher
from indexer.search.types import SearchQuery
from xclip_search import Index
from xclip_search.demo import make_corpus
from xclip_search.demo import read_manifest as read_captions

# Only words that the demo model knows, of scenes that the demo corpus does not draw.
NONSENSE = (
    "the middle of the night then nothing at all",
    "the top of the town",
    "something comes from under the room",
    "from the side it gets off",
    "a view from the bottom of something",
    "it comes and then it goes by",
    "the first thing at the side",
    "out of the dark by the side of it",
    "nothing but the view of it",
    "before it and after it",
)
THRESHOLDS = (90.0, 95.0, 99.0, 99.5, 99.9)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        manifest = make_corpus(Path(directory) / "corpus", arguments.videos, arguments.seed)
        with Index.create(Path(directory) / "index", "demo", device="cpu") as index:
            index.add_all(read_manifest(manifest).sources)
            index.searcher.prepare()
            own = {video.caption: video.id for video in read_captions(manifest)}
            report(index.searcher, own)


def report(searcher: Searcher, own: dict[str, str]) -> None:
    """Print the table."""
    for mode in ("rerank", "coarse"):
        true, best_of_nonsense = [], []
        for caption, video_id in own.items():
            results = searcher.search(SearchQuery(caption, limit=1000, mode=mode)).results
            true += [result.percentile for result in results if result.id == video_id]
        for text in NONSENSE:
            best_of_nonsense += [
                result.percentile for result in searcher.search(SearchQuery(text, limit=1, mode=mode)).results
            ]
        print(
            f"\n{mode}: {len(own)} videos, {len(own)} captions, {len(NONSENSE)} sentences without an answer\n"
        )
        print("| `min_percentile` | captions that keep their video | sentences that keep a result |")
        print("| --- | --- | --- |")
        for least in THRESHOLDS:
            kept = np.mean(np.array(true) >= least)
            wrong = np.mean(np.array(best_of_nonsense) >= least)
            print(f"| {least:g} | {100 * kept:.0f} % | {100 * wrong:.0f} % |")
        print(f"\nmedian of a caption's own video: {np.median(true):.2f}")
        print(f"median of the best result of a sentence without an answer: {np.median(best_of_nonsense):.2f}")


if __name__ == "__main__":
    main()
