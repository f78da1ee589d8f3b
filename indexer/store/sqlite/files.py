"""Files that were read, and content that is kept out: what makes indexing a synchronisation.

What is known of files is there to spare reading them again: a row that is not what was written is as good as
none. Kept-out content is a decision of the user's, and part of the truth.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from indexer.errors import VideoNotFoundError
from indexer.store.checksums import checksum_of_row
from indexer.store.file_rows import (
    FILE_COLUMNS,
    KEPT_OUT_COLUMNS,
    damaged_files,
    kept_out_of,
    known_files,
    row_of_file,
    row_of_kept_out,
)
from indexer.store.records import KeptOut, KnownFile
from indexer.store.sqlite.connections import VALUES_AT_ONCE, Transaction

if TYPE_CHECKING:
    from indexer.store.sqlite.catalog import Catalog

SCHEMA = """
CREATE TABLE files (
    uri TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    content_sha256 TEXT NOT NULL,
    failure TEXT,
    version TEXT,
    row_crc32 INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX files_by_content ON files (content_sha256);

CREATE TABLE kept_out (
    content_sha256 TEXT PRIMARY KEY,
    video_id TEXT NOT NULL,
    title TEXT,
    uri TEXT,
    size_bytes INTEGER NOT NULL,
    kept_out_at REAL NOT NULL,
    row_crc32 INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX kept_out_by_size ON kept_out (size_bytes);
"""


class FileTable:
    """The files that were read for a catalog, by their addresses; see `KnownFile`."""

    def __init__(self, catalog: Catalog) -> None:
        self._connections = catalog.connections

    def find(self, uris: Sequence[str]) -> dict[str, KnownFile]:
        """Those of these addresses that are known."""
        return {file.uri: file for file in self._select("uri", uris)}

    def with_content(self, content_sha256s: Sequence[str]) -> list[KnownFile]:
        """The files that held one of these contents when they were read."""
        return list(self._select("content_sha256", content_sha256s))

    def below(self, folder_uri: str) -> Iterator[KnownFile]:
        """The files below a folder, in the order of their addresses.

        folder_uri: without a slash at its end.
        """
        last = f"{folder_uri}/"
        while True:
            with self._connections.reading() as connection:
                rows = connection.execute(
                    f"SELECT {FILE_COLUMNS}, row_crc32 FROM files WHERE uri > ? AND uri < ?"
                    " ORDER BY uri LIMIT ?",
                    (last, f"{folder_uri}0", VALUES_AT_ONCE),  # 0 follows the slash.
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from known_files(rows)

    def remember(self, files: Iterable[KnownFile], transaction: Transaction | None = None) -> None:
        """Note what was found in files, instead of what was known of them."""
        rows = [row_of_file(file) for file in files]
        if rows:
            with self._connections.joined(transaction) as connection:
                connection.executemany(
                    f"INSERT OR REPLACE INTO files ({FILE_COLUMNS}, row_crc32) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )

    def forget(self, uris: Sequence[str], transaction: Transaction | None = None) -> None:
        """Know nothing of these addresses any more."""
        if uris:
            with self._connections.joined(transaction) as connection:
                connection.executemany("DELETE FROM files WHERE uri = ?", [(uri,) for uri in uris])

    def damaged(self) -> Iterator[str]:
        """Addresses of the rows that are not what was written."""
        with self._connections.reading() as connection:
            yield from _damaged_files(connection)

    def forget_damaged(self, transaction: Transaction) -> None:
        """Remove those rows: their files are read again."""
        self.forget(list(_damaged_files(transaction.connection)), transaction)

    def _select(self, column: str, values: Sequence[str]) -> Iterator[KnownFile]:
        yield from known_files(
            self._connections.rows_of(
                f"SELECT {FILE_COLUMNS}, row_crc32 FROM files"
                f" WHERE {column} IN (SELECT value FROM json_each(?))",
                values,
            )
        )


class KeptOutTable:
    """The content that is kept out of a catalog, by its sha256; see `KeptOut`."""

    def __init__(self, catalog: Catalog) -> None:
        self._connections = catalog.connections

    def add(self, kept_out: KeptOut, transaction: Transaction | None = None) -> None:
        """Keep this content out. A caller that deletes its video does both in one transaction."""
        row = row_of_kept_out(kept_out)
        with self._connections.joined(transaction) as connection:
            connection.execute(
                f"INSERT OR REPLACE INTO kept_out ({KEPT_OUT_COLUMNS}, row_crc32)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def find(self, content_sha256s: Sequence[str]) -> dict[str, KeptOut]:
        """Those of these contents that are kept out."""
        rows = self._connections.rows_of(
            f"SELECT {KEPT_OUT_COLUMNS}, row_crc32 FROM kept_out"
            " WHERE content_sha256 IN (SELECT value FROM json_each(?))",
            content_sha256s,
        )
        return {row[0]: kept_out_of(row) for row in rows}

    def list_all(self) -> list[KeptOut]:
        """All, the last first."""
        with self._connections.reading() as connection:
            return [
                kept_out_of(row)
                for row in connection.execute(
                    f"SELECT {KEPT_OUT_COLUMNS}, row_crc32 FROM kept_out"
                    " ORDER BY kept_out_at DESC, content_sha256"
                )
            ]

    def let_in(self, content_sha256: str) -> bool:
        """Take this content again when it is next offered. False where it was not kept out."""
        with self._connections.transaction() as connection:
            done = connection.execute("DELETE FROM kept_out WHERE content_sha256 = ?", (content_sha256,))
            return done.rowcount > 0

    def let_in_video(self, video_id: str) -> None:
        """Take the content again that was of this video; an id that was given twice may be of several.

        Raises:
            VideoNotFoundError: no content is kept out that was of a video of this id.
        """
        with self._connections.transaction() as connection:
            done = connection.execute("DELETE FROM kept_out WHERE video_id = ?", (video_id,))
            if not done.rowcount:
                raise VideoNotFoundError(video_id)


def find_kept_out(connection: sqlite3.Connection, content_sha256: str) -> KeptOut | None:
    """What this connection sees of one content, or None where it is not kept out."""
    row = connection.execute(
        f"SELECT {KEPT_OUT_COLUMNS}, row_crc32 FROM kept_out WHERE content_sha256 = ?", (content_sha256,)
    ).fetchone()
    return None if row is None else kept_out_of(row)


def damaged_kept_out(connection: sqlite3.Connection) -> Iterator[str]:
    """The contents whose rows are not what was written."""
    for row in connection.execute(f"SELECT {KEPT_OUT_COLUMNS}, row_crc32 FROM kept_out"):
        if checksum_of_row(row[:-1]) != row[-1]:
            yield row[0]


def carry_over(source: Transaction, transaction: Transaction) -> None:
    """Bring the files and the kept-out content of another generation's catalog to that of `transaction`, in
    place of what is there; rows as they are, damaged ones too."""
    for table, columns in (("files", FILE_COLUMNS), ("kept_out", KEPT_OUT_COLUMNS)):
        transaction.connection.execute(f"DELETE FROM {table}")
        marks = ", ".join("?" * (columns.count(",") + 2))
        transaction.connection.executemany(
            f"INSERT INTO {table} ({columns}, row_crc32) VALUES ({marks})",
            source.connection.execute(f"SELECT {columns}, row_crc32 FROM {table}"),
        )


def _damaged_files(connection: sqlite3.Connection) -> Iterator[str]:
    return damaged_files(connection.execute(f"SELECT {FILE_COLUMNS}, row_crc32 FROM files"))
