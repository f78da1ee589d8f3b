"""The catalog in PostgreSQL: one schema that is the truth about a generation of an index."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from indexer.errors import (
    FingerprintMismatchError,
    IndexDamagedError,
    IndexExistsError,
    IndexNotFoundError,
    IndexSupersededError,
    InvalidRecordError,
    OtherwiseDoneError,
    VideoNotFoundError,
)
from indexer.store.checksums import checksum_of_row
from indexer.store.file_rows import FILE_COLUMNS, KEPT_OUT_COLUMNS
from indexer.store.filters import Condition, Filter
from indexer.store.job_rows import COLUMNS as JOB_COLUMNS
from indexer.store.postgres.adding import Adding, CheckedVideo
from indexer.store.postgres.address import PostgresAddress
from indexer.store.postgres.changes import (
    forget_changes,
    read_changes,
    read_state,
    read_token,
    write_change,
)
from indexer.store.postgres.connections import (
    ROWS_AT_ONCE,
    Connections,
    PinnedConnections,
    Row,
    StoreConnection,
    Transaction,
    array_of,
    connect,
    translating,
)
from indexer.store.postgres.features import FeatureRows, Replica, segment_infos
from indexer.store.postgres.files import FileTable, KeptOutTable
from indexer.store.postgres.filters import (
    FILTERED_COLUMNS,
    compile_filter,
    filtered_values,
    matching_segments,
)
from indexer.store.postgres.generations import (
    list_generations,
    name_generation,
    named_generation,
    read_successor,
    read_successors,
    write_successor,
)
from indexer.store.postgres.integrity import damages, recount
from indexer.store.postgres.jobs import JobQueue
from indexer.store.postgres.schema import create_schema, is_taken, read_facts
from indexer.store.postgres.words import (
    TranscriptTable,
    find_words,
    forget_words,
    passage_starts,
    rebuild_words,
    update_words,
)
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
    SegmentSpans,
    Sort,
    StoreState,
    Successor,
    VideoRecord,
    WithFacts,
    WordMatches,
    check_sha256,
)
from indexer.store.text import nfc
from indexer.store.video_rows import (
    COLUMNS,
    SEGMENT_AND_VIDEO,
    URI_POSITION,
    Metadata,
    Values,
    VideoChanges,
    check_patch,
    segment_and_video,
    values_of_changes,
    values_of_patch,
    video_record,
)

Answer = TypeVar("Answer")
SegmentIds = Sequence[int] | NDArray[np.int64]

_VIDEOS: Final = f"SELECT {COLUMNS}, row_crc32 FROM videos"


class PostgresCatalog(WithFacts):
    """Videos, their segments and features, the change log and the jobs of one generation of an index.

    Made by `create` or `open`. The contracts of its methods stand at those of
    `indexer.store.sqlite.catalog.Catalog`. Any number of processes on any machines may have the same
    one open; an object may be used from several threads.

    Attributes:
        address: of the index.
        generation: which of its generations this is.
        facts: what the index is.
        created_at: when it was made, in seconds since 1970.
        index_directory, directory: folders of this machine, see `PostgresAddress`.
        clock: the time of changes in seconds since 1970: the server's, whatever the clock here says.
        filter_limit_seconds: how long it may take to find what a filter matches, then QueryTimeoutError.
    """

    # Opening and closing

    def __init__(self, address: PostgresAddress, generation: int, connections: Connections) -> None:
        """For the class methods below."""
        self._address = address
        self.address: str | Path = address.text
        self.generation = generation
        self.connections = connections
        self.index_directory = address.media_directory
        self.directory = address.cache_directory(generation)
        self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.index_directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        offset = connections.clock_offset
        self.clock: Callable[[], float] = lambda: time.monotonic() + offset
        self.filter_limit_seconds = math.inf
        self.facts, self.created_at = read_facts(connections, address.name)
        self._features = FeatureRows(self.num_frames, self.embedding_dim, self.fingerprint)
        standby = address.of_replica
        self._replica = None if standby is None else Replica(standby, generation, connections)

    @classmethod
    def create(
        cls,
        address: str,
        facts: IndexFacts,
        *,
        generation: int = FIRST_GENERATION,
        successor_of: int | None = None,
    ) -> Self:
        """An empty index.

        Args:
            address: see `indexer.store.postgres.address`.
            facts: what the index shall be.
            generation, successor_of: of a generation that shall supersede another one. Until it does, only
                this object, and what `open_generation` gives for that purpose, can change it.

        Raises:
            IndexExistsError: an index is there.
            InvalidRecordError: the facts are not possible.
            IndexStorageError: the database does not answer or refuses.
        """
        if facts.embedding_dim < 1 or facts.num_frames < 1:
            raise InvalidRecordError("embedding_dim and num_frames are at least 1")
        check_sha256(facts.fingerprint, "fingerprint")
        parsed = PostgresAddress.parse(address)
        connections = Connections(parsed, generation, although_superseded=successor_of is not None)
        try:
            create_schema(parsed, connections, facts, successor_of)
            return cls(parsed, generation, connections)
        except BaseException:
            connections.close()
            raise

    @classmethod
    def open(cls, address: str, *, fingerprint: str | None = None) -> Self:
        """The current generation of an index.

        Args:
            address: see `indexer.store.postgres.address`.
            fingerprint: the one that the index must have, or None for any.

        Raises:
            IndexNotFoundError: there is no index.
            IndexDamagedError: it is not what was written.
            IndexVersionError: it is of a format that this version does not read.
            FingerprintMismatchError: it has another fingerprint.
            IndexStorageError: the database does not answer or refuses.
        """
        number = read_current_generation(address)
        while True:
            try:
                catalog = cls.open_generation(address, number)
                if catalog.superseded_by is None:
                    break
                catalog.close()
            except IndexNotFoundError:
                if number == FIRST_GENERATION:
                    raise
            # It was current when its name was read. Where it still is named, one of the two is wrong.
            former, number = number, read_current_generation(address)
            if number == former:
                raise IndexDamagedError(
                    f"{address} names generation {number} the current one, which is gone or names another:"
                    " restore all schemas of the index from one backup"
                )
        if fingerprint is not None and catalog.fingerprint != fingerprint:
            catalog.close()
            raise FingerprintMismatchError(expected=fingerprint, found=catalog.fingerprint)
        return catalog

    @classmethod
    def open_generation(cls, address: str, generation: int, *, although_superseded: bool = False) -> Self:
        """A generation of an index, the current one or not. Raises what `open` raises."""
        parsed = PostgresAddress.parse(address)
        connections = Connections(parsed, generation, although_superseded=although_superseded)
        try:
            return cls(parsed, generation, connections)
        except BaseException:
            connections.close()
            raise

    @classmethod
    def open_or_create(cls, address: str, facts: IndexFacts) -> Self:
        """`open` with the fingerprint of `facts` where there is an index, else `create`; raises what they
        raise."""
        if not index_exists(address):
            with contextlib.suppress(IndexExistsError):  # Another process was quicker.
                return cls.create(address, facts)
        return cls.open(address, fingerprint=facts.fingerprint)

    def close(self) -> None:
        """Close all connections; other methods raise RuntimeError from now on."""
        if self._replica is not None:
            self._replica.close()
        self.connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Self]:
        """This index as it is at one moment, to be read by one thread until the end of the block."""
        with self.connections.snapshot() as connection:
            pinned = copy.copy(self)
            pinned.connections = PinnedConnections(self.connections, connection)
            pinned._replica = None
            yield pinned

    # What it is

    @property
    def size_bytes(self) -> int:
        """Size of the schema's tables and indexes on the server's disk."""
        rows = self.connections.rows(
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_catalog.pg_class"
            " WHERE relnamespace = %s::regnamespace AND relkind = 'r'",
            (self.connections.schema,),
        )
        return int(rows[0][0])

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
        """Whether the server is a replica: it is searched, and changes are refused."""
        return bool(self.connections.is_read_only)

    @property
    def is_available(self) -> bool:
        """False while the database does not answer, as far as is known without asking it."""
        return self.connections.availability.away_since is None

    @property
    def stale_seconds(self) -> float | None:
        """None: what is read is what is there."""
        return None

    @property
    def needs_copies(self) -> bool:
        """False: nothing is read from a copy."""
        return False

    def must_keep_rows(self, sequence: int) -> bool:
        """False: nothing is read from a copy."""
        return False

    def keep_rows(self) -> None:
        """Nothing, see `must_keep_rows`."""

    @property
    def silence_limit_seconds(self) -> float:
        """How long the database may be silent, then IndexUnavailableError. While it is known not to answer,
        that comes at once."""
        return self.connections.silence_limit_seconds

    @silence_limit_seconds.setter
    def silence_limit_seconds(self, seconds: float) -> None:
        self.connections.silence_limit_seconds = seconds

    def keep_reserve(self) -> None:
        """Nothing: the disk is the server's."""

    # Generations

    @property
    def superseded_by(self) -> Successor | None:
        """Which generation takes the changes instead of this one; None where this is the current one."""
        try:
            with self.connections.reading() as connection:
                return read_successor(connection)
        except IndexSupersededError as error:  # It was removed.
            return Successor(error.generation, epoch=0)

    def ids_in_other_generations(self, video_ids: Sequence[str]) -> set[str]:
        """Those of `video_ids` that another generation of the index has."""
        found: set[str] = set()
        for number in self.generations() if video_ids else ():
            if number != self.generation:
                schema = self._address.schema_of(number)
                rows = self.connections.rows(
                    f"SELECT id FROM {schema}.videos WHERE id = ANY(%s::text[])", (list(video_ids),)
                )
                found |= {video_id for (video_id,) in rows}
        return found

    def generations(self) -> list[int]:
        """Numbers of the generations of the index, ascending."""
        with self.connections.reading() as connection:
            return list_generations(connection, self._address)

    # Changing videos

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Several changes, of videos and of jobs, as one."""
        with self.connections.transaction() as connection:
            yield Transaction(connection)

    def add_video(self, video: NewVideo, transaction: Transaction | None = None) -> AddOutcome:
        """Store a video, wholly or not at all, and log the change."""
        (outcome,) = self.add_videos([video], transaction)
        if not isinstance(outcome, AddOutcome):
            raise outcome
        return outcome

    def add_videos(
        self, videos: Sequence[NewVideo], transaction: Transaction | None = None
    ) -> list[AddOutcome | RefusedVideo]:
        """Store several as one change after another, committed together."""
        now = self.clock()
        checked: list[CheckedVideo] = []
        refused: dict[int, RefusedVideo] = {}
        for position, video in enumerate(videos):
            try:
                checked.append(CheckedVideo.of(video, now, self.num_frames, self.embedding_dim))
            except InvalidRecordError as error:
                refused[position] = error
        if not checked:
            return list(refused.values())
        adding = Adding(checked, self._features, now)
        with self.connections.joined(
            transaction, first=adding.look_up, is_pipeline=adding.is_small
        ) as connection:
            added = iter(adding.store(connection))
        return [refused[position] if position in refused else next(added) for position in range(len(videos))]

    def delete_video(
        self, video_id: str, transaction: Transaction | None = None, *, keep_out: bool = False
    ) -> None:
        """Remove a video, its segments and features; log their ids."""
        with self.connections.joined(transaction) as connection:
            video_id = _stored_id(connection, video_id)
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
            rows = connection.execute(
                "SELECT videos.number, segments.id FROM videos"
                " LEFT JOIN segments ON video_number = videos.number"
                " WHERE videos.id = %s ORDER BY segments.id",
                (video_id,),
            ).fetchall()
            number, segment_ids = rows[0][0], [row[1] for row in rows if row[1] is not None]
            connection.execute("DELETE FROM videos WHERE number = %s", (number,))
            forget_words(connection, number)
            write_change(connection, "delete", video_id, segment_ids, self.clock())

    def update_video(
        self, video_id: str, transaction: Transaction | None = None, **changes: Unpack[VideoChanges]
    ) -> VideoRecord:
        """Replace the given fields (None erases), log the change and return the new record."""
        values = values_of_changes(changes)
        with self.connections.joined(transaction) as connection:
            return self._update(connection, _record_by_id(connection, video_id), values)

    def patch_video(
        self,
        video_id: str,
        patch: Metadata,
        *,
        check: Callable[[Metadata], Metadata] = lambda merged: merged,
    ) -> VideoRecord:
        """Apply a merge patch (RFC 7396) to title, metadata and recording time of a video."""
        check_patch(patch)
        with self.connections.transaction() as connection:
            record = _record_by_id(connection, video_id)
            return self._update(connection, record, values_of_patch(record, patch, check))

    def _update(self, connection: StoreConnection, record: VideoRecord, values: Values) -> VideoRecord:
        """Set columns of a video, named by us, never by a client, and log it.

        record: as read in this transaction, so that the new checksum does not cover up damage.
        """
        if not values:
            return record
        assignments = ", ".join(f"{name} = %s" for name in values)
        row = connection.execute(
            f"UPDATE videos SET {assignments} WHERE id = %s RETURNING number, {COLUMNS}",
            (*values.values(), record.id),
        ).fetchone()
        assert row is not None
        number, *stored = row
        checksum = checksum_of_row(stored)
        updated = video_record([*stored, checksum])
        by_name = dict(zip(COLUMNS.split(", "), stored, strict=True))
        filtered = filtered_values(by_name["title"], by_name["uri"], by_name["metadata"])
        connection.execute(
            f"UPDATE videos SET row_crc32 = %s, ({FILTERED_COLUMNS}) = (%s, %s, %s) WHERE number = %s",
            (checksum, *filtered, number),
        )
        if values.keys() & {"title", "metadata"}:
            update_words(connection, number, by_name["title"], by_name["metadata"])
        write_change(connection, "update", record.id, (), self.clock())
        return updated

    # Reading videos

    def get_video(self, video_id: str) -> VideoRecord:
        """The record of a video."""
        with self.connections.reading() as connection:
            return _record_by_id(connection, video_id)

    def get_videos(self, video_ids: Sequence[str]) -> dict[str, VideoRecord]:
        """Records of those of `video_ids` that exist, by id."""
        return {record.id: record for record in self._records_where("id", video_ids)}

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
        rows = self.connections.rows(
            f"{_VIDEOS} WHERE {column} = ANY(%s::text[]) ORDER BY number", (list(values),)
        )
        return map(video_record, rows)

    def known_sizes(self, sizes_bytes: Sequence[int]) -> set[int]:
        """Those of these sizes that the file of some video has, or of content that is kept out."""
        rows = self.connections.rows(
            "SELECT wanted FROM unnest(%s::bigint[]) AS wanted"
            " WHERE EXISTS (SELECT 1 FROM videos WHERE size_bytes = wanted)"
            " OR EXISTS (SELECT 1 FROM kept_out WHERE size_bytes = wanted)",
            (list(sizes_bytes),),
        )
        return {size_bytes for (size_bytes,) in rows}

    def videos_below(self, folder_uri: str) -> Iterator[VideoRecord]:
        """The videos whose addresses lie below a folder's, in the order of their addresses."""
        last, last_number = f"{folder_uri}/", 0
        while True:
            rows = self.connections.rows(
                f"SELECT {COLUMNS}, row_crc32, number FROM videos WHERE (uri, number) > (%s, %s)"
                " AND uri < %s ORDER BY uri, number LIMIT %s",
                (last, last_number, f"{folder_uri}0", ROWS_AT_ONCE),  # 0 follows the slash.
            )
            for *row, _ in rows:
                yield video_record(row)
            if len(rows) < ROWS_AT_ONCE:
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
        """At most `limit` videos, the newest first."""
        is_descending = sort.startswith("-")
        before, direction = ("<", "DESC") if is_descending else (">", "ASC")
        by_sequence = f"ORDER BY sequence {direction}"
        start = 2**63 - 1 if is_descending else -1
        first = start if after is None else after
        # By recorded_at two queries: each uses an index.
        parts: list[tuple[str, tuple[float, ...], str]] = []
        if sort.endswith("recorded_at"):
            by_time = f"ORDER BY recorded_at {direction}, sequence {direction}"
            if after is None:
                parts.append(("recorded_at IS NOT NULL", (), by_time))
            elif after_recorded_at is not None:
                where = f"(recorded_at, sequence) {before} (%s::float8, %s::bigint)"
                parts.append((where, (after_recorded_at, after), by_time))
                first = start
            parts.append((f"recorded_at IS NULL AND sequence {before} %s", (first,), by_sequence))
        else:
            parts.append((f"sequence {before} %s", (first,), by_sequence))
        condition = Condition("true") if chosen is None else compile_filter(chosen)
        records: list[VideoRecord] = []
        with self.connections.snapshot(self.filter_limit_seconds) as connection:
            for where, values, order in parts:
                rows = connection.execute(
                    f"{_VIDEOS} WHERE {where} AND {condition.sql} {order} LIMIT %s",
                    (*values, *condition.values, max(0, limit) - len(records)),
                )
                records += map(video_record, rows.fetchall())
        return records

    def iterate_videos(self, block_size: int = ROWS_AT_ONCE) -> Iterator[list[VideoRecord]]:
        """All videos in blocks, in the order in which they were added."""
        last = 0
        while rows := self.connections.rows(
            f"{_VIDEOS} WHERE sequence > %s ORDER BY sequence LIMIT %s", (last, block_size)
        ):
            block = list(map(video_record, rows))
            last = block[-1].sequence
            yield block

    def video_ids(self) -> list[str]:
        """Ids of all videos, in the order in which they were added."""
        return [row[0] for row in self.connections.rows("SELECT id FROM videos ORDER BY sequence")]

    @property
    def num_videos(self) -> int:
        """Videos in the index."""
        return self.totals()[0]

    @property
    def num_segments(self) -> int:
        """Segments in the index."""
        return self.totals()[1]

    def totals(self) -> tuple[int, int]:
        """(num_videos, num_segments) of one moment."""
        state = self.state()
        return state.num_videos, state.num_segments

    def matching(self, chosen: Filter, former: Matches | None = None) -> Matches:
        """The segments whose videos fulfil a filter now."""
        return matching_segments(self.connections, chosen, former, self.filter_limit_seconds)

    def check_records(self) -> None:
        """Nothing: the server's pages have checksums of their own (initdb --data-checksums), and `verify`
        reads all."""

    # Changes

    def state(self, since: int | None = None, limit: int = 10_000) -> StoreState:
        """The last change, the totals, and what has changed, all of one moment."""
        return read_state(self.connections, since, limit)

    @property
    def sequence(self) -> int:
        """Number of the last change; 0 before the first."""
        return self.state().sequence

    def change_token(self, sequence: int) -> str | None:
        """Random text of this change, None where the log does not hold it; "" for 0."""
        with self.connections.reading() as connection:
            return read_token(connection, sequence)

    def changes_since(self, sequence: int, limit: int = 10_000) -> list[Change]:
        """At most `limit` changes after `sequence`, in order."""
        with self.connections.reading() as connection:
            return read_changes(connection, sequence, limit)

    def forget_changes(self, before_sequence: int) -> None:
        """Shorten the change log."""
        with self.connections.transaction() as connection:
            forget_changes(connection, before_sequence)

    # Segments

    def _read_features(self, read: Callable[[Connections], Answer]) -> Answer:
        """What `read` gives, at the replica where there is one and it is not behind."""
        return read(self.connections) if self._replica is None else self._replica.read(read, self.sequence)

    def segment_features(self, segment_ids: SegmentIds) -> SegmentFeatures:
        """Features of `segment_ids`, in the order asked; ids that do not exist (any more) are left out."""
        asked = list(map(int, segment_ids))
        return self._read_features(lambda connections: self._features.by_ids(connections, asked))

    def video_features(self, segment_ids: SegmentIds) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of those that exist, ids ascending."""
        asked = list(map(int, segment_ids))
        return self._read_features(lambda connections: self._features.video_by_ids(connections, asked))

    def segment_infos(self, segment_ids: SegmentIds) -> dict[int, SegmentInfo]:
        """Those of `segment_ids` that exist, without features, by segment id."""
        infos = segment_infos(self.connections, segment_ids=list(map(int, segment_ids)))
        return {info.segment_id: info for info in infos}

    def segments_and_videos(self, segment_ids: SegmentIds) -> dict[int, tuple[SegmentInfo, VideoRecord]]:
        """Those of `segment_ids` that exist, with the records of their videos, by segment id."""
        rows = self.connections.rows(
            f"SELECT {SEGMENT_AND_VIDEO} FROM segments JOIN videos ON videos.number = video_number"
            " WHERE segments.id = ANY(%s::bigint[])",
            (array_of(segment_ids),),
            binary=True,
        )
        return {row[0]: segment_and_video(row) for row in rows}

    def video_segments(self, video_id: str) -> list[SegmentInfo]:
        """Segments of a video in their order, without features."""
        with self.connections.reading() as connection:
            stored = _stored_id(connection, video_id)
        infos = segment_infos(self.connections, video_id=stored)
        if not infos:
            raise VideoNotFoundError(video_id)
        return infos

    def segment_ids(self) -> NDArray[np.int64]:
        """Ids of all segments, int64, ascending."""
        rows = self.connections.rows("SELECT string_agg(int8send(id), ''::bytea) FROM segments", binary=True)
        return np.sort(np.frombuffer(rows[0][0] or b"", ">i8").astype(np.int64))

    def owners_of_segments(
        self, segment_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of these segments that exist, with their videos."""
        rows = self.connections.rows(
            "SELECT id, video_number FROM segments WHERE id = ANY(%s::bigint[]) ORDER BY id",
            (array_of(segment_ids.tolist()),),
            binary=True,
        )
        table = np.array(rows, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def iterate_features(self, block_size: int = 1024) -> Iterator[SegmentFeatures]:
        """All segments in blocks of at most `block_size`, ids ascending."""
        after = 0
        while True:
            read = partial(self._features.after, segment_id=after, limit=block_size)
            if not len(block := self._read_features(read)):
                return
            after = int(block.segment_ids[-1])
            yield block

    def iterate_video_features(
        self, block_size: int = 8192
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Ids int64 [N] and video features float32 [N, D] of all segments."""
        after = 0
        while True:
            read = partial(self._features.video_after, segment_id=after, limit=block_size)
            ids, features = self._read_features(read)
            if not len(ids):
                return
            after = int(ids[-1])
            yield ids, features

    def segments_of_videos(self, video_keys: SegmentIds) -> SegmentSpans:
        """The segments of these videos, by video and in their order."""
        rows = self.connections.rows(
            "SELECT id, video_number, start_seconds FROM segments WHERE video_number = ANY(%s::bigint[])"
            " ORDER BY video_number, id",
            (list(map(int, video_keys)),),
            binary=True,
        )
        ids, keys, starts = zip(*rows, strict=True) if rows else ((), (), ())
        return SegmentSpans(np.array(ids, np.int64), np.array(keys, np.int64), np.array(starts, np.float64))

    # Words

    def find_words(self, query: str) -> WordMatches:
        """The videos in whose titles, metadata or transcripts words of a query are, best first."""
        return find_words(self.connections, query)

    def passage_starts(self, matches: WordMatches) -> NDArray[np.float64]:
        """When the passage of each match begins, float64 [N], seconds of the video."""
        return passage_starts(self.connections, matches)

    # Maintenance

    def copy_to(self, target: Path) -> None:
        """Raises OtherwiseDoneError, which names PostgreSQL's own commands."""
        raise OtherwiseDoneError(self._address.backup_advice)

    def damages(self, on_progress: Callable[[int], None] = lambda num_segments: None) -> Iterator[Damage]:
        """Read everything but the jobs, in one snapshot, and say what is not what was written."""
        with self.connections.snapshot() as connection:
            pinned = PinnedConnections(self.connections, connection)
            yield from damages(pinned, self._features, on_progress)

    def repair(self, transaction: Transaction) -> None:
        """Make again what is derived from the rows: what filters ask, the totals and the index of words."""
        connection = transaction.connection
        last = 0
        while rows := connection.execute(
            "SELECT number, title, uri, metadata FROM videos WHERE number > %s ORDER BY number LIMIT %s",
            (last, ROWS_AT_ONCE),
        ).fetchall():
            _set_filtered(connection, rows)
            last = rows[-1][0]
        rebuild_words(connection)
        recount(connection)

    def carry_over(self, successor: Self, transaction: Transaction) -> int:
        """Bring jobs, known files and kept-out content to another generation, in place of what is there."""
        connection, into = transaction.connection, successor.connections.schema
        # Until the end of the transaction no job changes either.
        connection.execute("SELECT 1 FROM counters FOR UPDATE")
        for table, columns in (
            ("files", f"{FILE_COLUMNS}, row_crc32"),
            ("kept_out", f"{KEPT_OUT_COLUMNS}, row_crc32"),
            ("jobs", JOB_COLUMNS),
        ):
            connection.execute(f"DELETE FROM {into}.{table}")
            connection.execute(f"INSERT INTO {into}.{table} ({columns}) SELECT {columns} FROM {table}")
        # Their workers can no longer end them. The attempt counts, so that what such a worker still does is
        # not taken for what the next one does.
        connection.execute(
            f"UPDATE {into}.jobs SET state = 'queued', worker_name = NULL, started_at = NULL,"
            " lease_expires_at = NULL WHERE state = 'running'"
        )
        connection.execute(f"UPDATE {into}.counters SET last_job = (SELECT last_job FROM counters)")
        (num_jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone() or (0,)
        return int(num_jobs)

    def hand_over(self, successor: Self, transaction: Transaction) -> None:
        """Make another generation of the index the current one: from the commit on, this one takes no
        changes, and `open` gives the successor."""
        connection = transaction.connection
        connection.execute("SELECT 1 FROM counters FOR UPDATE")
        rows = read_successors(connection, self._address).values()
        epoch = 1 + max([0, *(row.epoch for row in rows if row is not None)])
        write_successor(connection, Successor(successor.generation, epoch))
        write_successor(connection, None, schema=successor.connections.schema)
        name_generation(connection, self._address, successor.generation)


def index_exists(address: str) -> bool:
    """Whether there is an index, without opening it. Raises IndexStorageError."""
    parsed = PostgresAddress.parse(address)
    with contextlib.closing(connect(parsed, parsed.schema)) as connection, translating(parsed.name):
        return is_taken(connection, parsed.schema)


def read_current_generation(address: str) -> int:
    """The generation that is named the current one; the first where there is no index. Raises
    IndexStorageError, IndexDamagedError."""
    parsed = PostgresAddress.parse(address)
    with contextlib.closing(connect(parsed, parsed.schema)) as connection, translating(parsed.name):
        return named_generation(connection, parsed)


def _set_filtered(connection: StoreConnection, rows: Sequence[Row]) -> None:
    """rows: number, title, uri and metadata of videos."""
    with connection.cursor() as cursor:
        cursor.executemany(
            f"UPDATE videos SET ({FILTERED_COLUMNS}) = (%s, %s, %s) WHERE number = %s",
            [(*filtered_values(*values), number) for number, *values in rows],
        )


def _record_by_id(connection: StoreConnection, video_id: str) -> VideoRecord:
    rows = connection.execute(
        f"{_VIDEOS} WHERE id = ANY(%s::text[]) ORDER BY id != %s", ([video_id, nfc(video_id)], video_id)
    ).fetchall()
    if not rows:
        raise VideoNotFoundError(video_id)
    return video_record(rows[0])


def _stored_id(connection: StoreConnection, video_id: str) -> str:
    """The id of a video as it is stored: in NFC, or as an import brought it. Raises VideoNotFoundError."""
    row = connection.execute(
        "SELECT id FROM videos WHERE id = ANY(%s::text[]) ORDER BY id != %s",
        ([video_id, nfc(video_id)], video_id),
    ).fetchone()
    if row is None:
        raise VideoNotFoundError(video_id)
    return str(row[0])


def _find_by_sha256(connection: StoreConnection, content_sha256: str) -> VideoRecord | None:
    row = connection.execute(f"{_VIDEOS} WHERE content_sha256 = %s", (content_sha256,)).fetchone()
    return None if row is None else video_record(row)
