"""What can be read from a catalog: facts about itself, videos, segments and their features, changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer import catalog_videos
from indexer.catalog_connections import ConnectionPool
from indexer.catalog_features import FeatureRows, read_segment_infos
from indexer.catalog_records import Change, SegmentFeatures, SegmentInfo, VideoRecord
from indexer.catalog_schema import CATALOG_FILE, LEFT_BEHIND, check_catalog_file, check_facts
from indexer.catalog_soundness import check_structure
from indexer.change_log import last_sequence, read_changes, read_token
from indexer.errors import IndexDamagedError, VideoNotFoundError
from indexer.filters import Filter
from indexer.generations import FIRST_GENERATION, directory_of
from indexer.parallel_reading import ParallelReading
from indexer.succession import LeftBehind, Succession, read_succession
from indexer.write_ahead_log import check_log


class CatalogReader:
    """The reading half of `indexer.catalog.Catalog`, which is what others use.

    index_directory: the whole index. generation: which of its generations this is. directory: where the files
    of that generation lie, the catalog at `path` among them. left_behind: what the generation that took this
    one's place lacks, as of when the catalog was opened.
    """

    def __init__(
        self,
        index_directory: Path,
        generation: int = FIRST_GENERATION,
        *,
        clock: Callable[[], float] = time.time,
        check: bool = True,
        although_superseded: bool = False,
    ) -> None:
        """See `Catalog.open` and `Catalog.open_generation`."""
        self.index_directory = index_directory
        self.generation = generation
        self.directory = directory_of(index_directory, generation)
        self.path = self.directory / CATALOG_FILE
        self.connections = ConnectionPool(self.path, although_superseded=although_superseded)
        self._parallel = ParallelReading(self.connections)
        self.clock = clock
        if check:
            check_log(self.path)  # Before SQLite, which would cut off what is damaged.
        try:
            with self.connections.snapshot() as connection:
                check_catalog_file(connection, self.path)
                facts = dict(connection.execute("SELECT name, value FROM facts"))
                if check:
                    check_structure(connection, self.path)
            self.fingerprint: str = facts["fingerprint"]
            self.model_spec: str = facts["model_spec"]
            self.sampling_json: str = facts["sampling_json"]
            self.embedding_dim = int(facts["embedding_dim"])
            self.num_frames = int(facts["num_frames"])
            self.created_at = float(facts["created_at"])
            left_behind = facts.get(LEFT_BEHIND)
            self.left_behind = LeftBehind() if left_behind is None else LeftBehind.from_json(left_behind)
            check_facts(facts, self.path)
            self._features = FeatureRows(self.num_frames, self.embedding_dim, self.fingerprint)
        except (KeyError, ValueError, TypeError) as error:
            self.connections.close()
            raise IndexDamagedError(f"the catalog {self.path} lacks a fact about itself: {error}") from error
        except BaseException:
            self.connections.close()
            raise

    def close(self) -> None:
        """Close all connections; other methods raise RuntimeError from now on."""
        self.connections.close()
        self._parallel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def succession(self) -> Succession | None:
        """Which generation takes the changes instead of this one; None where this is the current one."""
        with self.connections.reading() as connection:
            return read_succession(connection)

    # Videos

    def get_video(self, video_id: str) -> VideoRecord:
        """The record of a video. Raises VideoNotFoundError."""
        records = self.get_videos([video_id])
        if video_id not in records:
            raise VideoNotFoundError(video_id)
        return records[video_id]

    def get_videos(self, video_ids: Sequence[str]) -> dict[str, VideoRecord]:
        """Records of those of `video_ids` that exist, by id."""
        with self.connections.reading() as connection:
            return catalog_videos.read_by_ids(connection, video_ids)

    def find_by_sha256(self, content_sha256: str) -> VideoRecord | None:
        """The video with these bytes, or None."""
        with self.connections.reading() as connection:
            return catalog_videos.read_by_sha256(connection, content_sha256)

    def list_videos(
        self, limit: int = 100, after: int | None = None, *, chosen: Filter | None = None
    ) -> list[VideoRecord]:
        """At most `limit` videos, the newest first; of those that `chosen` lets through.

        after: `sequence` of the last video of the page before, for the next page; videos added or deleted in
        between shift nothing.
        """
        with self.connections.reading() as connection:
            return catalog_videos.read_page(connection, limit, after, chosen)

    def video_ids(self) -> list[str]:
        """Ids of all videos, in the order in which they were added."""
        with self.connections.reading() as connection:
            return [video_id for (video_id,) in connection.execute("SELECT id FROM videos ORDER BY sequence")]

    @property
    def num_videos(self) -> int:
        """Videos in the catalog."""
        return self.totals()[0]

    @property
    def num_segments(self) -> int:
        """Segments in the catalog."""
        return self.totals()[1]

    def totals(self) -> tuple[int, int]:
        """(num_videos, num_segments) of one moment."""
        with self.connections.reading() as connection:
            row = connection.execute("SELECT num_videos, num_segments FROM totals").fetchone()
        if row is None or None in row:
            raise IndexDamagedError(f"the catalog {self.path} is damaged: it has no totals; run rebuild")
        return row[0], row[1]

    @property
    def size_bytes(self) -> int:
        """Size of the file on disk, with the part of it that is still in the write-ahead log."""
        log = self.path.with_name(f"{self.path.name}-wal")
        return self.path.stat().st_size + (log.stat().st_size if log.exists() else 0)

    # Changes

    @property
    def sequence(self) -> int:
        """Number of the last change; 0 before the first."""
        with self.connections.reading() as connection:
            return last_sequence(connection)

    def change_token(self, sequence: int) -> str | None:
        """Random text of this change, None where the log does not hold it; "" for 0, before the first change.

        Whoever keeps something made at a sequence number keeps the token too: a catalog restored from a
        backup may come to the same number by other changes.
        """
        with self.connections.reading() as connection:
            return read_token(connection, sequence)

    def changes_since(self, sequence: int, limit: int = 10_000) -> list[Change]:
        """At most `limit` changes after `sequence`, in order; call again with the last one's for more.

        Raises ChangesForgottenError where the log does not reach back to `sequence`, or never came to it.
        """
        with self.connections.reading() as connection:
            return read_changes(connection, sequence, limit)

    # Segments

    def segment_features(self, segment_ids: Sequence[int] | NDArray[np.int64]) -> SegmentFeatures:
        """Features of `segment_ids`, in the order asked; ids that do not exist (any more) are left out."""
        asked = list(map(int, segment_ids))
        return self._features.features_of(self._parallel.rows(self._features.rows_by_ids, asked), asked)

    def video_features(
        self, segment_ids: Sequence[int] | NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of those of `segment_ids` that exist, ids
        ascending."""
        rows = self._parallel.rows(self._features.video_rows_by_ids, list(map(int, segment_ids)))
        return self._features.video_features_of(rows)

    def segment_infos(self, segment_ids: Sequence[int] | NDArray[np.int64]) -> dict[int, SegmentInfo]:
        """Those of `segment_ids` that exist, without features, by segment id."""
        with self.connections.reading() as connection:
            infos = read_segment_infos(connection, segment_ids=list(map(int, segment_ids)))
        return {info.segment_id: info for info in infos}

    def video_segments(self, video_id: str) -> list[SegmentInfo]:
        """Segments of a video in their order, without features. Raises VideoNotFoundError."""
        with self.connections.reading() as connection:
            infos = read_segment_infos(connection, video_id=video_id)
        if not infos:
            raise VideoNotFoundError(video_id)
        return infos

    def iterate_features(self, block_size: int = 1024) -> Iterator[SegmentFeatures]:
        """All segments in blocks of at most `block_size`, ids ascending.

        Each block is read when it is asked for, so what is added or deleted meanwhile may or may not come.
        """
        last = 0
        while True:
            with self.connections.reading() as connection:
                block = self._features.after(connection, last, block_size)
            if not len(block):
                return
            last = int(block.segment_ids[-1])
            yield block

    def iterate_video_features(
        self, block_size: int = 8192
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Ids int64 [N] and video features float32 [N, D] of all segments, in the manner of
        `iterate_features`."""
        last = 0
        while True:
            with self.connections.reading() as connection:
                ids, features = self._features.video_features_after(connection, last, block_size)
            if not len(ids):
                return
            last = int(ids[-1])
            yield ids, features
