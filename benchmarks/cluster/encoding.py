"""Drawn clips into an index in PostgreSQL: by `index` here, and by an actor of Ray on the same processors.

    python -m benchmarks.cluster.encoding --short

Both have as many decoders as there are processors, and take turns. Rates are of the files after the first
tenth, when processes have started and models are loaded. With `--model demo`, the default, a file takes least
of the model and so most of what hands it out.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.cluster.places import database, ray_nodes
from benchmarks.machine import num_cores
from benchmarks.report import Report, arguments
from indexer.index import Index
from indexer.ingest.cluster import ClusterEncoding, ClusterOptions
from indexer.ingest.pipeline import IndexEvent
from indexer.ingest.synchronisation import Progress, Synchronisation
from tests.support.video_files import write_pictures

CLIP_SECONDS, FRAME_RATE = 4, 12
HEIGHT, WIDTH = 240, 320
SHARE_OF_START = 0.1


def draw_small_clips(folder: Path, num_clips: int) -> None:
    """H.264 clips of 320 x 240 with noise that moves, each of another content."""
    for number in range(num_clips):
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        picture = coarse.repeat(8, axis=0).repeat(8, axis=1)
        pictures = [np.roll(picture, 3 * index, axis=1) for index in range(CLIP_SECONDS * FRAME_RATE)]
        write_pictures(folder / f"{number:05}.mp4", pictures, FRAME_RATE)


def rate(index: Index, folder: Path, num_workers: int, ray_address: str | None) -> tuple[int, float]:
    """Videos added, and videos a second after the first tenth. ray_address: None without a cluster."""
    moments: list[float] = []

    def note(event: IndexEvent) -> None:
        moments.append(time.perf_counter())

    if ray_address is None:
        report = index.sync([folder], encoding={"num_workers": num_workers}, progress=Progress(on_event=note))
    else:
        options = ClusterOptions(ray_address, num_actors=1, num_decoders=num_workers)
        run = Synchronisation(
            index.catalog,
            index.pipeline,
            progress=Progress(on_event=note),
            encode_actions=ClusterEncoding(options),
        )
        report = run.run([folder])
    first = int(SHARE_OF_START * len(moments))
    return report.num_added, (len(moments) - 1 - first) / (moments[-1] - moments[first])


def main() -> None:
    """Compare the rates of both, in turns."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--folder", type=Path, help="of videos; by default clips are drawn")
    parser.add_argument("--rounds", type=int, help="of both; 3, 1 with --short")
    choices = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # As the command does.
    num_workers = num_cores()
    with (
        tempfile.TemporaryDirectory() as temporary,
        database() as server,
        ray_nodes(1, cpus_per_node=num_workers) as ray_address,
        Report("cluster.encoding", choices) as report,
    ):
        folder = choices.folder or Path(temporary)
        if choices.folder is None:
            draw_small_clips(folder, 300 if choices.short else 2_000)
        table = report.table(
            f"Into an empty index, {num_workers} decoders",
            {"round": "d", "index, videos/s": ".1f", "index --ray, videos/s": ".1f", "--ray / index": ".2f"},
        )
        ratios, num_added = [], set()
        for number in range(choices.rounds or (1 if choices.short else 3)):
            rates = {}
            for address in (None, ray_address) if number % 2 == 0 else (ray_address, None):
                with Index.create(server.address(), choices.model) as index:
                    added, rates[address] = rate(index, folder, num_workers, address)
                    num_added.add((added, index.catalog.num_videos))
            ratios.append(rates[ray_address] / rates[None])
            table.add(number + 1, rates[None], rates[ray_address], ratios[-1])
        report.check("both add the same number of videos", len(num_added) == 1)
        report.target("videos/s of --ray / of index, median", statistics.median(ratios), at_least=0.9)


if __name__ == "__main__":
    main()
