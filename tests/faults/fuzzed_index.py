"""An index of the demo corpus for a fuzzer: what it deletes is restored, and what it may change is a copy."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from indexer.ingest.manifest import read_manifest
from indexer.store.records import NewVideo, SegmentRecord, VideoRecord
from indexer.store.sqlite.catalog import Catalog
from training.demo_corpus.corpus import write_corpus
from xclip_search import Index

NUM_VIDEOS = 8
NUM_SPARES = 24


class FuzzedIndex:
    """Videos of the demo corpus, `ids`, and copies of one of them without a file, `spare_ids`.

    corpus: folder of the clips, which a server may be allowed to read.
    """

    def __init__(self, directory: Path, seed: int = 1) -> None:
        self.directory = directory / "index"
        self.corpus = directory / "corpus"
        manifest = write_corpus(self.corpus, NUM_VIDEOS, seed)
        with Index.open_or_create(self.directory, "demo") as index:
            index.add_all(read_manifest(manifest))
        self.clips = sorted(self.corpus.glob("**/*.mp4"))
        self._catalog = Catalog.open(self.directory)
        records = sorted(self._catalog.list_videos(NUM_VIDEOS), key=lambda record: record.id)
        self.ids = [record.id for record in records]
        self.spare_ids = [f"spare-{number}" for number in range(NUM_SPARES)]
        self._records = {record.id: record for record in records}
        self._segments = {record.id: self._read_segments(record.id) for record in records}
        for id in self.spare_ids:
            content_sha256 = hashlib.sha256(id.encode()).hexdigest()
            self._records[id] = replace(records[0], id=id, content_sha256=content_sha256, uri=None)
            self._segments[id] = self._segments[self.ids[0]]
        self._numbers = itertools.count()
        self.put_back(self.spare_ids)

    def new_clip(self) -> bytes:
        """A playable file that the index does not have: a clip with a box at its end that players skip."""
        box = f"free{next(self._numbers):012}".encode()
        return self.clips[0].read_bytes() + (len(box) + 4).to_bytes(4, "big") + box

    def put_back(self, ids: Iterable[str]) -> None:
        """Add those of `ids` again that were deleted, as they were; a running server sees it immediately."""
        wanted = [id for id in ids if id in self._records]
        there = self._catalog.get_videos(wanted)
        for id in wanted:
            if id not in there:
                self._add(self._records[id])

    def count_missing(self) -> int:
        """How many of the corpus's videos are not in the index."""
        return len(self.ids) - len(self._catalog.get_videos(self.ids))

    def close(self) -> None:
        """Close the catalog."""
        self._catalog.close()

    def _read_segments(self, video_id: str) -> list[SegmentRecord]:
        infos = self._catalog.video_segments(video_id)
        features = self._catalog.segment_features([info.segment_id for info in infos])
        return [
            SegmentRecord(
                info.start_seconds,
                info.end_seconds,
                features.video[row].astype(np.float32),
                features.frames[row],
                info.num_frames,
                info.frame_times,
            )
            for row, info in enumerate(infos)
        ]

    def _add(self, record: VideoRecord) -> None:
        self._catalog.add_video(
            NewVideo(
                id=record.id,
                content_sha256=record.content_sha256,
                segments=self._segments[record.id],
                duration_seconds=record.duration_seconds,
                width=record.width,
                height=record.height,
                frame_rate=record.frame_rate,
                codec=record.codec,
                size_bytes=record.size_bytes,
                uri=record.uri,
                title=record.title,
                metadata=record.metadata,
                trusted=record.trusted,
            )
        )
