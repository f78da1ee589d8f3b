"""Videos added to PostgreSQL: one with few round trips, many with COPY.

Others wait from the lock on the row of counters until the commit. What is there already is asked with the
same round trip as the lock, and a short video's rows go with one statement, together with the commit. Many
rows are copied, table by table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg import Cursor

from indexer.errors import DuplicateIdError, KeptOutError
from indexer.store.change_rows import row_of_change
from indexer.store.checksums import checksum_of_row
from indexer.store.file_rows import KEPT_OUT_COLUMNS, kept_out_of, row_of_transcript
from indexer.store.postgres.changes import CHANGES, COUNTERS, Counters, without_counters
from indexer.store.postgres.connections import MIN_ROWS_TO_COPY, Row, StoreConnection, Table
from indexer.store.postgres.features import FEATURES, SEGMENTS, FeatureRows
from indexer.store.postgres.filters import FILTERED_COLUMNS, filtered_values
from indexer.store.postgres.words import TRANSCRIPTS, WORDS, rows_of_words
from indexer.store.records import AddOutcome, NewVideo, RefusedVideo, check_segments
from indexer.store.transcripts import Transcript, check_transcripts
from indexer.store.video_rows import COLUMNS, row_of_new_video, video_record

_NAMES: Final = COLUMNS.split(", ")

# What is there already is seldom anything: what it is, is asked then.
_LOOK_UP: Final = (
    f"SELECT {COUNTERS},"
    " EXISTS (SELECT 1 FROM videos WHERE content_sha256 = ANY(%s::text[]))"
    " OR EXISTS (SELECT 1 FROM videos WHERE id = ANY(%s::text[]))"
    " OR EXISTS (SELECT 1 FROM kept_out WHERE content_sha256 = ANY(%s::text[])) FROM counters"
)

_COUNT: Final = (
    "UPDATE counters SET last_video = %s, last_segment = %s, sequence = %s, token = %s,"
    " num_videos = num_videos + %s, num_segments = num_segments + %s,"
    " num_word_rows = num_word_rows + %s, num_terms = num_terms + %s"
)


_VIDEOS: Final = Table("videos", f"number, {COLUMNS}, row_crc32, {FILTERED_COLUMNS}")


@dataclass(frozen=True)
class CheckedVideo:
    """What can be made of a video before its numbers are known, so before anything is locked.

    values: its columns but `sequence`. filtered: FILTERED_COLUMNS.
    """

    video: NewVideo
    values: dict[str, Any]
    filtered: tuple[Any, ...]
    transcripts: Sequence[Transcript]

    @classmethod
    def of(cls, video: NewVideo, now: float, num_frames: int, embedding_dim: int) -> CheckedVideo:
        """Raises InvalidRecordError."""
        check_segments(video.segments, num_frames, embedding_dim)
        values = row_of_new_video(video, now)
        filtered = filtered_values(values["title"], values["uri"], values["metadata"])
        transcripts = check_transcripts(video.transcripts) if video.transcripts else []
        return cls(video, values, filtered, transcripts)


class Adding:
    """Videos on their way into the index."""

    def __init__(self, videos: Sequence[CheckedVideo], features: FeatureRows, now: float) -> None:
        """features: of the index. now: when it is changed, in seconds since 1970."""
        self._videos, self._features, self._now = videos, features, now
        self._contents = [video.values["content_sha256"] for video in videos]
        self._ids = [video.values["id"] for video in videos]
        self._found: Cursor[Row] | None = None

    @property
    def is_small(self) -> bool:
        """Whether the rows go with one statement, which may be sent together with the commit."""
        num_segments = sum(len(video.video.segments) for video in self._videos)
        has_transcripts = any(video.transcripts for video in self._videos)
        return num_segments < MIN_ROWS_TO_COPY and not has_transcripts

    def look_up(self, connection: StoreConnection) -> None:
        """Ask what is there, once all others are kept from changing it; see `store`."""
        self._found = connection.execute(_LOOK_UP, (self._contents, self._ids, self._contents))

    def store(self, connection: StoreConnection) -> list[AddOutcome | RefusedVideo]:
        """Store and log those that are new, within the caller's transaction, after `look_up`; in their
        order."""
        assert self._found is not None
        *counters, is_any_there = self._found.fetchone() or without_counters()
        there = _There.read(connection, self._contents, self._ids) if is_any_there else _There()
        rows = _NewRows(Counters(*counters), self._features, self._now)
        outcomes: list[AddOutcome | RefusedVideo] = []
        for video, video_id, content in zip(self._videos, self._ids, self._contents, strict=True):
            if content in there.ids_of_contents:
                outcomes.append(AddOutcome(there.ids_of_contents[content], created=False))
            elif content in there.kept_out:
                outcomes.append(KeptOutError(there.kept_out[content]))
            elif video_id in there.ids:
                outcomes.append(DuplicateIdError(video_id))
            else:
                rows.add(video)
                there.ids_of_contents[content] = video_id
                there.ids.add(video_id)
                outcomes.append(AddOutcome(video_id, created=True))
        rows.write(connection, together=self.is_small)
        return outcomes


@dataclass(frozen=True)
class _There:
    """What of some videos is in the index already."""

    ids_of_contents: dict[str, str] = field(default_factory=dict)
    kept_out: dict[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, connection: StoreConnection, contents: Sequence[str], ids: Sequence[str]) -> _There:
        same = connection.execute(
            f"SELECT {COLUMNS}, row_crc32 FROM videos WHERE content_sha256 = ANY(%s::text[])", (contents,)
        )
        records = map(video_record, same.fetchall())
        kept_out = connection.execute(
            f"SELECT {KEPT_OUT_COLUMNS}, row_crc32 FROM kept_out WHERE content_sha256 = ANY(%s::text[])",
            (contents,),
        )
        kept = map(kept_out_of, kept_out.fetchall())
        taken = connection.execute("SELECT id FROM videos WHERE id = ANY(%s::text[])", (ids,))
        return cls(
            {record.content_sha256: record.id for record in records},
            {content.content_sha256: content.video_id for content in kept},
            {video_id for (video_id,) in taken.fetchall()},
        )


@dataclass
class _NewRows:
    """The rows of new videos, under the numbers that follow those that were given last."""

    counters: Counters
    feature_rows: FeatureRows
    now: float
    videos: list[Row] = field(default_factory=list)
    segments: list[Row] = field(default_factory=list)
    features: list[Row] = field(default_factory=list)
    transcripts: list[Row] = field(default_factory=list)
    words: list[Row] = field(default_factory=list)
    changes: list[Row] = field(default_factory=list)

    def add(self, video: CheckedVideo) -> None:
        """Make the rows of one video."""
        number = self.counters.last_video + len(self.videos) + 1
        sequence = self.counters.sequence + len(self.changes) + 1
        values = [{**video.values, "sequence": sequence}[name] for name in _NAMES]
        self.videos.append((number, *values, checksum_of_row(values), *video.filtered))
        first_id = self.counters.last_segment + len(self.segments) + 1
        segment_ids = range(first_id, first_id + len(video.video.segments))
        for segment_id, segment in zip(segment_ids, video.video.segments, strict=True):
            row = self.feature_rows.codec.row(segment_id, number, segment)
            of_segment, parts = self.feature_rows.rows_to_store(row)
            self.segments.append(of_segment)
            self.features += parts
        for transcript in video.transcripts:
            self.transcripts.append((number, *row_of_transcript(transcript)))
        title, metadata = video.values["title"], video.values["metadata"]
        self.words += rows_of_words(number, title, metadata, video.transcripts)
        self.changes.append(row_of_change(sequence, "add", video.values["id"], segment_ids, self.now))

    def write(self, connection: StoreConnection, *, together: bool) -> None:
        """Store them, and count them. together: with one statement."""
        if not self.videos:
            return
        tables = (
            (_VIDEOS, self.videos),
            (SEGMENTS, self.segments),
            (FEATURES, self.features),
            (TRANSCRIPTS, self.transcripts),
            (WORDS, self.words),
            (CHANGES, self.changes),
        )
        counted = (
            self.videos[-1][0],
            self.segments[-1][0],
            *(self.changes[-1][0], self.changes[-1][5]),
            *(len(self.videos), len(self.segments)),
            *(len(self.words), sum(row[2] for row in self.words)),
        )
        if together:
            inserts = [
                (f"new_{table.name}", table.insertion(len(rows)), rows) for table, rows in tables if rows
            ]
            parts = ", ".join(f"{name} AS ({insertion})" for name, insertion, _ in inserts)
            values = [value for _, _, rows in inserts for row in rows for value in row]
            connection.execute(f"WITH {parts} {_COUNT}", (*values, *counted))
            return
        for table, rows in tables:
            table.insert(connection, rows)
        connection.execute(_COUNT, counted)
