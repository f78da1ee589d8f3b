"""Transcripts, and the index of words: titles, texts of metadata and transcripts, in PostgreSQL.

The terms are ours (`indexer.store.words`), so that no dictionary of the server has a say. A tsvector of them
finds the rows, and a text of them tells where they follow one another and how often. Rows are ranked as
SQLite's FTS5 does, by the same formula on the same counts, so that both stores give the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from indexer.store.postgres.changes import write_change
from indexer.store.postgres.connections import Connections, Row, StoreConnection, Table, Transaction
from indexer.store.records import WordMatches
from indexer.store.text import nfc
from indexer.store.transcripts import MAX_TRACKS, Transcript, TranscriptFile, check_track, check_transcript
from indexer.store.word_rows import (
    MAX_ROWS,
    PASSAGE_BITS,
    best_of_videos,
    choosing_words,
    terms_of_facts,
    terms_of_passages,
)
from indexer.store.words import QueryWord, words_of_query

if TYPE_CHECKING:
    from indexer.store.postgres.catalog import PostgresCatalog

_MAX_LEXEME: Final = 500
"""Characters of a term that are looked for in the index of the server, which takes 2,046 bytes."""

TRANSCRIPTS: Final = Table(
    "transcripts", "video_number, track, uri, size_bytes, modified_ns, lines, row_crc32"
)
WORDS: Final = Table("words", "row_id, terms, num_terms, start_seconds, lexemes")

_K1: Final = 1.2
_B: Final = 0.75
_LEAST_IDF: Final = 1e-6
"""Of BM25, as in FTS5's fts5_aux.c: a word in more than half of the rows still says a little."""


