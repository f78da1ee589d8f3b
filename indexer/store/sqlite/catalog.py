"""The catalog: one SQLite file that is the truth about an index. Everything else is derived from it.

What can be read from a catalog: facts about itself, videos, segments and their features, changes.

Changing what a person says about a video: a merge patch (RFC 7396), as one transaction.

Which segments belong to which videos, without reading anything else of them.
"""

from __future__ import annotations

import contextlib
import enum
import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from indexer.errors import (
    DuplicateIdError,
    FingerprintMismatchError,
    IndexBusyError,
    IndexDamagedError,
    IndexExistsError,
    IndexNotFoundError,
    IndexStorageError,
    InvalidRecordError,
    VideoNotFoundError,
)
from indexer.store.filters import Filter
from indexer.store.records import (
    AddOutcome,
    Change,
    NewVideo,
    SegmentFeatures,
    SegmentInfo,
    SegmentRecord,
    VideoRecord,
    check_count,
    check_number,
    check_segments,
    check_sha256,
    check_text,
    check_video_id,
    metadata_to_json,
)
from indexer.store.sqlite import video_rows as catalog_videos
from indexer.store.sqlite.changes import (
    forget_changes,
    last_sequence,
    next_sequence,
    read_changes,
    read_token,
    write_change,
)
from indexer.store.sqlite.connections import ConnectionPool, ParallelReading, Transaction
from indexer.store.sqlite.features import FeatureRows, read_segment_infos
from indexer.store.sqlite.generations import (
    FIRST_GENERATION,
    directory_of,
    generations,
    index_exists,
    named_generation,
)
from indexer.store.sqlite.integrity import check_structure
from indexer.store.sqlite.jobs import copy_jobs
from indexer.store.sqlite.schema import (
    CATALOG_FILE,
    check_catalog_file,
    check_facts,
    create_catalog_file,
)
from indexer.store.sqlite.superseded import Succession, read_succession, write_succession
from indexer.store.sqlite.write_ahead_log import check_log
from model.atomic_files import synchronize_directory


