"""Transcripts, and the index of words: titles, texts of metadata and transcripts in SQLite's FTS5.

Transcripts are part of the truth. The table `words` is derived: it holds terms (`indexer.store.words`), not
texts, a row for title and metadata of each video and one for each passage of its transcripts, under numbers
that say whose they are:

    rowid = number of the video * 2**20 + number of the passage, 0 for title and metadata

It is an ordinary FTS5 table, which holds the terms as well: one without content is told on deletion what it
held, and would be damaged by terms that another version of Unicode's tables makes of the same text.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexDamagedError, InvalidRecordError, TranscriptNotFoundError, VideoNotFoundError
from indexer.store.file_rows import (
    TRANSCRIPT_COLUMNS,
    TRANSCRIPT_FILE_COLUMNS,
    row_of_transcript,
    transcript_of,
)
from indexer.store.records import WordMatches
from indexer.store.sqlite.changes import write_change
from indexer.store.sqlite.connections import Transaction
from indexer.store.text import nfc
from indexer.store.transcripts import (
    MAX_TRACKS,
    Transcript,
    TranscriptFile,
    check_track,
    check_transcript,
)
from indexer.store.word_rows import (
    MAX_ROWS,
    PASSAGE_BITS,
    PASSAGES,
    best_of_videos,
    choosing_words,
    terms_of_facts,
    terms_of_passages,
)
from indexer.store.words import QueryWord, words_of_query

if TYPE_CHECKING:
    from indexer.store.sqlite.catalog import Catalog

SCHEMA: Final = """
CREATE TABLE transcripts (
    video_number INTEGER NOT NULL REFERENCES videos (number) ON DELETE CASCADE,
    track TEXT NOT NULL,
    uri TEXT,
    size_bytes INTEGER,
    modified_ns INTEGER,
    lines BLOB NOT NULL,
    row_crc32 INTEGER NOT NULL,
    PRIMARY KEY (video_number, track)
) STRICT;

-- Holds a row while titles and metadata from before format 6 are not in `words` yet: the next video's number.
CREATE TABLE words_to_fill (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    next_number INTEGER NOT NULL
) STRICT;

