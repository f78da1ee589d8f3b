"""A PostgreSQL and Ray clusters on this machine, for the programs here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from benchmarks.machine import REPOSITORY
from indexer.store.records import IndexFacts
from tests.support.postgres import PostgresServer, find_programs, running_server

OBJECT_STORE_BYTES = 100 << 20
NUM_FRAMES, DIMENSION = 12, 512
FACTS = IndexFacts(
    fingerprint="f" * 64,
    model_spec="none",
    embedding_dim=DIMENSION,
    num_frames=NUM_FRAMES,
    sampling_json="{}",
)
"""Of an index of features that no model made."""


@contextlib.contextmanager
def database() -> Iterator[PostgresServer]:
    """A running server with memory for what is measured; `address()` gives that of an index that is not there
    yet."""
    programs = find_programs()
    if programs is None:
        raise SystemExit(
            "there is no PostgreSQL 15 or later on this machine (Debian: apt install postgresql)"
        )
    with running_server(programs, options="-c shared_buffers=512MB") as server:
        yield server


@contextlib.contextmanager
def ray_nodes(num_nodes: int, cpus_per_node: int) -> Iterator[str]:
    """The address of a cluster of so many nodes on this machine."""
    from ray.cluster_utils import Cluster

    # Ray gives its processes the lowest priority but 4, which shows only beside other programs. None here, so
    # that what is compared with `index` gets as much of the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    options: dict[str, Any] = {"num_cpus": cpus_per_node, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(**options)
        cluster.wait_for_nodes()
        yield str(cluster.address)
    finally:
        cluster.shutdown()
