"""Small catalogs for tests: videos with random or chosen features, distinguished by a number."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.coarse.exact import empty_exact_index
from indexer.coarse.index import CoarseIndex
from indexer.store.job import Job, NewJob
from indexer.store.records import AddOutcome, IndexFacts, NewVideo, SegmentRecord
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from indexer.store.store import open_store

FINGERPRINT = "f" * 64


LONG_METADATA = {"list": list(range(12_000))}
"""Nearly as large as metadata may be."""

COSTLY_FILTER = {"not": {"or": [{"metadata.list": {"in": [-1 - number]}} for number in range(80)]}}
"""Over a few dozen videos with LONG_METADATA it takes SQLite many seconds."""


def create_catalog(
    directory: Path, *, embedding_dim: int = 8, num_frames: int = 4, **changes: Any
) -> Catalog:
    values = {"fingerprint": FINGERPRINT, "model_spec": "demo", "sampling_json": "{}"}
    of_file = {name: changes.pop(name) for name in ("generation", "successor_of") if name in changes}
    facts = IndexFacts(embedding_dim=embedding_dim, num_frames=num_frames, **{**values, **changes})
    return Catalog.create(directory, facts, **of_file)


def unit(vector: NDArray[Any]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector, axis=-1, keepdims=True)).astype(np.float32)


def make_segment(
    random: np.random.Generator,
    embedding_dim: int = 8,
    num_frames: int = 4,
    *,
    num_real_frames: int | None = None,
    start_seconds: float = 0.0,
    video_feature: NDArray[np.float32] | None = None,
) -> SegmentRecord:
    real = num_frames if num_real_frames is None else num_real_frames
    if video_feature is None:
        video_feature = unit(random.standard_normal(embedding_dim))
    return SegmentRecord(
        start_seconds=start_seconds,
        end_seconds=start_seconds + 10.0,
        video_feature=video_feature,
        frame_features=unit(random.standard_normal((num_frames, embedding_dim))).astype(np.float16),
        num_frames=real,
        frame_times=start_seconds + np.arange(real, dtype=np.float64),
    )


def sha256_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def new_video(number: int, segments: Sequence[SegmentRecord], **changes: Any) -> NewVideo:
    """The video with this number; changes: fields that shall be others."""
    fields: dict[str, Any] = {
        "id": f"video-{number}",
        "content_sha256": sha256_of(number),
        "duration_seconds": 10.0 * len(segments),
        "width": 640,
        "height": 360,
        "frame_rate": 25.0,
        "codec": "h264",
        "size_bytes": 1000 + number,
    }
    return NewVideo(segments=segments, **{**fields, **changes})


def add_video(
    catalog: Any, number: int, segments: Sequence[SegmentRecord], *, transaction: Any = None, **changes: Any
) -> AddOutcome:
    """transaction: of many videos, which are then written to disk once, not once each."""
    return catalog.add_video(new_video(number, segments, **changes), transaction)


def add_and_finish(
    catalog: Catalog, number: int, segments: Sequence[SegmentRecord], job: Job, **changes: Any
) -> AddOutcome:
    """Add a video and end its job in one transaction, as a worker does."""
    with catalog.transaction() as transaction:
        outcome = catalog.add_video(new_video(number, segments, **changes), transaction)
        catalog.jobs.finish(job.id, outcome.video_id, attempt=job.attempts, transaction=transaction)
    return outcome


def enqueue(queue: JobQueue, video_id: str | None, source_path: str, **fields: Any) -> Job:
    return queue.enqueue(NewJob(video_id=video_id, source_path=source_path, **fields))


@contextlib.contextmanager
def kept_changing(index: Path | str, random: np.random.Generator) -> Iterator[None]:
    """Meanwhile a thread adds videos 100, 101, ... of three segments each and deletes a third of them."""
    stop = threading.Event()

    def write() -> None:
        number = 100
        with open_store(index) as catalog:
            while not stop.is_set():
                add_video(catalog, number, [make_segment(random) for _ in range(3)])
                if number % 3 == 0:
                    catalog.delete_video(f"video-{number - 2}")
                number += 1
                time.sleep(0.001)  # Or a reader would have ever more to read.

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def falsify_coarse_vector(index: CoarseIndex, row: int) -> None:
    """Let a coarse index hold a vector that the catalog does not, as a mistake in our code would."""
    snapshot = index._state.snapshot
    vectors = snapshot.index.index.reconstruct_n(0, len(snapshot.ids))
    vectors[row] *= -1
    wrong = empty_exact_index(vectors.shape[1])
    wrong.add_with_ids(vectors, snapshot.ids)
    index._state = dataclasses.replace(index._state, snapshot=dataclasses.replace(snapshot, index=wrong))