CREATE VIRTUAL TABLE words USING fts5 (
    title, metadata, transcript, start_seconds UNINDEXED, tokenize = 'ascii'
);
"""
"""The tokenizer has nothing to do but to split terms at spaces."""


_INSERT: Final = (
    "INSERT INTO transcripts (video_number, track, uri, size_bytes, modified_ns, lines, row_crc32)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_IDS: Final = "SELECT value FROM json_each(?)"

FILLED_AT_ONCE: Final = 5_000
"""Videos in one transaction: about a tenth of a second."""


class TranscriptTable:
    """The transcripts of a catalog's videos."""

    def __init__(self, catalog: Catalog) -> None:
        self._connections = catalog.connections
        self._clock = catalog.clock

    def of_videos(self, video_ids: Sequence[str]) -> dict[str, list[Transcript]]:
        """The transcripts of those of these videos that have some, by id and in the order of their tracks.

        Raises:
            IndexDamagedError: one is not what was written.
        """
        rows = self._connections.rows_of(
            f"SELECT videos.id, {TRANSCRIPT_COLUMNS} FROM transcripts"
            f" JOIN videos ON videos.number = video_number WHERE videos.id IN ({_IDS})"
            " ORDER BY videos.id, track",
            list(video_ids),
        )
        return {
            video_id: [transcript_of(row[1:]) for row in of_one]
            for video_id, of_one in groupby(rows, key=lambda row: row[0])
        }

    def files_of_videos(self, video_ids: Sequence[str]) -> dict[str, dict[str, TranscriptFile | None]]:
        """Which tracks these videos have, and the files that they were read from, by id and track."""
        rows = self._connections.rows_of(
            f"SELECT videos.id, {TRANSCRIPT_FILE_COLUMNS} FROM transcripts"
            " JOIN videos ON videos.number = video_number"
            f" WHERE videos.id IN ({_IDS})",
            list(video_ids),
        )
        found: dict[str, dict[str, TranscriptFile | None]] = {}
        for video_id, track, *file in rows:
            found.setdefault(video_id, {})[track] = None if file[0] is None else TranscriptFile(*file)
        return found

    def put(self, video_id: str, transcript: Transcript, transaction: Transaction | None = None) -> None:
        """Store a transcript of a video instead of the one of the same track, and log an `update`.

        Raises:
            VideoNotFoundError: there is no such video.
            InvalidRecordError: it cannot be stored, or the video has MAX_TRACKS others.
        """
        transcript = check_transcript(transcript)
        with self._connections.joined(transaction) as connection:
            number, video_id = _video_number(connection, video_id)
            _delete_transcript(connection, number, transcript.track)
            (num_tracks,) = connection.execute(
                "SELECT count(*) FROM transcripts WHERE video_number = ?", (number,)
            ).fetchone()
            if num_tracks >= MAX_TRACKS:  # The deletion was of none then.
                raise InvalidRecordError(f"a video has at most {MAX_TRACKS} transcripts: delete one first")
            _insert_transcripts(connection, number, [transcript])
            _index_transcripts(connection, number)
            write_change(connection, "update", video_id, (), self._clock())

    def delete(self, video_id: str, track: str, transaction: Transaction | None = None) -> None:
        """Remove a transcript, and log an `update`.

        Raises:
            VideoNotFoundError, TranscriptNotFoundError: there is no such video, or no such track of it.
        """
        with self._connections.joined(transaction) as connection:
            number, video_id = _video_number(connection, video_id)
            if not _delete_transcript(connection, number, track):
                raise TranscriptNotFoundError(video_id, track)
            _index_transcripts(connection, number)
            write_change(connection, "update", video_id, (), self._clock())


def _video_number(connection: sqlite3.Connection, video_id: str) -> tuple[int, str]:
    row = connection.execute(
        f"SELECT number, id FROM videos WHERE id IN ({_IDS}) ORDER BY id != ?",
        (json.dumps([video_id, nfc(video_id)]), video_id),
    ).fetchone()
    if row is None:
        raise VideoNotFoundError(video_id)
    return row[0], row[1]


def _delete_transcript(connection: sqlite3.Connection, number: int, track: str) -> bool:
    done = connection.execute(
        "DELETE FROM transcripts WHERE video_number = ? AND track = ?", (number, check_track(track))
    )
    return done.rowcount > 0


def _insert_transcripts(
    connection: sqlite3.Connection, number: int, transcripts: Iterable[Transcript]
) -> None:
    """transcripts: checked."""
    for transcript in transcripts:
        connection.execute(_INSERT, (number, *row_of_transcript(transcript)))


def _transcripts_of(connection: sqlite3.Connection, number: int) -> list[Transcript]:
    rows = connection.execute(
        f"SELECT {TRANSCRIPT_COLUMNS} FROM transcripts WHERE video_number = ? ORDER BY track",
        (number,),
    )
    return [transcript_of(row) for row in rows]


# The index of words


def add_words(
    connection: sqlite3.Connection,
    number: int,
    title: str | None,
    metadata: str,
    transcripts: Sequence[Transcript],
) -> None:
    """Store the transcripts of a new video, and index its words. metadata: JSON. transcripts: checked."""
    _insert_facts(connection, number, title, metadata)
    if transcripts:
        _insert_transcripts(connection, number, transcripts)
        _insert_passages(connection, number, transcripts)


def update_words(connection: sqlite3.Connection, number: int, title: str | None, metadata: str) -> None:
    """Index title and metadata of a video anew."""
    connection.execute("DELETE FROM words WHERE rowid = ?", (number << PASSAGE_BITS,))
    _insert_facts(connection, number, title, metadata)


