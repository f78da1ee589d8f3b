"""What handing files out and collecting them costs, with decoders that sleep, on one node and on two.

    python -m benchmarks.cluster.map_stage

Each file takes SLEEP_SECONDS in one of the slots of an actor and no processor, so that two nodes on one
machine can show twice the rate of one. Rates are of the time after all actors had started.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.cluster.places import ray_nodes
from benchmarks.report import Report, arguments
from indexer.ingest import cluster
from indexer.ingest.cluster import ClusterOptions
from indexer.ingest.manifest import VideoSource
from indexer.ingest.pipeline import IndexEvent
from indexer.ingest.planning import Action, Found
from indexer.ingest.storing import StoredFile

SLEEP_SECONDS = 0.1
NUM_SLOTS = 4
"""Of an actor, which is one node's."""


class SleepingActor(cluster.EncodingActor):
    """An actor whose files take a fixed time each, in as many threads as there are slots."""

    def __init__(self, *arguments: Any) -> None:
        import queue
        import threading

        self._given: Any = queue.SimpleQueue()
        self._done: Any = queue.SimpleQueue()
        for _ in range(NUM_SLOTS):
            threading.Thread(target=self._sleep, daemon=True).start()

    def _sleep(self) -> None:
        while (action := self._given.get()) is not None:
            time.sleep(SLEEP_SECONDS)
            self._done.put(StoredFile(IndexEvent(action.file.source, "added", "id"), num_segments=1))

    def close(self) -> None:
        """End one thread; the others end with the process."""
        self._given.put(None)


class Nowhere:
    """A store that is asked for no more than the number of its last change."""

    address, fingerprint, model_spec, sequence = "postgresql:///nowhere", "f" * 64, "none", 0


def rate_of_actors(address: str, actions: Sequence[Action], num_nodes: int) -> tuple[int, float]:
    """Files done in all, and files a second once all actors had started."""
    started: list[float] = []

    def note_start(num_started: int, num_actors: int) -> None:
        if num_started == num_actors:
            started.append(time.perf_counter())

    options = ClusterOptions(address=address, num_decoders=NUM_SLOTS, num_actors=num_nodes)
    with patch.object(cluster, "EncodingActor", SleepingActor):
        encoding = cluster.ClusterEncoding(options, note_start)
        done = [time.perf_counter() for _ in encoding(Nowhere(), actions)]  # type: ignore[arg-type]
    since = [moment for moment in done if moment >= started[0]]
    return len(done), len(since) / (since[-1] - started[0])


def main() -> None:
    """The rates on one and two nodes."""
    choices = arguments(__doc__).parse_args()
    num_files = 600 if choices.short else 4_000
    actions = [
        Action(
            Found(f"file:///films/{number}.mp4", 1, 1, VideoSource(Path(f"/films/{number}.mp4"))), "encode"
        )
        for number in range(num_files)
    ]
    with Report("cluster.map_stage", choices) as report:
        table = report.table(
            f"{num_files} files of {SLEEP_SECONDS} s, {NUM_SLOTS} slots a node",
            {"nodes": "d", "most possible, files/s": ".1f", "files/s": ".1f", "files/s / most": ".3f"},
        )
        rates = {}
        for num_nodes in (1, 2):
            most = NUM_SLOTS * num_nodes / SLEEP_SECONDS
            with ray_nodes(num_nodes, cpus_per_node=NUM_SLOTS) as address:
                num_done, rates[num_nodes] = rate_of_actors(address, actions, num_nodes)
            table.add(num_nodes, most, rates[num_nodes], rates[num_nodes] / most)
            report.check(f"{num_nodes} nodes: all files once", num_done == num_files)
        report.target("rate on two nodes / on one", rates[2] / rates[1], at_least=1.8)


if __name__ == "__main__":
    main()
