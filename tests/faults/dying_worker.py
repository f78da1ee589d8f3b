"""A worker process that stops at a chosen moment, so that a test can kill it there.

    python -m tests.faults.dying_worker INDEX MOMENT LEASE_SECONDS

Moments: `decode` the file is read; `moved` it lies among the accepted ones; `transaction` everything is
written and not committed; `committed` just after that; `finished` the job ended with bytes known already;
`never`. The file INDEX/at-MOMENT appears when the moment has come, INDEX/ready-PID when the worker is ready.
A file that begins with POISON kills its reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from indexer.store.job import Job
from indexer.store.records import NewVideo, SegmentRecord
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.connections import Transaction
from indexer.store.sqlite.jobs import JobQueue
from service.ingest.media_store import MediaStore
from service.ingest.worker import Worker
from service.settings import Settings

POISON = b"poison"
NUM_FRAMES, EMBEDDING_DIM = 2, 4
"""As in service_fakes, which loads much more."""


def read_by_rote(path: Path, cancelled: threading.Event | None = None) -> NewVideo:
    """A video whose file has any bytes."""
    content = path.read_bytes()
    if content.startswith(POISON):
        os.kill(os.getpid(), signal.SIGKILL)
    segment = SegmentRecord(
        0.0,
        10.0,
        np.eye(1, EMBEDDING_DIM, dtype=np.float32)[0],
        np.zeros((NUM_FRAMES, EMBEDDING_DIM), np.float16),
        NUM_FRAMES,
        np.array([0.0, 5.0]),
    )
    return NewVideo(
        content_sha256=hashlib.sha256(content).hexdigest(),
        segments=[segment],
        duration_seconds=10.0,
        width=64,
        height=48,
        frame_rate=25.0,
        codec="h264",
        size_bytes=len(content),
    )


def main(directory: Path, moment: str, lease_seconds: float) -> None:
    def hold(name: str) -> None:
        if name == moment:
            (directory / f"at-{name}").touch()
            time.sleep(600)

    class HeldCatalog(Catalog):
        @contextlib.contextmanager
        def transaction(self) -> Iterator[Transaction]:
            with super().transaction() as transaction:
                yield transaction
            hold("committed")

    class HeldStore(MediaStore):
        def keep(self, source: Path, video_id: str) -> Path:
            path = super().keep(source, video_id)
            hold("moved")
            return path

    class HeldQueue(JobQueue):
        def finish(self, *arguments: Any, transaction: Transaction | None = None, **named: Any) -> Job:
            job = super().finish(*arguments, transaction=transaction, **named)
            hold("finished" if transaction is None else "transaction")
            return job

    def read(path: Path, cancelled: threading.Event) -> NewVideo:
        hold("decode")
        return read_by_rote(path)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    (directory / f"ready-{os.getpid()}").touch()
    settings = Settings(index=directory, poll_seconds=0.02, lease_seconds=lease_seconds)
    with HeldCatalog.open(directory) as catalog:
        worker = Worker(settings, catalog, HeldStore(directory), read)
        worker._queue = HeldQueue(catalog)
        worker.run(stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
