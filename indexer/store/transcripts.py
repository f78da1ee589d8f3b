"""Transcripts: what is said or shown as text in a video, line by line with times; and the passages that are
searched.

A passage is a few lines that follow one another: long enough that the words of a question meet in it, short
enough that its beginning is where to look.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from indexer.errors import IndexDamagedError, InvalidRecordError
from indexer.store.text import nfc

UNKNOWN_TRACK: Final = "und"
"""The tag for a language that is not known (BCP 47)."""

MAX_TRACK_LENGTH: Final = 40
TRACK_PATTERN: Final = r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*"
MAX_TRACKS: Final = 16
"""Of a video."""

MAX_LINES: Final = 50_000
"""Of a transcript; a film has 2,000."""

MAX_TRANSCRIPT_BYTES: Final = 4 << 20
"""Of a file, and of all lines as UTF-8; a film has 0.1 MB."""

PASSAGE_SECONDS: Final = 60.0
PASSAGE_CHARACTERS: Final = 600
"""A passage ends before the line that would lie beyond either, counted from its first line. Where these
change, `rebuild` has to make the passages again."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a transcript: its text in NFC, and when it is said, in seconds from the start of the
    video."""

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True)
class TranscriptFile:
    """The file that a transcript was read from.

    Attributes:
        uri: its file:// address.
        size_bytes: of the file.
        modified_ns: when it was last modified, in nanoseconds since 1970.
    """

    uri: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Transcript:
    """The lines of one track of a video.

    Attributes:
        track: a language tag or another short name, unique in the video: `en`, `de.forced`, `und`.
        lines: by their start.
        file: where they were read; None of what a client sent.
    """

    track: str
    lines: tuple[Line, ...]
    file: TranscriptFile | None = None


@dataclass(frozen=True)
class Passage:
    """Lines of a transcript that are searched together: those from `first` up to, but without, `end`."""

    track: str
    first: int
    end: int


def check_track(track: str) -> str:
    """`track`, or InvalidRecordError where it cannot be the name of one."""
    if len(track) > MAX_TRACK_LENGTH or not re.fullmatch(TRACK_PATTERN, track):
        raise InvalidRecordError(
            f"a track is named by at most {MAX_TRACK_LENGTH} letters and digits, with single . - or _ between"
            " them, such as en or pt-BR"
        )
    return track


def check_transcript(transcript: Transcript) -> Transcript:
    """The transcript as it is stored, its lines sorted and in NFC, or InvalidRecordError."""
    check_track(transcript.track)
    if not 1 <= len(transcript.lines) <= MAX_LINES:
        raise InvalidRecordError(f"a transcript has 1 to {MAX_LINES} lines")
    lines = []
    for line in transcript.lines:
        # Written this way, NaN fails too.
        if not (0 <= line.start_seconds <= line.end_seconds < math.inf) or "\0" in line.text:
            raise InvalidRecordError("a line of a transcript has a time that cannot be, or U+0000")
        lines.append(Line(float(line.start_seconds), float(line.end_seconds), nfc(line.text)))
    lines.sort(key=lambda line: (line.start_seconds, line.end_seconds))
    try:
        size_bytes = sum(len(line.text.encode()) for line in lines)
    except UnicodeEncodeError:
        raise InvalidRecordError("a line of a transcript is not valid Unicode") from None
    if size_bytes > MAX_TRANSCRIPT_BYTES:
        raise InvalidRecordError(f"a transcript has at most {MAX_TRANSCRIPT_BYTES >> 20} MiB of text")
    return Transcript(transcript.track, tuple(lines), transcript.file)


def check_transcripts(transcripts: Sequence[Transcript]) -> list[Transcript]:
    """Transcripts of one video as they are stored, or InvalidRecordError."""
    checked = [check_transcript(transcript) for transcript in transcripts]
    if len(checked) > MAX_TRACKS:
        raise InvalidRecordError(f"a video has at most {MAX_TRACKS} transcripts")
    if len({transcript.track for transcript in checked}) < len(checked):
        raise InvalidRecordError("two transcripts of a video are of the same track")
    return checked


def pack_lines(lines: Sequence[Line]) -> bytes:
    """Lines as they are stored: JSON, compressed to about a third."""
    rows = [[line.start_seconds, line.end_seconds, line.text] for line in lines]
    return zlib.compress(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode())


def unpack_lines(packed: bytes) -> tuple[Line, ...]:
    """What `pack_lines` made. Raises IndexDamagedError."""
    try:
        rows = json.loads(zlib.decompress(packed))
        return tuple(Line(start, end, text) for start, end, text in rows)
    except (zlib.error, ValueError, TypeError) as error:
        raise IndexDamagedError(f"the lines of a transcript are not what was written: {error}") from None


def passages(transcripts: Sequence[Transcript]) -> Iterator[Passage]:
    """The passages of a video, in the order of their tracks and lines."""
    for transcript in sorted(transcripts, key=lambda transcript: transcript.track):
        first, num_characters = 0, 0
        for position, line in enumerate(transcript.lines):
            is_beyond = line.start_seconds - transcript.lines[first].start_seconds > PASSAGE_SECONDS
            if position > first and (is_beyond or num_characters + len(line.text) > PASSAGE_CHARACTERS):
                yield Passage(transcript.track, first, position)
                first, num_characters = position, 0
            num_characters += len(line.text)
        yield Passage(transcript.track, first, len(transcript.lines))
