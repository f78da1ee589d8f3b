"""The catalog: one SQLite file that is the truth about an index. Everything else is derived from it."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, Unpack

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
    KeptOutError,
    VideoNotFoundError,
)
from indexer.store.checksums import DamagedRows, checksum_of_row, damages_of_rows, facts_of_rows
from indexer.store.filters import Condition, Filter
from indexer.store.records import (
    FIRST_GENERATION,
    AddOutcome,
    Change,
    Damage,
    IndexFacts,
    KeptOut,
    Matches,
    NewVideo,
    RefusedVideo,
    SegmentFeatures,
    SegmentInfo,
    SegmentRecord,
    SegmentSpans,
    Sort,
    StoreState,
    Successor,
    VideoRecord,
    WithFacts,
    WordMatches,
    check_segments,
    check_sha256,
)
from indexer.store.sqlite.changes import (
    damaged_changes,
    forget_changes,
    next_sequence,
    read_changes,
    read_token,
    write_change,
)
from indexer.store.sqlite.connections import (
    VALUES_AT_ONCE,
    ConnectionPool,
    PinnedConnection,
    Transaction,
    read_successor,
    translated,
    write_successor,
)
from indexer.store.sqlite.disk import keep_reserve
from indexer.store.sqlite.features import (
    FeatureRows,
    read_infos_of_video,
    read_segment_infos,
    read_segments_and_videos,
)
from indexer.store.sqlite.files import FileTable, KeptOutTable, carry_over, damaged_kept_out, find_kept_out
from indexer.store.sqlite.filters import compile_filter, matching_segments
from indexer.store.sqlite.generations import (
    directory_of,
    generations,
    index_exists,
    named_generation,
)
from indexer.store.sqlite.integrity import check_structure, inconsistencies, is_checked
from indexer.store.sqlite.jobs import JobQueue
from indexer.store.sqlite.schema import (
    CATALOG_FILE,
    check_format,
    create_catalog_file,
)
from indexer.store.sqlite.words import (
    TranscriptTable,
    add_words,
    damaged_transcripts,
    damaged_words,
    fill_words,
    find_words,
    forget_words,
    is_filled,
    passage_starts,
    rebuild_words,
    update_words,
)
from indexer.store.text import nfc
from indexer.store.transcripts import Transcript, check_transcripts
from indexer.store.video_rows import (
    COLUMNS,
    URI_POSITION,
    Metadata,
    Values,
    VideoChanges,
    check_patch,
    row_of_new_video,
    values_of_changes,
    values_of_patch,
    video_record,
)
from model.atomic_files import fsync_directory

logger = logging.getLogger(__name__)

_STATE: Final = (
    "SELECT num_videos, num_segments, sequence, token FROM totals"
    " LEFT JOIN (SELECT sequence, token FROM changes ORDER BY sequence DESC LIMIT 1)"
)
"""Of one row: the totals, with the last change where there is one."""

Owners = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Segment ids int64 [N], ascending, and the catalog's number of each one's video."""

_REPORT_SECONDS: Final = 5.0