class TranscriptTable:
    """The transcripts of an index; the contract stands at the one of SQLite."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._connections = catalog.connections
        self._catalog = catalog

    def of_videos(self, video_ids: Sequence[str]) -> dict[str, list[Transcript]]:
        """The transcripts of those of these videos that have some, by id and in the order of their tracks."""
        rows = self._connections.rows(
            f"SELECT videos.id, {TRANSCRIPT_COLUMNS} FROM transcripts"
            " JOIN videos ON videos.number = video_number"
            " WHERE videos.id = ANY(%s::text[]) ORDER BY videos.id, track",
            (list(video_ids),),
        )
        return {
            video_id: [transcript_of(row[1:]) for row in of_one]
            for video_id, of_one in groupby(rows, key=lambda row: row[0])
        }

    def files_of_videos(self, video_ids: Sequence[str]) -> dict[str, dict[str, TranscriptFile | None]]:
        """Which tracks these videos have, and the files that they were read from, by id and track."""
        rows = self._connections.rows(
            f"SELECT videos.id, {TRANSCRIPT_FILE_COLUMNS} FROM transcripts"
            " JOIN videos ON videos.number = video_number"
            " WHERE videos.id = ANY(%s::text[])",
            (list(video_ids),),
        )
        found: dict[str, dict[str, TranscriptFile | None]] = {}
        for video_id, track, *file in rows:
            found.setdefault(video_id, {})[track] = None if file[0] is None else TranscriptFile(*file)
        return found

    def put(self, video_id: str, transcript: Transcript, transaction: Transaction | None = None) -> None:
        """Store a transcript of a video instead of the one of the same track, and log an `update`."""
        transcript = check_transcript(transcript)
        with self._connections.joined(transaction) as connection:
            number, video_id = _video_number(connection, video_id)
            _delete_transcript(connection, number, transcript.track)
            row = connection.execute(
                "SELECT count(*) FROM transcripts WHERE video_number = %s", (number,)
            ).fetchone()
            if row is not None and row[0] >= MAX_TRACKS:  # The deletion was of none then.
                raise InvalidRecordError(f"a video has at most {MAX_TRACKS} transcripts: delete one first")
            TRANSCRIPTS.insert(connection, [(number, *row_of_transcript(transcript))])
            _index_transcripts(connection, number)
            write_change(connection, "update", video_id, (), self._catalog.clock())

    def delete(self, video_id: str, track: str, transaction: Transaction | None = None) -> None:
        """Remove a transcript, and log an `update`."""
        with self._connections.joined(transaction) as connection:
            number, video_id = _video_number(connection, video_id)
            if not _delete_transcript(connection, number, track):
                raise TranscriptNotFoundError(video_id, track)
            _index_transcripts(connection, number)
            write_change(connection, "update", video_id, (), self._catalog.clock())


def _video_number(connection: StoreConnection, video_id: str) -> tuple[int, str]:
    row = connection.execute(
        "SELECT number, id FROM videos WHERE id = ANY(%s::text[]) ORDER BY id != %s",
        ([video_id, nfc(video_id)], video_id),
    ).fetchone()
    if row is None:
        raise VideoNotFoundError(video_id)
    return row[0], row[1]


def _delete_transcript(connection: StoreConnection, number: int, track: str) -> bool:
    done = connection.execute(
        "DELETE FROM transcripts WHERE video_number = %s AND track = %s", (number, check_track(track))
    )
    return done.rowcount > 0


def _transcripts_of(connection: StoreConnection, number: int) -> list[Transcript]:
    rows = connection.execute(
        f"SELECT {TRANSCRIPT_COLUMNS} FROM transcripts WHERE video_number = %s ORDER BY track", (number,)
    )
    return [transcript_of(row) for row in rows.fetchall()]


# The index of words


def rows_of_words(
    number: int, title: str | None, metadata: str, transcripts: Sequence[Transcript]
) -> list[Row]:
    """Rows of WORDS of a video. metadata: JSON. transcripts: checked."""
    return [*_row_of_facts(number, title, metadata), *_rows_of_passages(number, transcripts)]


def update_words(connection: StoreConnection, number: int, title: str | None, metadata: str) -> None:
    """Index title and metadata of a video anew."""
    first = number << PASSAGE_BITS
    _delete(connection, first, first + 1)
    _insert(connection, list(_row_of_facts(number, title, metadata)))


def forget_words(connection: StoreConnection, number: int) -> None:
    """Index no word of a video any more."""
    _delete(connection, number << PASSAGE_BITS, (number + 1) << PASSAGE_BITS)


def _index_transcripts(connection: StoreConnection, number: int) -> None:
    """Index the transcripts of a video anew."""
    _delete(connection, (number << PASSAGE_BITS) + 1, (number + 1) << PASSAGE_BITS)
    _insert(connection, list(_rows_of_passages(number, _transcripts_of(connection, number))))


def _row_of_facts(number: int, title: str | None, metadata: str) -> Iterator[Row]:
    of_title, of_metadata = (text.split() for text in terms_of_facts(title, metadata))
    if of_title or of_metadata:
        terms = f"{_padded(of_title)}\n{_padded(of_metadata)}"
        yield _word_row(number << PASSAGE_BITS, terms, [*of_title, *of_metadata], None)


def _rows_of_passages(number: int, transcripts: Sequence[Transcript]) -> Iterator[Row]:
    for passage, terms, start_seconds in terms_of_passages(transcripts):
        listed = terms.split()
        yield _word_row((number << PASSAGE_BITS) + passage, _padded(listed), listed, start_seconds)


def _padded(terms: Sequence[str]) -> str:
    return "".join(f" {term} " for term in terms)


def _word_row(row_id: int, text: str, terms: Sequence[str], start_seconds: float | None) -> Row:
    # As PostgreSQL writes a tsvector. Terms are letters and digits alone, so that nothing needs escaping.
    lexemes = " ".join(f"'{term}'" for term in sorted({term[:_MAX_LEXEME] for term in terms}))
    return row_id, text, len(terms), start_seconds, lexemes


def _insert(connection: StoreConnection, rows: Sequence[Row]) -> None:
    if not rows:
        return
    WORDS.insert(connection, rows)
    connection.execute(
        "UPDATE counters SET num_word_rows = num_word_rows + %s, num_terms = num_terms + %s",
        (len(rows), sum(row[2] for row in rows)),
    )


def _delete(connection: StoreConnection, first: int, end: int) -> None:
    connection.execute(
        "WITH gone AS (DELETE FROM words WHERE row_id >= %s AND row_id < %s RETURNING num_terms)"
        " UPDATE counters SET num_word_rows = num_word_rows - (SELECT count(*) FROM gone),"
        " num_terms = num_terms - (SELECT coalesce(sum(num_terms), 0) FROM gone)",
        (first, end),
    )


def rebuild_words(connection: StoreConnection) -> None:
    """Make the index again from titles, metadata and transcripts."""
    connection.execute("DELETE FROM words")
    connection.execute("UPDATE counters SET num_word_rows = 0, num_terms = 0")
    for rows in _expected_rows(connection):
        _insert(connection, rows)


def _expected_rows(connection: StoreConnection) -> Iterator[list[Row]]:
    """The rows of each video, those that are read in one block together."""
    last = 0
    while videos := connection.execute(
        "SELECT number, title, metadata, EXISTS (SELECT 1 FROM transcripts WHERE video_number = number)"
        " FROM videos WHERE number > %s ORDER BY number LIMIT 1000",
        (last,),
    ).fetchall():
        rows: list[Row] = []
        for number, title, metadata, has_transcripts in videos:
            try:
                rows += _row_of_facts(number, title, metadata)
                if has_transcripts:
                    rows += _rows_of_passages(number, _transcripts_of(connection, number))
            except (IndexDamagedError, ValueError, TypeError):
                continue  # Reported as what it is: a record or a transcript that is not what was written.
        yield rows
        last = videos[-1][0]


def damaged_transcripts(connection: StoreConnection) -> Iterator[str]:
    """What is wrong with transcripts, a sentence each."""
    rows = connection.execute(
        f"SELECT videos.id, {TRANSCRIPT_COLUMNS} FROM transcripts JOIN videos ON videos.number = video_number"
    )
    for video_id, *row in rows:
        try:
            transcript_of(row)
        except IndexDamagedError:
            yield f"the transcript {row[0]} of video {video_id} is not what was written"


def damaged_words(connection: StoreConnection) -> Iterator[str]:
    """What in the index of words is not what titles, metadata and transcripts say, a sentence each."""
    num_rows = num_terms = 0
    for rows in _expected_rows(connection):
        num_rows += len(rows)
        num_terms += sum(row[2] for row in rows)
        found = {
            row[0]: row
            for row in connection.execute(
                "SELECT row_id, terms, num_terms, start_seconds, lexemes::text FROM words"
                " WHERE row_id = ANY(%s::bigint[])",
                ([row[0] for row in rows],),
            ).fetchall()
        }
        for row in rows:
            there = found.get(row[0])
            if there is None:
                yield f"words of video number {row[0] >> PASSAGE_BITS} are missing"
            elif there != row:
                yield f"the words of video number {row[0] >> PASSAGE_BITS} are not what it says"
    counted = connection.execute(
        "SELECT count(*), coalesce(sum(words.num_terms), 0), min(counters.num_word_rows),"
        " min(counters.num_terms) FROM counters LEFT JOIN words ON true"
        " WHERE row_id IS NOT NULL"
    ).fetchone()
    if counted is not None and counted[0] and counted != (num_rows, num_terms, num_rows, num_terms):
        yield "the index of words counts other rows than there are, or holds some that belong to nothing"


# Finding


def find_words(connections: Connections, query: str) -> WordMatches:
    """The videos in which words of a query are, best first. Two round trips."""
    words = words_of_query(query)
    if not words:
        return best_of_videos(np.empty(0, np.int64), np.empty(0), (), is_cut=False)
    counted = [_count(word) for word in words]
    with connections.snapshot() as connection:
        row = connection.execute(
            "SELECT num_segments, num_word_rows, num_terms, "
            + ", ".join(sql for sql, _ in counted)
            + " FROM counters",
            [value for _, values in counted for value in values],
        ).fetchone()
        num_segments, num_rows, num_terms, *numbers = row or (0, 0, 0)
        counts = {word: number for word, number in zip(words, numbers, strict=True) if number}
        chosen, telling = choosing_words(counts, num_segments)
        if chosen:
            row_ids, scores = _ranked(
                connection, chosen, [counts[word] for word in chosen], num_rows, num_terms
            )
        elif telling:  # Already the rarest word is in too many rows to rank them.
            row_ids = _latest(connection, telling)
            scores = np.zeros(len(row_ids))
        else:
            row_ids, scores = np.empty(0, np.int64), np.empty(0)
    return best_of_videos(row_ids, scores, chosen or telling, is_cut=len(chosen) < len(telling))


def _count(word: QueryWord) -> tuple[str, list[str]]:
    """SQL of how many rows a word is in, at most MAX_ROWS + 1, and its values."""
    sql, values = _is_in(word)
    return f"(SELECT count(*) FROM (SELECT 1 FROM words WHERE {sql} LIMIT {MAX_ROWS + 1}) AS found)", values


def _is_in(word: QueryWord) -> tuple[str, list[str]]:
    """SQL of whether a word is in a row, and its values."""
    by_index = "lexemes @@ %s::tsquery"
    if len(word.terms) == 1 and len(word.terms[0]) < _MAX_LEXEME:
        return by_index, [_tsquery(word)]
    times, values = _times(word)
    return f"({by_index} AND {times} > 0)", [_tsquery(word), *values]


def _times(word: QueryWord) -> tuple[str, list[str]]:
    """SQL of how often a word is in a row, and its values."""
    last = f" {word.terms[-1]}" if word.is_prefix else f" {word.terms[-1]} "
    if len(word.terms) == 1:
        return "(length(terms) - length(replace(terms, %s, ''))) / length(%s)", [last, last]
    # Only the first term is taken, so that occurrences may overlap. Terms are letters and digits alone.
    first, *others = word.terms[:-1]
    return "regexp_count(terms, %s)", [f" {first} (?={_padded(others)}{last})"]


def _tsquery(word: QueryWord) -> str:
    """All terms of a word, for the index. Terms are letters and digits alone, so that nothing is syntax."""
    parts = [f"'{term[:_MAX_LEXEME]}'" for term in word.terms]
    return " & ".join(parts) + (":*" if word.is_prefix else "")


def _ranked(
    connection: StoreConnection,
    words: Sequence[QueryWord],
    counts: Sequence[int],
    num_rows: int,
    num_terms: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids of the rows that hold one of these words, int64 [N], and minus their BM25, float64 [N].

    counts: in how many rows each word is. num_rows, num_terms: of the index of words.
    """
    times = [_times(word) for word in words]
    rows = connection.execute(
        f"SELECT row_id, num_terms, {', '.join(sql for sql, _ in times)} FROM words"
        " WHERE lexemes @@ %s::tsquery",
        [
            *(value for _, values in times for value in values),
            " | ".join(f"({_tsquery(word)})" for word in words),
        ],
        binary=True,
    ).fetchall()
    table = np.array(rows, np.int64).reshape(-1, 2 + len(words))
    table = table[(table[:, 2:] > 0).any(axis=1)]  # The index does not know whether terms follow one another.
    lengths, scores = table[:, 1].astype(np.float64), np.zeros(len(table))
    mean_length = num_terms / max(1, num_rows)
    for column, count in enumerate(counts, start=2):
        idf = math.log((num_rows - count + 0.5) / (count + 0.5))
        times_in = table[:, column].astype(np.float64)
        scores += (idf if idf > 0 else _LEAST_IDF) * (
            (times_in * (_K1 + 1.0)) / (times_in + _K1 * (1 - _B + _B * lengths / mean_length))
        )
    return table[:, 0], -scores


def _latest(connection: StoreConnection, words: Sequence[QueryWord]) -> NDArray[np.int64]:
    """Ids of the latest rows that hold all of these words, int64 [N]."""
    conditions = [_is_in(word) for word in words]
    values: list[Any] = [value for _, of_word in conditions for value in of_word]
    rows = connection.execute(
        f"SELECT row_id FROM words WHERE {' AND '.join(sql for sql, _ in conditions)}"
        " ORDER BY row_id DESC LIMIT %s",
        [*values, MAX_ROWS],
    ).fetchall()
    return np.array([row[0] for row in rows], np.int64)


def passage_starts(connections: Connections, matches: WordMatches) -> NDArray[np.float64]:
    """When the passage of each match begins, float64 [N]; 0 for title and metadata."""
    row_ids = ((matches.video_keys << PASSAGE_BITS) + matches.passages).tolist()
    starts: dict[int, float] = dict(
        connections.rows(
            "SELECT row_id, start_seconds FROM words WHERE row_id = ANY(%s::bigint[])", (row_ids,)
        )
    )
    return np.array([starts.get(row_id) or 0.0 for row_id in row_ids], np.float64)