def forget_words(connection: sqlite3.Connection, number: int) -> None:
    """Index no word of a video any more."""
    first = number << PASSAGE_BITS
    connection.execute("DELETE FROM words WHERE rowid >= ? AND rowid < ?", (first, first + PASSAGES))


def _index_transcripts(connection: sqlite3.Connection, number: int) -> None:
    """Index the transcripts of a video anew."""
    first = number << PASSAGE_BITS
    connection.execute("DELETE FROM words WHERE rowid > ? AND rowid < ?", (first, first + PASSAGES))
    _insert_passages(connection, number, _transcripts_of(connection, number))


def _insert_facts(connection: sqlite3.Connection, number: int, title: str | None, metadata: str) -> None:
    if any(row := terms_of_facts(title, metadata)):
        connection.execute(
            "INSERT INTO words (rowid, title, metadata) VALUES (?, ?, ?)", (number << PASSAGE_BITS, *row)
        )


def _insert_passages(connection: sqlite3.Connection, number: int, transcripts: Sequence[Transcript]) -> None:
    connection.executemany(
        "INSERT INTO words (rowid, transcript, start_seconds) VALUES (?, ?, ?)",
        (
            ((number << PASSAGE_BITS) + passage, terms, start)
            for passage, terms, start in terms_of_passages(transcripts)
        ),
    )


# Titles and metadata from before there was this index


def fill_words(connection: sqlite3.Connection) -> tuple[int, int] | None:
    """Index the next FILLED_AT_ONCE videos that are from before, within the caller's transaction.

    Returns:
        The number of the next video and the last one's; None where all are indexed.
    """
    row = connection.execute("SELECT next_number FROM words_to_fill").fetchone()
    if row is None:
        return None
    rows = connection.execute(
        "SELECT number, title, metadata FROM videos WHERE number >= ? ORDER BY number LIMIT ?",
        (row[0], FILLED_AT_ONCE),
    ).fetchall()
    for number, title, metadata in rows:
        connection.execute("DELETE FROM words WHERE rowid = ?", (number << PASSAGE_BITS,))
        # A record that is not what was written is reported where it is read.
        if isinstance(metadata, str) and _is_json(metadata) and isinstance(title, str | None):
            _insert_facts(connection, number, title, metadata)
    if len(rows) < FILLED_AT_ONCE:
        connection.execute("DELETE FROM words_to_fill")
        return None
    connection.execute("UPDATE words_to_fill SET next_number = ?", (rows[-1][0] + 1,))
    (last,) = connection.execute("SELECT max(number) FROM videos").fetchone()
    return rows[-1][0] + 1, last


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def is_filled(connection: sqlite3.Connection) -> bool:
    """Whether the words of all videos are indexed."""
    return connection.execute("SELECT 1 FROM words_to_fill").fetchone() is None


def rebuild_words(connection: sqlite3.Connection) -> None:
    """Make the index again from titles, metadata and transcripts."""
    connection.execute("DROP TABLE words")
    connection.execute(SCHEMA[SCHEMA.index("CREATE VIRTUAL TABLE") :].rstrip().removesuffix(";"))
    connection.execute("INSERT OR REPLACE INTO words_to_fill VALUES (1, 0)")
    while fill_words(connection) is not None:
        pass
    numbers = [row[0] for row in connection.execute("SELECT DISTINCT video_number FROM transcripts")]
    for number in numbers:
        _insert_passages(connection, number, _transcripts_of(connection, number))


def damaged_transcripts(connection: sqlite3.Connection) -> Iterator[str]:
    """What is wrong with transcripts, a sentence each."""
    rows = connection.execute(
        f"SELECT coalesce(videos.id, video_number), {TRANSCRIPT_COLUMNS} FROM transcripts"
        " LEFT JOIN videos ON videos.number = video_number"
    )
    for video_id, *row in rows:
        try:
            transcript_of(row)
        except IndexDamagedError:
            yield f"the transcript {row[0]} of video {video_id} is not what was written"