class CatalogReader:
    """The reading half of `indexer.store.sqlite.catalog.Catalog`, which is what others use.

    index_directory: the whole index. generation: which of its generations this is. directory: where the files
    of that generation lie, the catalog at `path` among them.
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

    def segment_ids(self) -> NDArray[np.int64]:
        """Ids of all segments, int64, ascending."""
        with self.connections.reading() as connection:
            rows = connection.execute("SELECT id FROM segments ORDER BY id").fetchall()
        return np.array(rows, np.int64).ravel()

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


class _Keep(enum.Enum):
    KEEP = enum.auto()


KEEP: Final = _Keep.KEEP
"""Given to `Catalog.update_video` for what stays as it is (None would erase it)."""


class Catalog(CatalogReader):
    """Videos, their segments and features, the change log and the jobs of one index directory.

    Made by `create`, `open` or `open_or_create`. Several processes may have the same catalog open, each its
    own object; one object may be used from several threads. Every change is one transaction and on disk when
    the method returns. Methods raise IndexDamagedError where the file is not what was written, and those that
    change something IndexSupersededError where another generation of the index has become the current one.
    """

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
        generation: int = FIRST_GENERATION,
        successor_of: int | None = None,
    ) -> Self:
        """An empty catalog in `directory`, made if absent. Raises IndexExistsError where one is there.

        fingerprint: of model and sampling, see `indexer.ingest.encoding`. model_spec: how to load that model
            again.
        embedding_dim, num_frames: D and F of every feature. sampling_json: from `Sampling.to_json`.
        generation, successor_of: of a catalog that shall take the place of another one. Until it does, only
            this object, and what `open_generation` gives for that purpose, can change it.
        """
        if embedding_dim < 1 or num_frames < 1:
            raise InvalidRecordError("embedding_dim and num_frames are at least 1")
        check_sha256(fingerprint, "fingerprint")
        if successor_of is None and index_exists(Path(directory)):
            raise IndexExistsError(f"an index is already in {directory}")
        facts = {
            "fingerprint": fingerprint,
            "model_spec": model_spec,
            "embedding_dim": str(embedding_dim),
            "num_frames": str(num_frames),
            "sampling_json": sampling_json,
        }
        create_catalog_file(directory_of(Path(directory), generation), facts, successor_of)
        return cls(Path(directory), generation, although_superseded=successor_of is not None)

    @classmethod
    def open(cls, directory: str | Path, *, fingerprint: str | None = None, check: bool = True) -> Self:
        """The current catalog of the index in `directory`.

        check: look first for what no checksum tells, see `indexer.store.sqlite.integrity` and
        `write_ahead_log`.
        Raises IndexNotFoundError, IndexDamagedError, IndexVersionError, and FingerprintMismatchError where a
        `fingerprint` is given and the index has another.
        """
        catalog = cls._open_current(Path(directory), check)
        if fingerprint is not None and catalog.fingerprint != fingerprint:
            catalog.close()
            raise FingerprintMismatchError(expected=fingerprint, found=catalog.fingerprint)
        return catalog

    @classmethod
    def _open_current(cls, index_directory: Path, check: bool) -> Self:
        number, epoch = named_generation(index_directory), -1
        while True:
            catalog = cls(index_directory, number, check=check)
            succession = catalog.succession
            if succession is None:
                return catalog
            if succession.epoch <= epoch:
                catalog.take_over(succession)
                return catalog
            catalog.close()
            number, epoch = succession.generation, succession.epoch

    @classmethod
    def open_generation(
        cls, directory: str | Path, generation: int, *, although_superseded: bool = False
    ) -> Self:
        """A catalog of the index in `directory`, the current one or not.

        although_superseded: whether it can be changed while another one is current; for whoever brings it up
        to date. Raises IndexNotFoundError, IndexDamagedError, IndexVersionError.
        """
        path = directory_of(Path(directory), generation) / CATALOG_FILE
        if not path.is_file():
            raise IndexNotFoundError(f"the index in {directory} has no generation {generation}")
        return cls(Path(directory), generation, although_superseded=although_superseded)

    def take_over(self, outdated: Succession) -> None:
        """Take away the row that names a successor, now that this generation is the current one (again).

        Does nothing where the row is not `outdated`. Where nothing can be written now, whoever opens the
        index next does it.
        """
        with (
            contextlib.suppress(IndexBusyError, IndexStorageError),
            self.connections.transaction(although_superseded=True) as connection,
        ):
            if read_succession(connection) == outdated:
                write_succession(connection, None)

    def hand_over(self, successor: Self, transaction: Transaction) -> int:
        """Make another generation of the index the current one; returns how many jobs were carried over.

        The successor gets all jobs. The commit is the switch: from then on this catalog takes no changes, and
        `open` gives the successor.

        Args:
            successor: opened with `although_superseded`.
            transaction: of this catalog, so that no other process can change it meanwhile.
        """
        with successor.connections.transaction() as into:
            num_jobs = copy_jobs(transaction.connection, into)
        # The commit must not reach the disk before the files that it leads to.
        for directory in (successor.directory, successor.directory.parent, self.index_directory):
            synchronize_directory(directory)
        epochs = [row.epoch for row in read_successions(self.index_directory).values() if row is not None]
        row = Succession(successor.generation, 1 + max([0, *epochs]))
        write_succession(transaction.connection, row)
        return num_jobs

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

    # Changing

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Several changes, of videos and of jobs, as one: all are on disk at the end of the block, or none
        where it raises.

        Raises IndexSupersededError where another generation of the index is the current one.
        """
        with self.connections.transaction() as connection:
            yield Transaction(connection)

    def add_video(self, video: NewVideo, transaction: Transaction | None = None) -> AddOutcome:
        """Store a video, wholly or not at all, and log the change.

        The same content again changes nothing and answers the id it has (`created` false), whatever
        `video.id` says.
        transaction: from `transaction`, for changes that belong together; its own otherwise.
        Raises DuplicateIdError (id taken by other content), InvalidRecordError (something cannot be stored).
        """
        check_segments(video.segments, self.num_frames, self.embedding_dim)
        row = {
            "id": uuid.uuid4().hex if video.id is None else check_video_id(video.id),
            "content_sha256": check_sha256(video.content_sha256),
            "uri": check_text("uri", video.uri),
            "title": check_text("title", video.title),
            "metadata": metadata_to_json(video.metadata),
            "duration_seconds": check_number("duration_seconds", video.duration_seconds),
            "width": check_count("width", video.width),
            "height": check_count("height", video.height),
            "frame_rate": check_number("frame_rate", video.frame_rate),
            "codec": check_text("codec", video.codec),
            "size_bytes": check_count("size_bytes", video.size_bytes),
            "partial": int(video.partial),
            "fraction_read": check_number("fraction_read", video.fraction_read, most=1.0),
            "trusted": int(video.trusted),
            "added_at": check_number("added_at", self.clock() if video.added_at is None else video.added_at),
        }
        with self.connections.joined(transaction) as connection:
            return self._add_or_find(connection, row, video.segments)

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

    def forget_changes(self, before_sequence: int) -> None:
        """Shorten the change log: drop entries below `before_sequence`, always keeping the last one.

        Followers that are further behind get ChangesForgottenError and read everything again.
        """
        with self.connections.transaction() as connection:
            forget_changes(connection, before_sequence)


