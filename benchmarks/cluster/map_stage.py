"""What handing files out and collecting them costs, with decoders that sleep: Ray Data, and our actors.

    python -m benchmarks.cluster.map_stage

Each file takes SLEEP_SECONDS in one of the slots of a node, and nothing else: what a run takes beyond
files x seconds / slots is what handing out costs. On one node and on two, with as many slots each. Ray Data
needs pandas; without it that column stays empty.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

SLEEP_SECONDS = 0.05
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


def sleep_in_batches(batch: dict[str, Any]) -> dict[str, Any]:
    """The same for Ray Data: a batch in as many threads."""
    with ThreadPoolExecutor(NUM_SLOTS) as threads:
        list(threads.map(lambda name: time.sleep(SLEEP_SECONDS), batch["item"]))
    return batch


class SleepingStage:
    """A class, so that Ray Data keeps actors for it."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Sleep for each file."""
        return sleep_in_batches(batch)


def by_actors(address: str, actions: Sequence[Action], num_nodes: int) -> int:
    """Files done by our actors."""
    options = ClusterOptions(address=address, num_decoders=1, num_actors=num_nodes)

    def results() -> Iterator[StoredFile]:
        encoding = cluster.ClusterEncoding(options)
        encoding._capacity = 4 * NUM_SLOTS
        yield from encoding(Nowhere(), actions)  # type: ignore[arg-type]

    with patch.object(cluster, "EncodingActor", SleepingActor):
        return sum(1 for _ in results())


def by_ray_data(address: str, actions: Sequence[Action], num_nodes: int) -> int:
    """Files done by Ray Data's `map_batches`."""
    import ray

    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        names = [action.file.uri for action in actions]
        stage = ray.data.from_items(names, override_num_blocks=8 * num_nodes).map_batches(
            SleepingStage, batch_size=4 * NUM_SLOTS, concurrency=num_nodes, num_cpus=2
        )
        return int(sum(len(batch["item"]) for batch in stage.iter_batches()))
    finally:
        ray.shutdown()


def main() -> None:
    """Time both on one and two nodes."""
    choices = arguments(__doc__).parse_args()
    num_files = 200 if choices.short else 2_000
    actions = [
        Action(
            Found(f"file:///films/{number}.mp4", 1, 1, VideoSource(Path(f"/films/{number}.mp4"))), "encode"
        )
        for number in range(num_files)
    ]
    ways: dict[str, Callable[[str, Sequence[Action], int], int]] = {"our actors": by_actors}
    if importlib.util.find_spec("pandas") is not None:
        ways["Ray Data"] = by_ray_data
    with Report("cluster.map_stage", choices) as report:
        table = report.table(
            f"{num_files} files of {SLEEP_SECONDS} s, {NUM_SLOTS} slots a node",
            {"nodes": "d", "way": "", "least possible, s": ".1f", "taken, s": ".1f", "taken / least": ".2f"},
        )
        for num_nodes in (1, 2):
            least = num_files * SLEEP_SECONDS / (NUM_SLOTS * num_nodes)
            with ray_nodes(num_nodes, cpus_per_node=2) as address:
                for name, way in ways.items():
                    started = time.perf_counter()
                    num_done = way(address, actions, num_nodes)
                    seconds = time.perf_counter() - started
                    table.add(num_nodes, name, least, seconds, seconds / least)
                    report.check(f"{name}, {num_nodes} nodes: all files once", num_done == num_files)
        report.note("The start of the actors is in it: the more files, the less it counts.")


if __name__ == "__main__":
    main()
