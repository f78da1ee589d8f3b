"""The catalog: one SQLite file that is the truth about an index. Everything else is derived from it."""

from __future__ import annotations

import contextlib
import enum
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from indexer import catalog_videos
from indexer.catalog_checks import (
    check_count,
    check_number,
    check_segments,
    check_sha256,
    check_text,
    check_video_id,
    metadata_to_json,
)
from indexer.catalog_reading import CatalogReader
from indexer.catalog_records import AddOutcome, SegmentRecord, VideoRecord
from indexer.catalog_schema import CATALOG_FILE, create_catalog_file
from indexer.change_log import forget_changes, next_sequence, write_change
from indexer.errors import (
    DuplicateIdError,
    FingerprintMismatchError,
    IndexBusyError,
    IndexExistsError,
    IndexNotFoundError,
    IndexStorageError,
    InvalidRecordError,
)
from indexer.generations import FIRST_GENERATION, directory_of, index_exists, named_generation
from indexer.job_queue import finish_running_job
from indexer.succession import Succession, read_succession, write_succession


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

        fingerprint: of model and sampling, see `indexer.fingerprint`. model_spec: how to load that model
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

        check: look first for what no checksum tells, see `indexer.catalog_soundness` and `write_ahead_log`.
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
        trusted: bool = False,
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
            "duration_seconds": check_number("duration_seconds", duration_seconds),
            "width": check_count("width", width),
            "height": check_count("height", height),
            "frame_rate": check_number("frame_rate", frame_rate),
            "codec": check_text("codec", codec),
            "size_bytes": check_count("size_bytes", size_bytes),
            "partial": int(partial),
            "fraction_read": check_number("fraction_read", fraction_read, most=1.0),
            "trusted": int(trusted),
            "added_at": check_number("added_at", self.clock() if added_at is None else added_at),
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

    def forget_changes(self, before_sequence: int) -> None:
        """Shorten the change log: drop entries below `before_sequence`, always keeping the last one.

        Followers that are further behind get ChangesForgottenError and read everything again.
        """
        with self.connections.transaction() as connection:
            forget_changes(connection, before_sequence)
