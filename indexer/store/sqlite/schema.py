"""The tables of the catalog, and how a catalog file comes to be."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Final

from indexer.errors import IndexDamagedError, IndexExistsError, IndexVersionError, InvalidRecordError
from indexer.store.checksums import NO_CHECKSUM, checksum_of_row, rows_of_facts
from indexer.store.records import IndexFacts, Successor, metadata_to_json
from indexer.store.sqlite.connections import translated, write_successor
from indexer.store.sqlite.files import SCHEMA as FILES_SCHEMA
from indexer.store.sqlite.words import SCHEMA as WORDS_SCHEMA
from indexer.store.text import nfc
from model.atomic_files import fsync_directory, fsync_file, make_directories

CATALOG_FILE = "catalog.sqlite3"
APPLICATION_ID = 0x58434C50
"""`XCLP`, in the header of the file: marks our catalog among SQLite databases."""

SCHEMA_VERSION = 6
PAGE_SIZE_BYTES = 8_192
"""Three video features (512 x 4 bytes) fit in a page of 8 KiB, only one in SQLite's usual 4 KiB: reading them
all touches a third of the pages. Larger pages hold hardly more of them in proportion, and each commit writes
more."""

MINIMUM_SQLITE = (3, 37, 0)
"""The first SQLite with STRICT tables."""

SCHEMA = f"""{FILES_SCHEMA}
-- Empty while this generation of the index is the current one.
CREATE TABLE succession (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    generation INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    row_crc32 INTEGER NOT NULL
) STRICT;

CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE totals (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    num_videos INTEGER NOT NULL,
    num_segments INTEGER NOT NULL
) STRICT;
INSERT INTO totals VALUES (1, 0, 0);

CREATE TABLE videos (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    content_sha256 TEXT NOT NULL UNIQUE CHECK (length(content_sha256) = 64),
    uri TEXT,
    title TEXT,
    metadata TEXT NOT NULL,
    duration_seconds REAL NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    frame_rate REAL NOT NULL,
    codec TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    partial INTEGER NOT NULL CHECK (partial IN (0, 1)),
    fraction_read REAL NOT NULL,
    trusted INTEGER NOT NULL CHECK (trusted IN (0, 1)),
    added_at REAL NOT NULL,
    sequence INTEGER NOT NULL UNIQUE,
    media_start_seconds REAL NOT NULL DEFAULT 0,
    recorded_at REAL,
    missing_since REAL,
    row_crc32 INTEGER NOT NULL
) STRICT;
CREATE INDEX videos_by_uri ON videos (uri);
CREATE INDEX videos_by_size ON videos (size_bytes);
CREATE INDEX videos_by_recorded_at ON videos (recorded_at, sequence);

-- AUTOINCREMENT: an id is never used twice, so an index that still holds a deleted one can only miss.
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    video_number INTEGER NOT NULL REFERENCES videos (number) ON DELETE CASCADE,
    start_seconds REAL NOT NULL,
    end_seconds REAL NOT NULL,
    num_frames INTEGER NOT NULL CHECK (num_frames > 0),
    frame_times BLOB NOT NULL,
    row_crc32 INTEGER NOT NULL,
    fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32),
    video_feature_crc32 INTEGER NOT NULL,
    video_feature BLOB NOT NULL
) STRICT;
CREATE INDEX segments_by_video ON segments (video_number);

-- Apart from `segments`, so that reading all video features does not read all frame features.
CREATE TABLE segment_frames (
    segment_id INTEGER PRIMARY KEY REFERENCES segments (id) ON DELETE CASCADE,
    frame_features_crc32 INTEGER NOT NULL,
    frame_features BLOB NOT NULL
) STRICT;

-- `token` is random: a snapshot made from another history of this catalog (before a restore) is recognised.
CREATE TABLE changes (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('add', 'update', 'delete')),
    video_id TEXT NOT NULL,
    segment_ids TEXT NOT NULL,
    changed_at REAL NOT NULL,
    token TEXT NOT NULL,
    row_crc32 INTEGER NOT NULL
) STRICT;

CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
    video_id TEXT NOT NULL,
    content_sha256 TEXT,
    source_path TEXT NOT NULL,
    uri TEXT,
    title TEXT,
    metadata TEXT NOT NULL,
    delete_source INTEGER NOT NULL CHECK (delete_source IN (0, 1)),
    reason TEXT,
    failure TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    worker_name TEXT,
    lease_expires_at REAL,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    row_crc32 INTEGER NOT NULL,
    CHECK ((state = 'running') = (lease_expires_at IS NOT NULL))
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, attempts, number);
CREATE UNIQUE INDEX one_open_job_for_a_video ON jobs (video_id) WHERE state IN ('queued', 'running');
{WORDS_SCHEMA}"""

_TO_4: Final = """
ALTER TABLE jobs ADD COLUMN failure TEXT;
UPDATE jobs SET failure = 'unknown' WHERE state = 'failed';
DROP TABLE idempotency_keys;
"""

_TO_5: Final = f"""
ALTER TABLE videos ADD COLUMN media_start_seconds REAL NOT NULL DEFAULT 0;
ALTER TABLE videos ADD COLUMN recorded_at REAL;
ALTER TABLE videos ADD COLUMN missing_since REAL;
CREATE INDEX videos_by_uri ON videos (uri);
CREATE INDEX videos_by_size ON videos (size_bytes);
CREATE INDEX videos_by_recorded_at ON videos (recorded_at, sequence);
{FILES_SCHEMA}"""

_VIDEO_COLUMNS_OF_4: Final = (
    "id, content_sha256, uri, title, metadata, duration_seconds, width, height, frame_rate, codec,"
    " size_bytes, partial, fraction_read, trusted, added_at, sequence"
)
_NEW_VIDEO_VALUES_OF_5: Final = (0.0, None, None)
"""Of the columns that format 5 adds, in the order in which checksums are over them."""


def _migrate_to_4(connection: sqlite3.Connection) -> None:
    _execute_all(connection, _TO_4)


def _migrate_to_5(connection: sqlite3.Connection) -> None:
    """Add columns and tables; bring titles and metadata to NFC, as they are stored from now on. A record that
    was not what was written does not become valid by it."""
    _execute_all(connection, _TO_5)
    title, metadata = map(_VIDEO_COLUMNS_OF_4.split(", ").index, ("title", "metadata"))
    changes = []
    for number, checksum, *values in connection.execute(
        f"SELECT number, row_crc32, {_VIDEO_COLUMNS_OF_4} FROM videos"
    ):
        new_checksum = NO_CHECKSUM
        if checksum_of_row(values) == checksum:
            values[title] = None if values[title] is None else nfc(values[title])
            if not unicodedata.is_normalized("NFC", values[metadata]):
                with contextlib.suppress(InvalidRecordError):  # A little longer now, and no more allowed.
                    values[metadata] = metadata_to_json(json.loads(values[metadata]))
            new_checksum = checksum_of_row([*values, *_NEW_VIDEO_VALUES_OF_5])
        changes.append((values[title], values[metadata], new_checksum, number))
    connection.executemany(
        "UPDATE videos SET title = ?, metadata = ?, row_crc32 = ? WHERE number = ?", changes
    )


def _migrate_to_6(connection: sqlite3.Connection) -> None:
    """Add the tables of words; they are filled in later transactions, see `fill_words`."""
    _execute_all(connection, WORDS_SCHEMA)
    connection.execute("INSERT INTO words_to_fill VALUES (1, 0)")


def _execute_all(connection: sqlite3.Connection, statements: str) -> None:
    """Not `executescript`, which would commit first. No statement of ours holds a semicolon in a text."""
    for statement in statements.split(";"):
        connection.execute(statement)


_MIGRATIONS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {
    3: _migrate_to_4,
    4: _migrate_to_5,
    5: _migrate_to_6,
}
"""What brings a catalog of this format to the next one. 3 is the format of version 0.1.0, 4 of 0.2.0."""


def create_catalog_file(directory: Path, facts: IndexFacts, successor_of: int | None = None) -> Path:
    """Make an empty catalog; the file appears whole or not at all.

    Args:
        directory: made if absent.
        facts: what the index shall be.
        successor_of: the generation that stays the current one until this one supersedes it; None where there
            is no other.

    Raises:
        IndexExistsError: one is there.
        IndexStorageError, OSError: it cannot be written.
    """
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise IndexVersionError(
            f"SQLite 3.37 or later is needed; this Python comes with {sqlite3.sqlite_version}"
        )
    path = directory / CATALOG_FILE
    if path.exists():
        raise IndexExistsError(f"an index is already in {directory}")
    make_directories(directory, mode=0o750)
    unfinished = directory / f"{CATALOG_FILE}.{secrets.token_hex(8)}.new"
    # Titles and metadata may be private: readable by the owner and the group. SQLite gives the -wal and -shm
    # files that it puts next to the database the same permissions.
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640))
    try:
        with contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE_SIZE_BYTES}")
            # The file has no name yet: it is brought to disk once, as a whole.
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(f"BEGIN; {SCHEMA}")
            rows = rows_of_facts(facts, time.time())
            connection.executemany("INSERT INTO facts VALUES (?, ?)", rows.items())
            if successor_of is not None:
                write_successor(connection, Successor(successor_of, epoch=0))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")  # Kept in the header, for every later connection.
        fsync_file(unfinished)
        _publish(unfinished, path)
    except sqlite3.DatabaseError as error:
        raise translated(error, path) from error
    finally:
        unfinished.unlink(missing_ok=True)
    fsync_directory(directory)
    return path


def _publish(unfinished: Path, path: Path) -> None:
    """Give a finished file its name without ever replacing another: two processes may create at the same
    moment."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise IndexExistsError(f"an index is already in {path.parent}") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links. Between this check and the renaming lies a moment in which another
        # process might create too; there is no better way there.
        if path.exists():
            raise IndexExistsError(f"an index is already in {path.parent}") from None
        unfinished.rename(path)


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """Make sure that this is a catalog of our format; bring one of an older format to it, in one transaction.

    Raises:
        IndexDamagedError: it is no catalog.
        IndexVersionError: it is of a format that this version does not read.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise IndexDamagedError(f"{path} is not a catalog of xclip-search")
    if _version(connection) in _MIGRATIONS:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have done it meanwhile.
            while (version := _version(connection)) in _MIGRATIONS:
                _MIGRATIONS[version](connection)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
    if (version := _version(connection)) != SCHEMA_VERSION:
        raise IndexVersionError(
            f"{path} is of format {version}, this version of xclip-search reads format {SCHEMA_VERSION};"
            " bring it over with `export` of the version that made it and `import` of this one, or index the"
            " videos again"
        )


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