class Catalog(WithFacts):
    """Videos, their segments and features, the change log and the jobs of one index directory.

    Made by `create`, `open` or `open_or_create`. Several processes may have the same catalog open, each its
    own object; one object may be used from several threads. Every change is one transaction and on disk when
    the method returns. Methods raise IndexDamagedError where the file is not what was written, and those that
    change something IndexSupersededError where another generation of the index has become the current one.

    Attributes:
        address: what opens it, its directory.
        index_directory: the whole index.
        generation: which of its generations this is.
        directory: where the files of that generation lie, the catalog at `path` among them.
        facts: what the index is.
        clock: gives the time of changes, in seconds since 1970.
        filter_limit_seconds: how long it may take to find what a filter matches, then QueryTimeoutError.
        silence_limit_seconds: of other stores; a file is never silent.
    """

    # Opening and closing

    def __init__(
        self, index_directory: Path, generation: int = FIRST_GENERATION, *, although_superseded: bool = False
    ) -> None:
        """Connect to a catalog without looking at it; for the class methods below."""
        self.address: str | Path = index_directory
        self.index_directory = index_directory
        self.generation = generation
        self.directory = directory_of(index_directory, generation)
        self.path = self.directory / CATALOG_FILE
        self.connections = ConnectionPool(self.path, although_superseded=although_superseded)
        self.clock: Callable[[], float] = time.time
        self.filter_limit_seconds = math.inf
        self.silence_limit_seconds = math.inf

    def _read_facts(self, check: bool) -> Self:
        """Make sure that this is a catalog, read what it says of itself, and where `check` its structure."""
        try:
            with self.connections.reading() as connection:
                check_format(connection, self.path)
            with self.connections.snapshot() as connection:
                facts = dict(connection.execute("SELECT name, value FROM facts"))
                if check:
                    check_structure(connection, self.path)
            self.facts, self.created_at = facts_of_rows(facts, self.path)
            self._features = FeatureRows(self.num_frames, self.embedding_dim, self.fingerprint)
        except BaseException:
            self.connections.close()
            raise
        # A damaged record might fulfil a filter, or not, without ever being read again: of a catalog that is
        # small enough all are checked before the first filter is asked.
        self._must_check_videos = is_checked(self.path)
        self._fill_words()
        return self

    def _fill_words(self) -> None:
        """Index the words of videos from before there was that index, block by block: what a process that was
        ended has done stays done, and others write in between."""
        with self.connections.reading() as connection:
            if is_filled(connection) or self.is_read_only:
                return
        started = reported = time.monotonic()
        logger.warning("%s: indexing the words of titles and metadata, once", self.path)
        try:
            while True:
                with self.connections.transaction(although_superseded=True) as connection:
                    progress = fill_words(connection)
                if progress is None:
                    break
                if time.monotonic() - reported >= _REPORT_SECONDS:
                    reported = time.monotonic()
                    logger.warning("%s: words of %d of %d videos", self.path, *progress)
        except (IndexBusyError, IndexStorageError) as error:
            logger.warning("%s: the next process that opens it goes on indexing words: %s", self.path, error)
            return
        logger.warning("%s: words indexed in %.0f s", self.path, time.monotonic() - started)

    @classmethod
    def create(
        cls,
        directory: str | Path,
        facts: IndexFacts,
        *,
        generation: int = FIRST_GENERATION,
        successor_of: int | None = None,
    ) -> Self:
        """An empty catalog.

        Args:
            directory: of the index; made if absent.
            facts: what the index shall be.
            generation, successor_of: of a catalog that shall supersede another one. Until it does, only this
                object, and what `open_generation` gives for that purpose, can change it.

        Raises:
            IndexExistsError: an index is there.
            InvalidRecordError: the facts are not possible.
        """
        if facts.embedding_dim < 1 or facts.num_frames < 1:
            raise InvalidRecordError("embedding_dim and num_frames are at least 1")
        check_sha256(facts.fingerprint, "fingerprint")
        if successor_of is None and index_exists(Path(directory)):
            raise IndexExistsError(f"an index is already in {directory}")
        create_catalog_file(directory_of(Path(directory), generation), facts, successor_of)
        catalog = cls(Path(directory), generation, although_superseded=successor_of is not None)
        return catalog._read_facts(check=True)

    @classmethod
    def open(cls, directory: str | Path, *, fingerprint: str | None = None, check: bool = True) -> Self:
        """The current catalog of an index.

        Args:
            directory: of the index.
            fingerprint: the one that the index must have, or None for any.
            check: look first for what no row's checksum shows, see `indexer.store.sqlite.integrity`.

        Raises:
            IndexNotFoundError: there is no index.
            IndexDamagedError: it is not what was written.
            IndexVersionError: it is of a format that this version does not read.
            FingerprintMismatchError: it has another fingerprint.
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
            catalog = cls(index_directory, number)._read_facts(check)
            successor = catalog.superseded_by
            if successor is None:
                return catalog
            if successor.epoch <= epoch:
                # Both rows are there: the switch that came last was cut short before it took this one away.
                catalog.take_over(successor)
                return catalog
            catalog.close()
            number, epoch = successor.generation, successor.epoch

    @classmethod
    def open_generation(
        cls,
        directory: str | Path,
        generation: int,
        *,
        although_superseded: bool = False,
        check: bool = True,
    ) -> Self:
        """A catalog of an index, the current one or not.

        Args:
            directory: of the index.
            generation: which one.
            although_superseded: whether it can be changed while another one is current; for the process that
                brings it up to date.
            check: as for `open`.

        Raises:
            IndexNotFoundError, IndexDamagedError, IndexVersionError: as `open` does.
        """
        catalog = cls(Path(directory), generation, although_superseded=although_superseded)
        if not catalog.path.is_file():
            raise IndexNotFoundError(f"the index in {directory} has no generation {generation}")
        return catalog._read_facts(check)

    @classmethod
    def open_or_create(cls, directory: str | Path, facts: IndexFacts) -> Self:
        """`open` with the fingerprint of `facts` where there is a catalog, else `create`; raises what they
        raise."""
        try:
            return cls.open(directory, fingerprint=facts.fingerprint)
        except IndexNotFoundError:
            pass
        try:
            return cls.create(directory, facts)
        except IndexExistsError:  # Another process was quicker.
            return cls.open(directory, fingerprint=facts.fingerprint)

    def close(self) -> None:
        """Close all connections; other methods raise RuntimeError from now on."""
        self.connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Self]:
        """This catalog as it is at one moment, to be read by one thread until the end of the block.

        It holds up no writer, but the write-ahead log grows until it ends.
        """
        with self.connections.snapshot() as connection:
            pinned = copy.copy(self)
            pinned.connections = PinnedConnection(self.path, connection)
            yield pinned

    # What it is

    @property
    def size_bytes(self) -> int:
        """Size of the file on disk, with the part of it that is still in the write-ahead log."""
        log = self.path.with_name(f"{self.path.name}-wal")
        return self.path.stat().st_size + (log.stat().st_size if log.exists() else 0)

    @property
    def jobs(self) -> JobQueue:
        """The requests to add videos to this index."""
        return JobQueue(self)

    @property
    def files(self) -> FileTable:
        """What is known of the files of this index."""
        return FileTable(self)

    @property
    def kept_out(self) -> KeptOutTable:
        """The content that was deleted on purpose and does not come in again until it is let in."""
        return KeptOutTable(self)

    @property
    def transcripts(self) -> TranscriptTable:
        """What is said in the videos, line by line."""
        return TranscriptTable(self)

    @property
    def is_read_only(self) -> bool:
        """Whether it lies on a file system that takes no writes: it is searched, and changes are refused."""
        return self.connections.is_read_only

    @property
    def is_available(self) -> bool:
        """True: it is read in this process."""
        return True

    @property
    def stale_seconds(self) -> None:
        """None: what is read is what is there."""

    @property
    def needs_copies(self) -> bool:
        """False: nothing is read from a copy."""
        return False

    def must_keep_rows(self, sequence: int) -> bool:
        """False: nothing is read from a copy."""
        return False

    def keep_rows(self) -> None:
        """Nothing, see `must_keep_rows`."""

    def keep_reserve(self) -> None:
        """Keep some space, so that videos can be deleted on a full disk. Called by all that adds videos."""
        if not self.is_read_only:
            keep_reserve(self.path)

    # Generations

    @property
    def superseded_by(self) -> Successor | None:
        """Which generation takes the changes instead of this one; None where this is the current one."""
        with self.connections.reading() as connection:
            return read_successor(connection)

    def generations(self) -> list[int]:
        """Numbers of the generations of the index, ascending."""
        return generations(self.index_directory)

    def carry_over(self, successor: Self, transaction: Transaction) -> int:
        """Bring jobs, known files and kept-out content to another generation, in place of what is there.

        Running jobs are queued there.

        Args:
            successor: opened with `although_superseded`.
            transaction: of this catalog, so that no job comes meanwhile.

        Returns:
            How many jobs there are.
        """
        with successor.transaction() as into:
            num_jobs = successor.jobs.replace_all(transaction, into)
            carry_over(transaction, into)
        return num_jobs

    def hand_over(self, successor: Self, transaction: Transaction) -> None:
        """Make another generation of the index the current one.

        The commit is the switch: from then on this catalog takes no changes, and `open` gives the successor.

        Args:
            successor: opened with `although_superseded`.
            transaction: of this catalog, so that no other process can change it meanwhile.
        """
        # The commit must not reach the disk before the files that it leads to.
        for directory in (successor.directory, successor.directory.parent, self.index_directory):
            fsync_directory(directory)
        epochs = [row.epoch for row in read_successors(self.index_directory).values() if row is not None]
        row = Successor(successor.generation, 1 + max([0, *epochs]))
        write_successor(transaction.connection, row)

    def take_over(self, outdated: Successor) -> None:
        """Take away the row that names a successor, now that this generation is the current one (again).

        Does nothing where the row is not `outdated`. Where nothing can be written now, the next process that
        opens the index does it.
        """
        with (
            contextlib.suppress(IndexBusyError, IndexStorageError),
            self.connections.transaction(although_superseded=True) as connection,
        ):
            if read_successor(connection) == outdated:
                write_successor(connection, None)

    # Changing videos

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Several changes, of videos and of jobs, as one: all are on disk at the end of the block, or none
        where it raises.

        Raises:
            IndexSupersededError: another generation of the index is the current one.
        """
        with self.connections.transaction() as connection:
            yield Transaction(connection)

    def add_video(self, video: NewVideo, transaction: Transaction | None = None) -> AddOutcome:
        """Store a video, wholly or not at all, and log the change.

        The same content again changes nothing and answers the id it has (`created` false), whatever
        `video.id` says.

        Args:
            video: with its segments.
            transaction: from `transaction`, for changes that belong together; its own otherwise.

        Raises:
            DuplicateIdError: the id is taken by other content.
            KeptOutError: the content was deleted on purpose and is kept out.
            InvalidRecordError: something cannot be stored.
        """
        check_segments(video.segments, self.num_frames, self.embedding_dim)
        row = row_of_new_video(video, self.clock())
        transcripts = check_transcripts(video.transcripts) if video.transcripts else []
        with self.connections.joined(transaction) as connection:
            return self._add_or_find(connection, row, video.segments, transcripts)

    def add_videos(
        self, videos: Sequence[NewVideo], transaction: Transaction | None = None
    ) -> list[AddOutcome | RefusedVideo]:
        """Store several as one change after another, committed together: all that can be, or none.

        Args:
            videos: each as for `add_video`; of the same content or id, the first is taken.
            transaction: from `transaction`, for changes that belong together; its own otherwise.

        Returns:
            What became of each, in their order: instead of being raised, the errors of `add_video`.
        """
        outcomes: list[AddOutcome | RefusedVideo] = []
        with self.connections.joined(transaction) as connection:
            for video in videos:
                try:
                    outcomes.append(self.add_video(video, Transaction(connection)))
                except (DuplicateIdError, InvalidRecordError, KeptOutError) as error:
                    outcomes.append(error)  # Raised before anything of the video is written.
        return outcomes

    def _add_or_find(
        self,
        connection: sqlite3.Connection,
        row: dict[str, Any],
        segments: Sequence[SegmentRecord],
        transcripts: Sequence[Transcript],
    ) -> AddOutcome:
        same = _find_by_sha256(connection, row["content_sha256"])
        if same is not None:
            return AddOutcome(same.id, created=False)
        if (kept_out := find_kept_out(connection, row["content_sha256"])) is not None:
            raise KeptOutError(kept_out.video_id)
        if _records_by_ids(connection, [row["id"]]):
            raise DuplicateIdError(row["id"])
        row["sequence"] = next_sequence(connection)
        values = [row[name] for name in COLUMNS.split(", ")]
        marks = ", ".join("?" * (len(values) + 1))
        number = connection.execute(
            f"INSERT INTO videos ({COLUMNS}, row_crc32) VALUES ({marks})", (*values, checksum_of_row(values))
        ).lastrowid
        assert number is not None
        segment_ids = [self._features.insert(connection, number, segment) for segment in segments]
        add_words(connection, number, row["title"], row["metadata"], transcripts)
        write_change(connection, "add", row["id"], segment_ids, self.clock())
        connection.execute(
            "UPDATE totals SET num_videos = num_videos + 1, num_segments = num_segments + ?", (len(segments),)
        )
        return AddOutcome(row["id"], created=True)

    def delete_video(
        self, video_id: str, transaction: Transaction | None = None, *, keep_out: bool = False
    ) -> None:
        """Remove a video, its segments and features; log their ids.

        Args:
            video_id: of the video.
            transaction: from `transaction`, for changes that belong together; its own otherwise.
            keep_out: whether the same content shall not come in again, see `KeptOut`.

        Raises:
            VideoNotFoundError: there is no such video.
        """
        if transaction is not None:
            self._delete_video(video_id, transaction, keep_out)
        else:
            self.connections.even_if_full(lambda: self._delete_video(video_id, None, keep_out))

    def _delete_video(self, video_id: str, transaction: Transaction | None, keep_out: bool) -> None:
        with self.connections.joined(transaction) as connection:
            video_id = _stored_id(connection, video_id)
            found = connection.execute("SELECT number FROM videos WHERE id = ?", (video_id,)).fetchone()
            if keep_out:
                record = _record_by_id(connection, video_id)
                self.kept_out.add(
                    KeptOut(
                        record.content_sha256,
                        record.id,
                        record.title,
                        record.uri,
                        record.size_bytes,
                        self.clock(),
                    ),
                    Transaction(connection),
                )
            rows = connection.execute("SELECT id FROM segments WHERE video_number = ? ORDER BY id", found)
            segment_ids = [segment_id for (segment_id,) in rows]
            connection.execute("DELETE FROM videos WHERE number = ?", found)
            forget_words(connection, *found)
            write_change(connection, "delete", video_id, segment_ids, self.clock())
            connection.execute(
                "UPDATE totals SET num_videos = num_videos - 1, num_segments = num_segments - ?",
                (len(segment_ids),),
            )

    def update_video(
        self, video_id: str, transaction: Transaction | None = None, **changes: Unpack[VideoChanges]
    ) -> VideoRecord:
        """Replace the given fields (None erases), log the change and return the new record.

        Args:
            video_id: of the video.
            transaction: from `transaction`, for changes that belong together; its own otherwise.
            **changes: the fields and their values.

        Raises:
            VideoNotFoundError: there is no such video.
            InvalidRecordError: a value cannot be stored.
        """
        values = values_of_changes(changes)
        with self.connections.joined(transaction) as connection:
            return self._update(connection, video_id, values)

    def patch_video(
        self,
        video_id: str,
        patch: Metadata,
        *,
        check: Callable[[Metadata], Metadata] = lambda merged: merged,
    ) -> VideoRecord:
        """Apply a merge patch (RFC 7396) to title, metadata and recording time of a video; returns the record
        as it then is.

        Read, merged and written in one transaction: of two concurrent patches neither undoes the other.
        Logged as an `update`, unless nothing changes.

        Args:
            video_id: of the video.
            patch: of `title`, `metadata` and `recorded_at` (seconds since 1970) those that change; None
                erases, and makes metadata empty.
            check: called with the metadata to be stored; what it raises leaves the video as it was.

        Raises:
            VideoNotFoundError: there is no such video.
            InvalidRecordError: the patch is not possible, or its result cannot be stored.
        """
        check_patch(patch)
        with self.connections.transaction() as connection:
            record = _record_by_id(connection, video_id)
            values = values_of_patch(record, patch, check)
            return self._update(connection, video_id, values)

    def _update(self, connection: sqlite3.Connection, video_id: str, values: Values) -> VideoRecord:
        """Set columns of a video, named by us, never by a client, and log it."""
        # Read first: the new checksum must not cover up that another column is not what was written.
        record = _record_by_id(connection, video_id)
        video_id = record.id
        if not values:
            return record
        assignments = ", ".join(f"{name} = ?" for name in values)
        connection.execute(f"UPDATE videos SET {assignments} WHERE id = ?", (*values.values(), video_id))
        row = connection.execute(f"SELECT {COLUMNS} FROM videos WHERE id = ?", (video_id,)).fetchone()
        connection.execute("UPDATE videos SET row_crc32 = ? WHERE id = ?", (checksum_of_row(row), video_id))
        if values.keys() & {"title", "metadata"}:
            found = connection.execute("SELECT number, title, metadata FROM videos WHERE id = ?", (video_id,))
            update_words(connection, *found.fetchone())
        write_change(connection, "update", video_id, (), self.clock())
        return _record_by_id(connection, video_id)

    # Reading videos

    def get_video(self, video_id: str) -> VideoRecord:
        """The record of a video. Raises VideoNotFoundError."""
        with self.connections.reading() as connection:
            return _record_by_id(connection, video_id)

    def get_videos(self, video_ids: Sequence[str]) -> dict[str, VideoRecord]:
        """Records of those of `video_ids` that exist, by id."""
        with self.connections.reading() as connection:
            return _records_by_ids(connection, video_ids)

    def ids_in_other_generations(self, video_ids: Sequence[str]) -> set[str]:
        """Those of `video_ids` that another generation of the index has.

        Raises:
            IndexDamagedError: a generation cannot be read, so that it is not known which videos it has.
        """
        found: set[str] = set()
        for number in generations(self.index_directory) if video_ids else ():
            if number == self.generation:
                continue
            try:
                with Catalog.open_generation(self.index_directory, number) as other:
                    found |= other.get_videos(video_ids).keys()
            except IndexNotFoundError:  # It was discarded just now.
                continue
        return found

    def find_by_sha256(
        self, content_sha256: str, transaction: Transaction | None = None
    ) -> VideoRecord | None:
        """The video with these bytes, or None; as the transaction sees it, where one is given."""
        if transaction is not None:
            return _find_by_sha256(transaction.connection, content_sha256)
        with self.connections.reading() as connection:
            return _find_by_sha256(connection, content_sha256)

    def find_by_uris(self, uris: Sequence[str]) -> dict[str, list[VideoRecord]]:
        """The videos at these addresses, by address; several may name the same one."""
        found: dict[str, list[VideoRecord]] = {}
        for record in self._records_where("uri", uris):
            found.setdefault(record.uri or "", []).append(record)
        return found

    def find_by_contents(self, content_sha256s: Sequence[str]) -> dict[str, VideoRecord]:
        """Those of these contents that are videos here, by their sha256."""
        return {
            record.content_sha256: record for record in self._records_where("content_sha256", content_sha256s)
        }

    def _records_where(self, column: str, values: Sequence[str]) -> Iterator[VideoRecord]:
        rows = self.connections.rows_of(
            f"SELECT {COLUMNS}, row_crc32 FROM videos WHERE {column} IN (SELECT value FROM json_each(?))",
            values,
        )
        return map(video_record, rows)

    def known_sizes(self, sizes_bytes: Sequence[int]) -> set[int]:
        """Those of these sizes that the file of some video has, or of content that is kept out."""
        rows = self.connections.rows_of(
            "SELECT value FROM json_each(?) AS wanted"
            " WHERE EXISTS (SELECT 1 FROM videos WHERE size_bytes = wanted.value)"
            " OR EXISTS (SELECT 1 FROM kept_out WHERE size_bytes = wanted.value)",
            sizes_bytes,
        )
        return {size_bytes for (size_bytes,) in rows}

    def videos_below(self, folder_uri: str) -> Iterator[VideoRecord]:
        """The videos whose addresses lie below a folder's, in the order of their addresses.

        folder_uri: without a slash at its end.
        """
        last, last_number = f"{folder_uri}/", 0
        while True:
            with self.connections.reading() as connection:
                rows = connection.execute(
                    f"SELECT {COLUMNS}, row_crc32, number FROM videos WHERE (uri, number) > (?, ?)"
                    " AND uri < ? ORDER BY uri, number LIMIT ?",
                    (last, last_number, f"{folder_uri}0", VALUES_AT_ONCE),  # 0 follows the slash.
                ).fetchall()
            for *row, _ in rows:
                yield video_record(row)
            if len(rows) < VALUES_AT_ONCE:
                return
            last, last_number = rows[-1][URI_POSITION], rows[-1][-1]

    def list_videos(
        self,
        limit: int = 100,
        after: int | None = None,
        *,
        chosen: Filter | None = None,
        sort: Sort = "-added_at",
        after_recorded_at: float | None = None,
    ) -> list[VideoRecord]:
        """At most `limit` videos, the newest first.

        Args:
            limit: how many.
            after: `sequence` of the last video of the page before, for the next page; videos added or deleted
                in between shift nothing.
            chosen: only those that this filter matches.
            sort: by when they were added or recorded, ascending or, with a minus sign, descending. Those of
                which it is not known when they were recorded come last either way.
            after_recorded_at: of the last video of the page before, where `recorded_at` is sorted by.
        """
        is_descending = sort.startswith("-")
        before, direction = ("<", "DESC") if is_descending else (">", "ASC")
        by_sequence = f"ORDER BY sequence {direction}"
        first = (2**63 - 1 if is_descending else -1) if after is None else after
        # By recorded_at two queries: SQLite sorts NULL first when ascending, and each uses an index.
        parts: list[tuple[str, tuple[float, ...], str]] = []
        if sort.endswith("recorded_at"):
            by_time = f"ORDER BY recorded_at {direction}, sequence {direction}"
            if after is None:
                parts.append(("recorded_at IS NOT NULL", (), by_time))
            elif after_recorded_at is not None:
                parts.append(
                    (f"(recorded_at, sequence) {before} (?, ?)", (after_recorded_at, after), by_time)
                )
                first = 2**63 - 1 if is_descending else -1
            parts.append((f"recorded_at IS NULL AND sequence {before} ?", (first,), by_sequence))
        else:
            parts.append((f"sequence {before} ?", (first,), by_sequence))
        condition = Condition("1") if chosen is None else compile_filter(chosen)
        records: list[VideoRecord] = []
        with self.connections.snapshot(self.filter_limit_seconds) as connection:
            for where, values, order in parts:
                rows = connection.execute(
                    f"SELECT {COLUMNS}, row_crc32 FROM videos WHERE {where} AND {condition.sql} {order}"
                    " LIMIT ?",
                    (*values, *condition.values, max(0, limit) - len(records)),
                )
                records += map(video_record, rows)
        return records

    def iterate_videos(self, block_size: int = VALUES_AT_ONCE) -> Iterator[list[VideoRecord]]:
        """All videos in blocks, in the order in which they were added. Each block is read when it is asked
        for."""
        last = 0
        while True:
            with self.connections.reading() as connection:
                rows = connection.execute(
                    f"SELECT {COLUMNS}, row_crc32 FROM videos WHERE sequence > ? ORDER BY sequence LIMIT ?",
                    (last, block_size),
                )
                block = [video_record(row) for row in rows]
            if not block:
                return
            last = block[-1].sequence
            yield block

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
        state = self.state()
        return state.num_videos, state.num_segments

    def matching(self, chosen: Filter, former: Matches | None = None) -> Matches:
        """The segments whose videos fulfil a filter now.

        Args:
            chosen: the filter.
            former: what this returned for the same filter before. It is brought up to date by the change log,
                which is quicker; it is returned itself where nothing has changed.
        """
        self.check_records()
        with self.connections.snapshot(self.filter_limit_seconds) as connection:
            return matching_segments(connection, chosen, former)

    def check_records(self) -> None:
        """Read the record of every video, once, before a filter is asked. Raises IndexDamagedError.

        Without a limit: were it ended by the filter's limit and begun again, it would never complete.
        """
        if not self._must_check_videos:
            return
        with self.connections.snapshot() as connection:
            for number, problem in _damaged_videos(connection):
                raise IndexDamagedError(
                    f"the catalog is damaged: video number {number}: {problem}; run verify, delete it and"
                    " index it again, or restore a backup"
                )
        self._must_check_videos = False

    # Changes

    def state(self, since: int | None = None, limit: int = 10_000) -> StoreState:
        """The last change, the totals, and what has changed, all of one moment.

        Args:
            since: list the changes after this one; None for no list.
            limit: how many at most.

        Raises:
            ChangesForgottenError: the log does not reach back to `since`, or never came to it.
        """
        with self.connections.snapshot() as connection:
            row = connection.execute(_STATE).fetchone()
            if row is None or None in row[:2]:
                raise IndexDamagedError(f"the catalog {self.path} is damaged: it has no totals; run rebuild")
            num_videos, num_segments, sequence, token = row
            sequence = sequence or 0
            changes = () if since is None or since == sequence else read_changes(connection, since, limit)
            return StoreState(sequence, token or "", num_videos, num_segments, changes)

    @property
    def sequence(self) -> int:
        """Number of the last change; 0 before the first."""
        return self.state().sequence

    def change_token(self, sequence: int) -> str | None:
        """Random text of this change, None where the log does not hold it; "" for 0, before the first change.

        Keep the token with what is made at a sequence number: a catalog restored from a backup may come to
        the same number by other changes.
        """
        with self.connections.reading() as connection:
            return read_token(connection, sequence)

    def changes_since(self, sequence: int, limit: int = 10_000) -> list[Change]:
        """At most `limit` changes after `sequence`, in order; call again with the last one's for more.

        Raises:
            ChangesForgottenError: the log does not reach back to `sequence`, or never came to it.
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
        asked = list(map(int, segment_ids))
        return self._features.features_of(
            self.connections.read_rows(self._features.rows_by_ids, asked), asked
        )

    def video_features(
        self, segment_ids: Sequence[int] | NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of those of `segment_ids` that exist, ids
        ascending."""
        asked = list(map(int, segment_ids))
        return self._features.video_features_of(
            self.connections.read_rows(self._features.video_rows_by_ids, asked)
        )

    def segment_infos(self, segment_ids: Sequence[int] | NDArray[np.int64]) -> dict[int, SegmentInfo]:
        """Those of `segment_ids` that exist, without features, by segment id."""
        with self.connections.reading() as connection:
            infos = read_segment_infos(connection, list(map(int, segment_ids)))
        return {info.segment_id: info for info in infos}

    def segments_and_videos(
        self, segment_ids: Sequence[int] | NDArray[np.int64]
    ) -> dict[int, tuple[SegmentInfo, VideoRecord]]:
        """Those of `segment_ids` that exist, with the records of their videos, by segment id."""
        with self.connections.reading() as connection:
            return read_segments_and_videos(connection, list(map(int, segment_ids)))

    def video_segments(self, video_id: str) -> list[SegmentInfo]:
        """Segments of a video in their order, without features. Raises VideoNotFoundError."""
        with self.connections.reading() as connection:
            infos = read_infos_of_video(connection, _stored_id(connection, video_id))
        if not infos:
            raise VideoNotFoundError(video_id)
        return infos

    def segment_ids(self) -> NDArray[np.int64]:
        """Ids of all segments, int64, ascending."""
        with self.connections.reading() as connection:
            rows = connection.execute("SELECT id FROM segments ORDER BY id")
            return np.fromiter((segment_id for (segment_id,) in rows), np.int64)

    def owners_of_segments(self, segment_ids: NDArray[np.int64]) -> Owners:
        """Those of these segments that exist, with their videos."""
        with self.connections.reading() as connection:
            rows = connection.execute(
                "SELECT id, video_number FROM segments WHERE id IN (SELECT value FROM json_each(?))"
                " ORDER BY id",
                (json.dumps(segment_ids.tolist()),),
            ).fetchall()
        table = np.array(rows, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

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

    def segments_of_videos(self, video_keys: Sequence[int] | NDArray[np.int64]) -> SegmentSpans:
        """The segments of these videos, by video and in their order."""
        rows = list(
            self.connections.rows_of(
                "SELECT id, video_number, start_seconds FROM segments"
                " WHERE video_number IN (SELECT value FROM json_each(?)) ORDER BY video_number, id",
                list(map(int, video_keys)),
            )
        )
        ids, keys, starts = zip(*rows, strict=True) if rows else ((), (), ())
        return SegmentSpans(np.array(ids, np.int64), np.array(keys, np.int64), np.array(starts, np.float64))

    # Words

    def find_words(self, query: str) -> WordMatches:
        """The videos in whose titles, metadata or transcripts words of a query are, best first.

        Bounded work: words that are in very many videos choose none where there are rarer ones.
        """
        with self.connections.snapshot() as connection:
            return find_words(connection, query)

    def passage_starts(self, matches: WordMatches) -> NDArray[np.float64]:
        """When the passage of each match begins, float64 [N], seconds of the video; 0 for title and
        metadata."""
        with self.connections.reading() as connection:
            return passage_starts(connection, matches)

    # Maintenance

    def copy_to(self, target: Path) -> None:
        """Write the catalog of this moment to a new file; it holds up no writer. Raises IndexStorageError."""
        with self.connections.reading() as connection:
            connection.execute("VACUUM INTO ?", (str(target),))
        try:
            with contextlib.closing(sqlite3.connect(target)) as written:
                written.execute(
                    "PRAGMA journal_mode = WAL"
                )  # The one setting that VACUUM does not carry over.
        except sqlite3.DatabaseError as error:
            raise translated(error, target) from error

    def damages(self, on_progress: Callable[[int], None] = lambda num_segments: None) -> Iterator[Damage]:
        """Read everything but the jobs, in one snapshot, and say what is not what was written.

        Args:
            on_progress: called now and then with the number of segments read.

        Raises:
            IndexDamagedError: so damaged that SQLite cannot go on reading.
        """
        with self.connections.snapshot() as connection:
            yield from inconsistencies(connection)
            for number, problem in _damaged_videos(connection):
                yield Damage("catalog", f"video number {number}: {problem}")
            rows = DamagedRows(
                kept_out=damaged_kept_out(connection),
                changes=damaged_changes(connection),
                transcripts=damaged_transcripts(connection),
                words=damaged_words(connection),
                segments=self._features.damaged(connection),
            )
            yield from damages_of_rows(rows, on_progress)

    def repair(self, transaction: Transaction) -> None:
        """Make again what is derived from the rows: SQLite's own indexes, the totals and the index of words.

        Raises:
            IndexDamagedError: the rows themselves are damaged.
        """
        connection = transaction.connection
        connection.execute("REINDEX")
        rebuild_words(connection)
        connection.execute("DELETE FROM totals")
        connection.execute(
            "INSERT INTO totals SELECT 1, (SELECT count(*) FROM videos), (SELECT count(*) FROM segments)"
        )
        check_structure(connection, self.path)


def read_successors(index_directory: Path) -> dict[int, Successor | None]:
    """For each generation of an index, which one takes the changes instead. Raises IndexDamagedError."""
    successors = {}
    for number in generations(index_directory):
        with Catalog.open_generation(index_directory, number, check=False) as catalog:
            successors[number] = catalog.superseded_by
    return successors


def _record_by_id(connection: sqlite3.Connection, video_id: str) -> VideoRecord:
    video_id = _stored_id(connection, video_id)
    return _records_by_ids(connection, [video_id])[video_id]


def _stored_id(connection: sqlite3.Connection, video_id: str) -> str:
    """The id of a video as it is stored: in NFC, or in an index of an earlier version as it was given.

    Raises:
        VideoNotFoundError: there is no such video.
    """
    rows = connection.execute(
        "SELECT id FROM videos WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps([video_id, nfc(video_id)]),),
    ).fetchall()
    ids = [row[0] for row in rows]
    if not ids:
        raise VideoNotFoundError(video_id)
    return video_id if video_id in ids else ids[0]


def _records_by_ids(connection: sqlite3.Connection, video_ids: Sequence[str]) -> dict[str, VideoRecord]:
    rows = connection.execute(
        f"SELECT {COLUMNS}, row_crc32 FROM videos WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(video_ids)),),
    )
    return {row[0]: video_record(row) for row in rows}


def _find_by_sha256(connection: sqlite3.Connection, content_sha256: str) -> VideoRecord | None:
    row = connection.execute(
        f"SELECT {COLUMNS}, row_crc32 FROM videos WHERE content_sha256 = ?", (content_sha256,)
    ).fetchone()
    return None if row is None else video_record(row)


def _damaged_videos(connection: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    """(number, what is wrong) of every video whose record is not what was written."""
    for number, *row in connection.execute(
        f"SELECT number, {COLUMNS}, row_crc32 FROM videos ORDER BY number"
    ):
        try:
            video_record(row)
        except (IndexDamagedError, ValueError):
            yield number, "its record is not what was written"
