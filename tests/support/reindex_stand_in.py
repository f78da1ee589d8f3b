"""A pipeline whose features follow from a file's bytes and the sampling; and a run of it that ends at a step.

    python tests/support/reindex_stand_in.py INDEX MOMENT [back]

exits with status 9, as if it were killed, when reindexing (or going back) has come to MOMENT.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.ingest.pipeline import OTHER_BYTES_REASON, IndexEvent, IndexReport, VideoSource
from indexer.maintenance import reindexing
from indexer.media.sampling import Sampling, segment_bounds
from indexer.store.postgres.address import is_postgres_address
from indexer.store.records import IndexFacts, NewVideo, SegmentRecord
from indexer.store.sqlite import catalog as sqlite_catalog
from indexer.store.sqlite import switching
from indexer.store.sqlite.catalog import Catalog

D, F = 8, 4
SECONDS = 25.0
SAMPLING = Sampling(F)
OTHER_SAMPLING = Sampling(F, max_segment_seconds=10)

KILLED_AT = ("begun", "encoded", "carried", "row-written", "row-committed", "taken-over", "pointer-written")
AFTER_THE_SWITCH = {"sqlite": KILLED_AT[4:], "postgres": ("row-committed",)}
"""By kind of store: in a database all of a switch is one transaction."""


def fingerprint_of(sampling: Sampling) -> str:
    return hashlib.sha256(sampling.to_json().encode()).hexdigest()


def write_clip(path: Path, content: bytes | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(path.name.encode() if content is None else content)


def facts_of(sampling: Sampling) -> IndexFacts:
    return IndexFacts(
        fingerprint=fingerprint_of(sampling),
        model_spec="stand-in",
        embedding_dim=D,
        num_frames=sampling.num_frames,
        sampling_json=sampling.to_json(),
    )


class StandIn:
    """In the place of an IndexingPipeline: reads no video, keeps to its rules for records and bytes."""

    def __init__(self, catalog: Any) -> None:
        self._catalog = catalog
        self._sampling = Sampling.from_json(catalog.sampling_json)

    @staticmethod
    def features(content: bytes, num_frames: int, dim: int) -> tuple[NDArray[Any], NDArray[Any]]:
        random = np.random.default_rng(list(hashlib.sha256(content).digest()))
        video = random.standard_normal(dim).astype(np.float32)
        return video / np.linalg.norm(video), random.standard_normal((num_frames, dim)).astype(np.float16)

    def add(self, path: Path, **fields: Any) -> str:
        content = path.read_bytes()
        segments = []
        for start, end in segment_bounds(SECONDS, self._sampling.max_segment_seconds):
            video, frames = self.features(content + f"{start} {end}".encode(), F, D)
            times = start + np.arange(F, dtype=np.float64)
            segments.append(SegmentRecord(start, end, video, frames, F, times))
        video = NewVideo(
            content_sha256=hashlib.sha256(content).hexdigest(),
            segments=segments,
            duration_seconds=SECONDS,
            width=64,
            height=48,
            frame_rate=25.0,
            codec="h264",
            size_bytes=len(content),
            **fields,
        )
        return self._catalog.add_video(video).video_id

    def run(self, sources: Iterable[VideoSource], on_event: Callable[[IndexEvent], None]) -> IndexReport:
        report = IndexReport()
        for source in sources:
            assert source.record is not None
            if hashlib.sha256(source.path.read_bytes()).hexdigest() != source.record.content_sha256:
                report.num_failed += 1
                on_event(IndexEvent(source, "failed", None, OTHER_BYTES_REASON))
                continue
            names = ("id", "uri", "title", "metadata", "trusted", "added_at")
            self.add(source.path, **{name: getattr(source.record, name) for name in names})
            report.num_added += 1
            on_event(IndexEvent(source, "added", source.record.id))
        return report


def end_after(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    def ending(*values: Any, **named: Any) -> Any:
        real(*values, **named)
        os._exit(9)

    setattr(owner, name, ending)


def end_before(owner: Any, name: str) -> None:
    setattr(owner, name, lambda *values, **named: os._exit(9))


def steps_of(index: str) -> dict[str, Callable[[], None]]:
    """What ends the process at each of KILLED_AT."""
    build: Any = reindexing._Build
    steps = {
        "begun": lambda: end_before(build, "_encode"),
        "encoded": lambda: end_after(build, "_encode"),
    }
    if is_postgres_address(index):
        from indexer.store.postgres import catalog as postgres_catalog

        return steps | {
            "carried": lambda: end_after(postgres_catalog.PostgresCatalog, "carry_over"),
            "row-written": lambda: end_after(postgres_catalog, "write_successor"),
            "taken-over": lambda: end_before(postgres_catalog, "name_generation"),
            "pointer-written": lambda: end_after(postgres_catalog, "name_generation"),
            "row-committed": lambda: end_before(reindexing, "_finish_switch"),
        }
    return steps | {
        "carried": lambda: end_after(Catalog, "carry_over"),
        "row-written": lambda: end_after(sqlite_catalog, "write_successor"),
        "row-committed": lambda: end_before(Catalog, "take_over"),
        "taken-over": lambda: end_after(Catalog, "take_over"),
        "pointer-written": lambda: end_after(switching, "name_generation"),
    }


def main() -> None:
    index, moment = sys.argv[1], sys.argv[2]
    steps_of(index)[moment]()
    if sys.argv[3:] == ["back"]:
        reindexing.roll_back(index)
    else:
        make_pipeline: Any = StandIn
        reindexing.reindex(index, facts_of(OTHER_SAMPLING), make_pipeline)


if __name__ == "__main__":
    main()
