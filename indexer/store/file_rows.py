"""Files, kept-out content and transcripts between records and rows, the same in every store."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from indexer.errors import IndexDamagedError
from indexer.store.checksums import checksum_of_row
from indexer.store.records import KeptOut, KnownFile, check_count, check_sha256, check_text, check_time
from indexer.store.transcripts import Transcript, TranscriptFile, pack_lines, unpack_lines

FILE_COLUMNS: Final = "uri, size_bytes, modified_ns, content_sha256, failure, version"
"""In the order of the fields of `KnownFile`."""

KEPT_OUT_COLUMNS: Final = "content_sha256, video_id, title, uri, size_bytes, kept_out_at"
"""In the order of the fields of `KeptOut`."""

TRANSCRIPT_FILE_COLUMNS: Final = (
    "transcripts.track, transcripts.uri, transcripts.size_bytes, transcripts.modified_ns"
)
TRANSCRIPT_COLUMNS: Final = f"{TRANSCRIPT_FILE_COLUMNS}, transcripts.lines, transcripts.row_crc32"
"""With the name of the table, as it is joined with the videos."""


def row_of_file(file: KnownFile) -> tuple[Any, ...]:
    """FILE_COLUMNS and row_crc32. Raises InvalidRecordError."""
    row = (
        check_text("uri", file.uri),
        check_count("size_bytes", file.size_bytes),
        file.modified_ns,
        check_sha256(file.content_sha256),
        check_text("failure", file.failure),
        check_text("version", file.version),
    )
    return *row, checksum_of_row(row)


def known_files(rows: Iterable[Sequence[Any]]) -> Iterator[KnownFile]:
    """The files of rows of FILE_COLUMNS and row_crc32. One that is not what was written is as good as none:
    its file is read again."""
    for *values, checksum in rows:
        if checksum_of_row(values) == checksum:
            yield KnownFile(*values)


def damaged_files(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Addresses of those rows that are not what was written."""
    for *values, checksum in rows:
        if checksum_of_row(values) != checksum:
            yield values[0]


def row_of_kept_out(kept_out: KeptOut) -> tuple[Any, ...]:
    """KEPT_OUT_COLUMNS and row_crc32. Raises InvalidRecordError."""
    row = (
        check_sha256(kept_out.content_sha256),
        check_text("video_id", kept_out.video_id),
        check_text("title", kept_out.title),
        check_text("uri", kept_out.uri),
        check_count("size_bytes", kept_out.size_bytes),
        check_time("kept_out_at", kept_out.kept_out_at),
    )
    return *row, checksum_of_row(row)


def kept_out_of(row: Sequence[Any]) -> KeptOut:
    """The content in a row of KEPT_OUT_COLUMNS and row_crc32. Raises IndexDamagedError."""
    *values, checksum = row
    if checksum_of_row(values) != checksum:
        raise IndexDamagedError(
            "the catalog is damaged: the record of content that is kept out does not match its checksum;"
            " restore a backup"
        )
    return KeptOut(*values)


def row_of_transcript(transcript: Transcript) -> tuple[Any, ...]:
    """TRANSCRIPT_COLUMNS of a checked transcript. Raises InvalidRecordError."""
    file = transcript.file
    values: tuple[str | int | None, ...] = (transcript.track, None, None, None)
    if file is not None:
        values = (transcript.track, check_text("uri", file.uri), file.size_bytes, file.modified_ns)
    lines = pack_lines(transcript.lines)
    return *values, lines, _checksum_of_transcript(values, lines)


def transcript_of(row: Sequence[Any]) -> Transcript:
    """The transcript in a row of TRANSCRIPT_COLUMNS. Raises IndexDamagedError."""
    *values, lines, checksum = row
    track, *file = values
    if not isinstance(lines, bytes) or _checksum_of_transcript(values, lines) != checksum:
        raise IndexDamagedError(
            "the catalog is damaged: a transcript is not what was written; run verify to learn which, and"
            " delete it or restore a backup"
        )
    return Transcript(track, unpack_lines(lines), None if file[0] is None else TranscriptFile(*file))


def _checksum_of_transcript(values: Sequence[str | int | None], lines: bytes) -> int:
    return checksum_of_row([*values, zlib.crc32(lines)])
