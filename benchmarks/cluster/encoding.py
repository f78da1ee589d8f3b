"""Drawn clips into an index in PostgreSQL: by `index` here, and by Ray's actors on one and two nodes.

    python -m benchmarks.cluster.encoding --short

The nodes share this machine's processors, so two are no faster than one: the table says what Ray costs beside
`index` with as many decoders in all, not what a second machine brings.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.cluster.places import database, ray_nodes
from benchmarks.indexing import draw_clips
from benchmarks.report import Report, arguments
from indexer.index import Index
from indexer.ingest.cluster import ClusterEncoding, ClusterOptions
from indexer.ingest.synchronisation import Synchronisation


def main() -> None:
    """Time each way into an index of its own."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="openclip:ViT-B-32-quickgelu/random?seed=0")
    parser.add_argument("--folder", type=Path, help="of videos; by default clips are drawn")
    choices = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        database() as server,
        Report("cluster.encoding", choices) as report,
    ):
        folder = choices.folder or Path(temporary)
        if choices.folder is None:
            draw_clips(folder, 6 if choices.short else 48)
        table = report.table(
            "One folder into an empty index, start included",
            {"way": "", "nodes": "d", "actors": "d", "decoders in all": "d", "videos": "d", "s": ".1f"},
        )
        num_added = set()
        for num_nodes in (0, 1, 2):
            address = server.address()
            with Index.create(address, choices.model) as index:
                started = time.perf_counter()
                if not num_nodes:
                    report_of_run = index.sync([folder], encoding={"num_workers": 2})
                else:
                    with ray_nodes(num_nodes, cpus_per_node=3 if num_nodes == 1 else 2) as ray_address:
                        options = ClusterOptions(ray_address, num_decoders=2 if num_nodes == 1 else 1)
                        encoding = ClusterEncoding(options)
                        started = time.perf_counter()
                        run = Synchronisation(index.catalog, index.pipeline, encode_actions=encoding)
                        report_of_run = run.run([folder])
                seconds = time.perf_counter() - started
                name = "index --ray" if num_nodes else "index"
                table.add(name, num_nodes, max(1, num_nodes), 2, report_of_run.num_added, seconds)
                num_added.add((report_of_run.num_added, index.catalog.num_videos))
        report.check("every way adds the same number of videos", len(num_added) == 1)


if __name__ == "__main__":
    main()