def read_successions(index_directory: Path) -> dict[int, Succession | None]:
    """For each generation of an index, which one takes the changes instead. Raises IndexDamagedError."""
    successions = {}
    for number in generations(index_directory):
        with Catalog(index_directory, number, check=False) as catalog:
            successions[number] = catalog.succession
    return successions


Metadata = Mapping[str, Any]


def patch_video(
    catalog: Catalog,
    video_id: str,
    patch: Mapping[str, Any],
    *,
    check: Callable[[Metadata], Metadata] = lambda merged: merged,
) -> VideoRecord:
    """Apply a merge patch to the title and metadata of a video; returns the record as it then is.

    Read, merged and written in one transaction: of two patches at once neither undoes the other. Logged as an
    `update`, unless nothing changes.
    patch: `title` and `metadata`, or one of them; None for a title erases it, for metadata makes it empty.
    check: called with the metadata to be stored; what it raises leaves the video as it was.
    Raises VideoNotFoundError, InvalidRecordError.
    """
    if unknown := patch.keys() - {"title", "metadata"}:
        raise InvalidRecordError(f"{', '.join(sorted(unknown))} cannot be patched")
    if not isinstance(patch.get("title"), str | None):
        raise InvalidRecordError("title must be a text or None")
    if not isinstance(patch.get("metadata"), Mapping | None):
        raise InvalidRecordError("metadata must be an object or None")
    with catalog.connections.transaction() as connection:
        record = catalog_videos.read_by_ids(connection, [video_id]).get(video_id)
        if record is None:
            raise VideoNotFoundError(video_id)
        values: dict[str, str | None] = {}
        if "title" in patch and patch["title"] != record.title:
            values["title"] = check_text("title", patch["title"])
        if "metadata" in patch:
            of_metadata = patch["metadata"]
            merged = {} if of_metadata is None else merge_patch(record.metadata, of_metadata)
            as_json = metadata_to_json(check(merged))
            if as_json != metadata_to_json(record.metadata):
                values["metadata"] = as_json
        if values:
            number = catalog_videos.find_number(connection, video_id)
            catalog_videos.update_video(connection, number, values)
            write_change(connection, "update", video_id, (), catalog.clock())
            record = catalog_videos.read_by_ids(connection, [video_id])[video_id]
    return record


def merge_patch(target: Any, patch: Metadata) -> dict[str, Any]:
    """`target` with the members of `patch` set, those that it says null removed, objects merged likewise
    (RFC 7396 section 2). Neither is changed."""
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = merge_patch(merged.get(name), value)
        else:
            merged[name] = value
    return merged


Owners = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Segment ids int64 [N], ascending, and the catalog's number of each one's video."""


def segments_of_videos(catalog: Catalog, video_numbers: NDArray[np.int64]) -> Owners:
    """All segments of these videos."""
    return _read(catalog, "video_number", video_numbers)


def owners_of_segments(catalog: Catalog, segment_ids: NDArray[np.int64]) -> Owners:
    """Those of these segments that exist."""
    return _read(catalog, "id", segment_ids)


def _read(catalog: Catalog, column: str, values: NDArray[np.int64]) -> Owners:
    with catalog.connections.reading() as connection:
        rows = connection.execute(
            "SELECT id, video_number FROM segments"
            f" WHERE {column} IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps(values.tolist()),),
        ).fetchall()
    table = np.array(rows, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
