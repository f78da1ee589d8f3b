"""Files that were read, and content that is kept out, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from indexer.errors import VideoNotFoundError
from indexer.store.file_rows import (
    FILE_COLUMNS,
    KEPT_OUT_COLUMNS,
    damaged_files,
    kept_out_of,
    known_files,
    row_of_file,
    row_of_kept_out,
)
from indexer.store.postgres.connections import ROWS_AT_ONCE, StoreConnection, Transaction
from indexer.store.records import KeptOut, KnownFile

if TYPE_CHECKING:
    from indexer.store.postgres.catalog import PostgresCatalog

_FILES = f"SELECT {FILE_COLUMNS}, row_crc32 FROM files"
_KEPT_OUT = f"SELECT {KEPT_OUT_COLUMNS}, row_crc32 FROM kept_out"


class FileTable:
    """The files that were read for an index; the contract stands at the one of SQLite."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._connections = catalog.connections

    def find(self, uris: Sequence[str]) -> dict[str, KnownFile]:
        """Those of these addresses that are known."""
        rows = self._connections.rows(f"{_FILES} WHERE uri = ANY(%s::text[])", (list(uris),))
        return {file.uri: file for file in known_files(rows)}

    def with_content(self, content_sha256s: Sequence[str]) -> list[KnownFile]:
        """The files that held one of these contents when they were read."""
        wanted = (list(content_sha256s),)
        return list(
            known_files(self._connections.rows(f"{_FILES} WHERE content_sha256 = ANY(%s::text[])", wanted))
        )

    def below(self, folder_uri: str) -> Iterator[KnownFile]:
        """The files below a folder, in the order of their addresses."""
        last = f"{folder_uri}/"
        while rows := self._connections.rows(
            f"{_FILES} WHERE uri > %s AND uri < %s ORDER BY uri LIMIT %s",
            (last, f"{folder_uri}0", ROWS_AT_ONCE),  # 0 follows the slash.
        ):
            last = rows[-1][0]
            yield from known_files(rows)

    def remember(self, files: Iterable[KnownFile], transaction: Transaction | None = None) -> None:
        """Note what was found in files, instead of what was known of them."""
        rows = [row_of_file(file) for file in files]
        if not rows:
            return
        names = FILE_COLUMNS.split(", ")[1:]
        changed = ", ".join(f"{name} = excluded.{name}" for name in (*names, "row_crc32"))
        with self._connections.joined(transaction) as connection, connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO files ({FILE_COLUMNS}, row_crc32) VALUES (%s, %s, %s, %s, %s, %s, %s)"
                f" ON CONFLICT (uri) DO UPDATE SET {changed}",
                rows,
            )

    def forget(self, uris: Sequence[str], transaction: Transaction | None = None) -> None:
        """Know nothing of these addresses any more."""
        if uris:
            with self._connections.joined(transaction) as connection:
                connection.execute("DELETE FROM files WHERE uri = ANY(%s::text[])", (list(uris),))

    def damaged(self) -> Iterator[str]:
        """Addresses of the rows that are not what was written."""
        with self._connections.snapshot() as connection:
            yield from damaged_files(connection.execute(_FILES))

    def forget_damaged(self, transaction: Transaction) -> None:
        """Remove those rows: their files are read again."""
        self.forget(list(damaged_files(transaction.connection.execute(_FILES))), transaction)


class KeptOutTable:
    """The content that is kept out of an index; the contract stands at the one of SQLite."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._connections = catalog.connections

    def add(self, kept_out: KeptOut, transaction: Transaction | None = None) -> None:
        """Keep this content out."""
        names = KEPT_OUT_COLUMNS.split(", ")[1:]
        changed = ", ".join(f"{name} = excluded.{name}" for name in (*names, "row_crc32"))
        with self._connections.joined(transaction) as connection:
            connection.execute(
                f"INSERT INTO kept_out ({KEPT_OUT_COLUMNS}, row_crc32) VALUES (%s, %s, %s, %s, %s, %s, %s)"
                f" ON CONFLICT (content_sha256) DO UPDATE SET {changed}",
                row_of_kept_out(kept_out),
            )

    def find(self, content_sha256s: Sequence[str]) -> dict[str, KeptOut]:
        """Those of these contents that are kept out."""
        rows = self._connections.rows(
            f"{_KEPT_OUT} WHERE content_sha256 = ANY(%s::text[])", (list(content_sha256s),)
        )
        return {row[0]: kept_out_of(row) for row in rows}

    def list_all(self) -> list[KeptOut]:
        """All, the last first."""
        rows = self._connections.rows(f"{_KEPT_OUT} ORDER BY kept_out_at DESC, content_sha256")
        return [kept_out_of(row) for row in rows]

    def let_in(self, content_sha256: str) -> bool:
        """Take this content again when it is next offered. False where it was not kept out."""
        with self._connections.transaction() as connection:
            done = connection.execute("DELETE FROM kept_out WHERE content_sha256 = %s", (content_sha256,))
            return done.rowcount > 0

    def let_in_video(self, video_id: str) -> None:
        """Take the content again that was of this video. Raises VideoNotFoundError."""
        with self._connections.transaction() as connection:
            if not connection.execute("DELETE FROM kept_out WHERE video_id = %s", (video_id,)).rowcount:
                raise VideoNotFoundError(video_id)


def damaged_kept_out(connection: StoreConnection) -> Iterator[str]:
    """The contents whose rows are not what was written."""
    return damaged_files(connection.execute(_KEPT_OUT))  # The first column of both says whose a row is.
