"""One checkout's indexing, stage by stage, for `benchmarks.indexing`: stages come in, figures go out.

    echo whole | PYTHONPATH=CHECKOUT python -P benchmarks/indexing_stages.py FOLDER MODEL

Only imports what checkouts of all versions have. Processor seconds are those of this process and its
decoding children.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from indexer.ingest.encoding import encode_segments, index_facts
from indexer.ingest.library import find_videos
from indexer.ingest.pipeline import IndexingPipeline
from indexer.media.decode_pool import DecodedSegment, DecodePool, DecodeRequest
from indexer.media.sampling import Sampling
from indexer.store.store import create_store
from model import XClip


class Stages:
    """The files of one folder and a model."""

    def __init__(self, folder: Path, spec: str) -> None:
        self.sources, self.spec = find_videos([folder]), spec
        self.model = XClip.load(spec)
        self.sampling = Sampling(self.model.config.num_frames)
        self.segments: list[DecodedSegment] = []
        with tempfile.TemporaryDirectory() as directory:  # What is made once: fingerprint, first batch.
            create_store(directory, index_facts(self.model, spec, self.sampling)).close()
        self.decode()
        encode_segments(self.model, self.segments[:1])

    def decode(self) -> None:
        """Hash and decode all files as they are indexed, a child for each processor, and keep the first
        segments of each."""
        requests = [
            DecodeRequest(str(source.path), self.sampling, self.model.config.resizing, trusted=True)
            for source in self.sources
        ]
        with DecodePool(os.cpu_count() or 1) as pool:
            hashes = [pool.submit_hash(source.path) for source in self.sources]
            answers = [pool.submit(request) for request in requests]
            for hashed in hashes:
                hashed.result()
            self.segments = [segment for answer in answers for segment in answer.result().segments]

    def encode(self) -> None:
        """All segments, in batches of the usual size."""
        size = 8 if self.model.device.type == "cpu" else 32
        for start in range(0, len(self.segments), size):
            encode_segments(self.model, self.segments[start : start + size])

    def whole(self) -> None:
        """Index the folder into a new store."""
        with tempfile.TemporaryDirectory() as directory:
            catalog = create_store(directory, index_facts(self.model, self.spec, self.sampling))
            report = IndexingPipeline(catalog, self.model).run(self.sources)
            catalog.close()
        if report.num_added != len(self.sources):
            raise SystemExit(f"{report.failures or 'not all files are new'}")


def _processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Answer each name on standard input with the seconds that it took."""
    stages: Any = Stages(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps({"num_videos": len(stages.sources), "num_segments": len(stages.segments)}), flush=True)
    for line in sys.stdin:
        started, used = time.perf_counter(), _processor_seconds()
        getattr(stages, line.strip())()
        seconds = time.perf_counter() - started
        figures = {"seconds": seconds, "processor_seconds": _processor_seconds() - used}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