def damaged_words(connection: sqlite3.Connection) -> Iterator[str]:
    """What in the index of words is not what titles, metadata and transcripts say, a sentence each."""
    if not is_filled(connection):
        return
    found = connection.execute(
        "SELECT rowid, title, metadata, transcript, start_seconds FROM words ORDER BY rowid"
    )
    found_rows = iter(found)
    row = next(found_rows, None)
    for expected in _expected_rows(connection):
        while row is not None and row[0] < expected[0]:
            yield f"the words of video number {row[0] >> PASSAGE_BITS} belong to nothing"
            row = next(found_rows, None)
        if row is None or row[0] != expected[0]:
            yield f"words of video number {expected[0] >> PASSAGE_BITS} are missing"
            continue
        if row != expected:
            yield f"the words of video number {row[0] >> PASSAGE_BITS} are not what it says"
        row = next(found_rows, None)
    while row is not None:
        yield f"the words of video number {row[0] >> PASSAGE_BITS} belong to nothing"
        row = next(found_rows, None)


def _expected_rows(
    connection: sqlite3.Connection,
) -> Iterator[tuple[Any, ...]]:
    with_transcripts = {row[0] for row in connection.execute("SELECT video_number FROM transcripts")}
    for number, title, metadata in connection.execute(
        "SELECT number, title, metadata FROM videos ORDER BY number"
    ):
        first = number << PASSAGE_BITS
        try:
            facts = terms_of_facts(title, metadata)
            if any(facts):
                yield first, *facts, None, None
            if number in with_transcripts:
                for passage, *said in terms_of_passages(_transcripts_of(connection, number)):
                    yield first + passage, None, None, *said
        except (IndexDamagedError, ValueError, TypeError):
            continue  # Reported as what it is: a record or a transcript that is not what was written.


# Finding


def find_words(connection: sqlite3.Connection, query: str) -> WordMatches:
    """See `Catalog.find_words`."""
    (num_segments,) = connection.execute("SELECT num_segments FROM totals").fetchone()
    counts = {word: count for word in words_of_query(query) if (count := _count(connection, word))}
    chosen, telling = choosing_words(counts, num_segments)
    if chosen:
        statement = "SELECT rowid, bm25(words) FROM words WHERE words MATCH ?"
        rows = connection.execute(statement, (" OR ".join(map(_expression, chosen)),)).fetchall()
    elif telling:  # Already the rarest word is in too many rows to rank them.
        statement = "SELECT rowid, 0.0 FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?"
        rows = connection.execute(statement, (" AND ".join(map(_expression, telling)), MAX_ROWS)).fetchall()
    else:
        rows = []
    row_ids = np.array([row[0] for row in rows], np.int64)
    scores = np.array([row[1] for row in rows], np.float64)  # Of FTS5: the lower, the better.
    return best_of_videos(row_ids, scores, chosen or telling, is_cut=len(chosen) < len(telling))


def _count(connection: sqlite3.Connection, word: QueryWord) -> int:
    """In how many rows a word is; at most MAX_ROWS + 1."""
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)",
        (_expression(word), MAX_ROWS + 1),
    ).fetchone()
    return int(count)


def _expression(word: QueryWord) -> str:
    """The word in FTS5's query syntax: in quotation marks, so that nothing of it is syntax. Terms are letters
    and digits alone."""
    return f'"{" ".join(word.terms)}"{" *" if word.is_prefix else ""}'


def passage_starts(connection: sqlite3.Connection, matches: WordMatches) -> NDArray[np.float64]:
    """See `Catalog.passage_starts`."""
    row_ids = ((matches.video_keys << PASSAGE_BITS) + matches.passages).tolist()
    starts = dict(
        connection.execute(
            f"SELECT rowid, start_seconds FROM words WHERE rowid IN ({_IDS})", (json.dumps(row_ids),)
        ).fetchall()
    )
    return np.array([starts.get(row_id) or 0.0 for row_id in row_ids], np.float64)
