"""The catalog: one SQLite file that is the truth about an index. Everything else is derived from it."""

from __future__ import annotations

import enum
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from indexer import catalog_videos
from indexer.catalog_checks import check_segments, check_sha256, check_text, check_video_id, metadata_to_json
from indexer.catalog_connections import ConnectionPool
from indexer.catalog_features import FeatureRows, read_segment_infos
from indexer.catalog_records import (
    AddOutcome,
    Change,
    SegmentFeatures,
    SegmentInfo,
    SegmentRecord,
    VideoRecord,
)
from indexer.catalog_schema import CATALOG_FILE, check_catalog_file, check_facts, create_catalog_file
from indexer.catalog_soundness import check_structure
from indexer.change_log import (
    forget_changes,
    last_sequence,
    next_sequence,
    read_changes,
    read_token,
    write_change,
)
from indexer.errors import (
    DuplicateIdError,
    FingerprintMismatchError,
    IndexDamagedError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidRecordError,
    VideoNotFoundError,
)
from indexer.job_queue import finish_running_job
from indexer.write_ahead_log import check_log


class _Keep(enum.Enum):
    KEEP = enum.auto()


KEEP: Final = _Keep.KEEP
"""Given to `Catalog.update_video` for what stays as it is (None would erase it)."""


class Catalog:
    """Videos, their segments and features, the change log and the jobs of one index directory.

    Made by `create`, `open` or `open_or_create`. Several processes may have the same catalog open, each its
    own object; one object may be used from several threads. Every change is one transaction and on disk when
    the method returns. Methods raise IndexDamagedError where the file is not what was written.
    """

    def __init__(
        self, directory: Path, *, clock: Callable[[], float] = time.time, check: bool = True
    ) -> None:
        """See `open`."""
        self.directory = directory
        self.path = directory / CATALOG_FILE
        self.connections = ConnectionPool(self.path)
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
            check_facts(facts, self.path)
        except (KeyError, ValueError, TypeError) as error:
            self.connections.close()
            raise IndexDamagedError(f"the catalog {self.path} lacks a fact about itself: {error}") from error
        except BaseException:
            self.connections.close()
            raise
        self._features = FeatureRows(self.num_frames, self.embedding_dim)

    # Opening and closing

    @classmethod
    def create(
        cls,
        directory: str | Path,
        *,
        fingerprint: str,
        model_spec: str,
        embedding_dim: int,
        num_frames: int,
        sampling_json: str,
    ) -> Self:
        """An empty catalog in `directory`, made if absent. Raises IndexExistsError where one is there.

        fingerprint: of model and sampling, see `indexer.fingerprint`. model_spec: how to load that model
            again.
        embedding_dim, num_frames: D and F of every feature. sampling_json: from `Sampling.to_json`.
        """
        if embedding_dim < 1 or num_frames < 1:
            raise InvalidRecordError("embedding_dim and num_frames are at least 1")
        facts = {
            "fingerprint": fingerprint,
            "model_spec": model_spec,
            "embedding_dim": str(embedding_dim),
            "num_frames": str(num_frames),
            "sampling_json": sampling_json,
        }
        create_catalog_file(Path(directory), facts)
        return cls(Path(directory))

    @classmethod
    def open(cls, directory: str | Path, *, fingerprint: str | None = None, check: bool = True) -> Self:
        """The catalog in `directory`.

        check: look first for what no checksum tells, see `indexer.catalog_soundness` and `write_ahead_log`.
        Raises IndexNotFoundError, IndexDamagedError, IndexVersionError, and FingerprintMismatchError where a
        `fingerprint` is given and the index has another.
        """
        if not (Path(directory) / CATALOG_FILE).is_file():
            raise IndexNotFoundError(f"there is no index in {directory} (no file {CATALOG_FILE})")
        catalog = cls(Path(directory), check=check)
        if fingerprint is not None and catalog.fingerprint != fingerprint:
            catalog.close()
            raise FingerprintMismatchError(expected=fingerprint, found=catalog.fingerprint)
        return catalog

    @classmethod
    def open_or_create(
        cls,
        directory: str | Path,
        *,
        fingerprint: str,
        model_spec: str,
        embedding_dim: int,
        num_frames: int,
        sampling_json: str,
    ) -> Self:
        """`open` with this fingerprint where there is a catalog, else `create`. Raises what they raise."""
        try:
            return cls.open(directory, fingerprint=fingerprint)
        except IndexNotFoundError:
            pass
        try:
            return cls.create(
                directory,
                fingerprint=fingerprint,
                model_spec=model_spec,
                embedding_dim=embedding_dim,
                num_frames=num_frames,
                sampling_json=sampling_json,
            )
        except IndexExistsError:  # Another process was quicker.
            return cls.open(directory, fingerprint=fingerprint)

    def close(self) -> None:
        """Close all connections; other methods raise RuntimeError from now on."""
        self.connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Changing

    def add_video(
        self,
        *,
        content_sha256: str,
        segments: Sequence[SegmentRecord],
        duration_seconds: float,
        width: int,
        height: int,
        frame_rate: float,
        codec: str,
        size_bytes: int,
        id: str | None = None,
        uri: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        partial: bool = False,
        fraction_read: float = 1.0,
        added_at: float | None = None,
        finish_job: str | None = None,
        job_attempt: int | None = None,
    ) -> AddOutcome:
        """Store a video, wholly or not at all, and log the change. See `VideoRecord` for the fields.

        The same content again changes nothing and answers the id it has (`created` false), whatever `id`
        says.
        id: chosen by the client, or None for a new one.
        added_at: seconds since 1970 of a video that was added elsewhere before, or None for now.
        finish_job: a running job that becomes `done` with this video in the same transaction.
        job_attempt: the job's `attempts` as it was leased; another worker's attempt is then not finished.
        Raises DuplicateIdError (id taken by other content), InvalidRecordError (something cannot be stored),
        LeaseLostError (the job is not running any more; nothing is added).
        """
        check_segments(segments, self.num_frames, self.embedding_dim)
        row = {
            "id": uuid.uuid4().hex if id is None else check_video_id(id),
            "content_sha256": check_sha256(content_sha256),
            "uri": check_text("uri", uri),
            "title": check_text("title", title),
            "metadata": metadata_to_json(metadata),
            "duration_seconds": float(duration_seconds),
            "width": int(width),
            "height": int(height),
            "frame_rate": float(frame_rate),
            "codec": codec,
            "size_bytes": int(size_bytes),
            "partial": int(partial),
            "fraction_read": float(fraction_read),
            "added_at": self.clock() if added_at is None else float(added_at),
        }
        with self.connections.transaction() as connection:
            outcome = self._add_or_find(connection, row, segments)
            if finish_job is not None:
                finish_running_job(
                    connection, finish_job, outcome.video_id, self.clock(), attempt=job_attempt
                )
        return outcome

    def _add_or_find(
        self, connection: sqlite3.Connection, row: Mapping[str, Any], segments: Sequence[SegmentRecord]
    ) -> AddOutcome:
        same = catalog_videos.read_by_sha256(connection, row["content_sha256"])
        if same is not None:
            return AddOutcome(same.id, created=False)
        if catalog_videos.read_by_ids(connection, [row["id"]]):
            raise DuplicateIdError(row["id"])
        number = catalog_videos.insert_video(connection, {**row, "sequence": next_sequence(connection)})
        segment_ids = [self._features.insert(connection, number, segment) for segment in segments]
        write_change(connection, "add", row["id"], segment_ids, self.clock())
        connection.execute(
            "UPDATE totals SET num_videos = num_videos + 1, num_segments = num_segments + ?", (len(segments),)
        )
        return AddOutcome(row["id"], created=True)

    def delete_video(self, video_id: str) -> None:
        """Remove a video, its segments and features; log their ids. Raises VideoNotFoundError."""
        with self.connections.transaction() as connection:
            number = catalog_videos.find_number(connection, video_id)
            rows = connection.execute("SELECT id FROM segments WHERE video_number = ? ORDER BY id", (number,))
            segment_ids = [segment_id for (segment_id,) in rows]
            connection.execute("DELETE FROM videos WHERE number = ?", (number,))
            write_change(connection, "delete", video_id, segment_ids, self.clock())
            connection.execute(
                "UPDATE totals SET num_videos = num_videos - 1, num_segments = num_segments - ?",
                (len(segment_ids),),
            )

    def update_video(
        self,
        video_id: str,
        *,
        title: str | _Keep | None = KEEP,
        uri: str | _Keep | None = KEEP,
        metadata: Mapping[str, Any] | _Keep | None = KEEP,
    ) -> VideoRecord:
        """Replace the given fields (None erases), log the change and return the new record.

        Raises VideoNotFoundError, InvalidRecordError.
        """
        values: dict[str, str | None] = {}
        if title is not KEEP:
            values["title"] = check_text("title", title)
        if uri is not KEEP:
            values["uri"] = check_text("uri", uri)
        if metadata is not KEEP:
            values["metadata"] = metadata_to_json(metadata)
        with self.connections.transaction() as connection:
            number = catalog_videos.find_number(connection, video_id)
            if values:
                catalog_videos.update_video(connection, number, values)
                write_change(connection, "update", video_id, (), self.clock())
        return self.get_video(video_id)

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

    def list_videos(self, limit: int = 100, after: int | None = None) -> list[VideoRecord]:
        """At most `limit` videos, the newest first.

        after: `sequence` of the last video of the page before, for the next page; videos added or deleted in
        between shift nothing.
        """
        with self.connections.reading() as connection:
            return catalog_videos.read_page(connection, limit, after)

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

    def forget_changes(self, before_sequence: int) -> None:
        """Shorten the change log: drop entries below `before_sequence`, always keeping the last one.

        Followers that are further behind get ChangesForgottenError and read everything again.
        """
        with self.connections.transaction() as connection:
            forget_changes(connection, before_sequence)

    # Segments

    def segment_features(self, segment_ids: Sequence[int] | NDArray[np.int64]) -> SegmentFeatures:
        """Features of `segment_ids`, in the order asked; ids that do not exist (any more) are left out."""
        with self.connections.reading() as connection:
            return self._features.by_ids(connection, [int(segment_id) for segment_id in segment_ids])

    def video_features(
        self, segment_ids: Sequence[int] | NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of those of `segment_ids` that exist, ids
        ascending."""
        with self.connections.reading() as connection:
            return self._features.video_features_by_ids(connection, list(map(int, segment_ids)))

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
