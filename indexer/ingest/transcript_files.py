"""Files of transcripts beside a video: which belong to it, and what they say.

    movie.mkv    movie.srt -> und    movie.en.srt -> en    movie.de.forced.vtt -> de.forced

SubRip (.srt) has no standard and comes from many programs, so that both formats are read alike and leniently:
what begins with a line of two times is a line of the transcript up to a blank one, and all else (numbers,
WEBVTT, NOTE and STYLE blocks, cues with broken times) is passed over. docs/decisions/0025 says why no library
does it. Subtitles inside the files of videos are not read.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from indexer.errors import FetchError, InvalidRecordError, TranscriptError
from indexer.ingest.library import FoundFile
from indexer.ingest.remote_files import read_bytes
from indexer.store.text import nfc
from indexer.store.transcripts import (
    MAX_LINES,
    MAX_TRACK_LENGTH,
    MAX_TRACKS,
    MAX_TRANSCRIPT_BYTES,
    UNKNOWN_TRACK,
    Line,
    Transcript,
    TranscriptFile,
    check_transcript,
)

TRANSCRIPT_EXTENSIONS: Final = frozenset({".srt", ".vtt"})

Tracks = tuple[tuple[str, FoundFile], ...]
"""Files of transcripts of one video, each with its track."""

_MARKS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_TIME: Final = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})[.,:](\d{1,3})"
_TIMING: Final = re.compile(rf"\s*{_TIME}\s*--?>\s*{_TIME}(?:\s.*)?")
_MARKUP: Final = re.compile(r"</?[A-Za-z0-9:.][^<>]*>|\{\\[^{}]*\}")
"""Tags of HTML and WebVTT, times of karaoke, and the positions of SubStation that SubRip files carry."""

_LINE_BREAK: Final = re.compile(r"\r\n?|\n|\u2028")
_NOT_OF_A_TRACK: Final = re.compile(r"[^A-Za-z0-9]+")


def find_transcripts(videos: Iterable[str], files: Iterable[FoundFile]) -> dict[str, Tracks]:
    """The files of transcripts that lie beside videos, by the path of the video.

    Args:
        videos: their paths.
        files: of transcripts. One belongs to the video whose name without its ending it begins with, the
            longest such; of two files of the same track the first counts, in the order of their names.
    """
    stems: dict[tuple[str, str], list[str]] = {}
    for path in videos:
        folder, name = os.path.split(path)
        stems.setdefault((folder, nfc(_without_ending(name))), []).append(path)
    found: dict[str, dict[str, FoundFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        folder, name = os.path.split(file.path)
        stem = base = nfc(_without_ending(name))
        while (folder, stem) not in stems and "." in stem:
            stem = _without_ending(stem)
        for path in stems.get((folder, stem), ()):
            found.setdefault(path, {}).setdefault(_track(base[len(stem) :]), file)
    return {path: tuple(sorted(tracks.items())[:MAX_TRACKS]) for path, tracks in found.items()}


def name_tracks(video: str, files: Iterable[FoundFile]) -> Tracks:
    """Files that the caller says are the transcripts of a video, wherever they lie: the track of each is what
    its name has beyond the video's, or what stands before its ending.

    Example:
        >>> [track for track, _ in name_tracks("/a/b.mp4", [FoundFile("/c/talk.en.srt", 1, 1)])]
        ['en']
    """
    name = os.path.basename(video)  # noqa: PTH119
    tracks: dict[str, FoundFile] = {}
    for file in files:
        tracks.setdefault(track_of(name, os.path.basename(file.path)), file)  # noqa: PTH119
    return tuple(sorted(tracks.items())[:MAX_TRACKS])


def track_of(video: str, transcript: str) -> str:
    """The track that the name of a transcript's file says, next to that of a video's.

    >>> track_of("movie.mkv", "movie.de.forced.srt"), track_of("movie.mkv", "talk.en.vtt")
    ('de.forced', 'en')
    """
    stem, base = nfc(_without_ending(video)), nfc(_without_ending(transcript))
    return _track(base[len(stem) :] if base.startswith(stem) else base.partition(".")[2])


def _without_ending(name: str) -> str:
    return name.rpartition(".")[0] or name


def _track(rest: str) -> str:
    """The track that a part of a name says, `.en` for instance."""
    parts = [part for text in rest.split(".") if (part := _NOT_OF_A_TRACK.sub("-", text).strip("-"))]
    return ".".join(parts)[:MAX_TRACK_LENGTH].rstrip(".-") or UNKNOWN_TRACK


def is_transcript(path: str) -> bool:
    """Whether a file is named like a transcript."""
    return os.path.splitext(path)[1].lower() in TRANSCRIPT_EXTENSIONS  # noqa: PTH122, of very many


def transcripts_beside(paths: Iterable[str]) -> list[FoundFile]:
    """The files of transcripts in the folders of these files, each once."""
    named: list[str] = []
    for folder in dict.fromkeys(os.path.dirname(path) for path in paths):  # noqa: PTH120, of very many
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            named += [entry.path for entry in entries if is_transcript(entry.name) and entry.name[0] != "."]
    return [file for path in named if (file := transcript_file(path)) is not None]


def transcript_file(path: str) -> FoundFile | None:
    """A file as it is now; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return FoundFile(path, status.st_size, status.st_mtime_ns)


def origin(file: FoundFile) -> TranscriptFile:
    """What is kept of the file that a transcript comes from."""
    return TranscriptFile(file.uri, file.size_bytes, file.modified_ns)


def read_transcript(track: str, file: FoundFile) -> Transcript:
    """The transcript in a file.

    Raises:
        TranscriptError: it cannot be read, is too large, or has no line with times; the message says which.
    """
    if file.size_bytes > MAX_TRANSCRIPT_BYTES:
        raise _too_large()
    try:
        if file.remote is not None:
            data = read_bytes(file.path, MAX_TRANSCRIPT_BYTES)
        else:
            with Path(file.path).open("rb") as opened:
                data = opened.read(MAX_TRANSCRIPT_BYTES + 1)
    except FetchError as error:
        raise TranscriptError(error.reason) from None
    except OSError as error:
        raise TranscriptError(f"it cannot be read: {error.strerror or error}") from None
    return parse_transcript(track, data, origin(file))


def parse_transcript(track: str, data: bytes, file: TranscriptFile | None = None) -> Transcript:
    """The transcript that bytes in SubRip or WebVTT say, in any common encoding.

    Raises:
        TranscriptError: they are too many, of no encoding that can be told, or have no line with times.

    Example:
        >>> parse_transcript("en", b"1\\r\\n00:00:01,500 --> 00:00:03,000\\r\\n<i>Hello</i>\\r\\nyou").lines
        (Line(start_seconds=1.5, end_seconds=3.0, text='Hello you'),)
    """
    if len(data) > MAX_TRANSCRIPT_BYTES:
        raise _too_large()
    lines = tuple(_lines(_decoded(data)))
    if not lines:
        raise TranscriptError("it has no line with times as in SubRip (.srt) or WebVTT (.vtt)")
    if len(lines) > MAX_LINES:
        raise TranscriptError(f"it has more than {MAX_LINES} lines: split it by its times")
    try:
        return check_transcript(Transcript(track, lines, file))
    except InvalidRecordError as error:
        raise TranscriptError(str(error)) from None


def _too_large() -> TranscriptError:
    return TranscriptError(f"it is larger than {MAX_TRANSCRIPT_BYTES >> 20} MiB")


def _decoded(data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        pass
    from charset_normalizer import from_bytes  # Only where it is not UTF-8 does anything have to be guessed.

    guess = from_bytes(data).best()
    if guess is None:
        raise TranscriptError("its encoding cannot be told: save it as UTF-8")
    return str(guess)


def _lines(text: str) -> Iterator[Line]:
    times: tuple[float, float] | None = None
    said: list[str] = []
    for row in (*_LINE_BREAK.split(text.replace("\0", "")), ""):
        timing = _TIMING.fullmatch(row)
        if timing is None and row.strip():
            said += [row] if times is not None else []
            continue
        if timing is not None and said and said[-1].strip().isdecimal():
            said.pop()  # The number of the cue that begins, without a blank line before it.
        if times is not None and (spoken := _plain(said)):
            yield Line(*times, spoken)
        times, said = None if timing is None else _times(timing), []


def _times(timing: re.Match[str]) -> tuple[float, float]:
    seconds = [
        3600.0 * int(hours or 0) + 60.0 * int(minutes) + float(f"{int(whole)}.{fraction}")
        for hours, minutes, whole, fraction in (timing.groups()[:4], timing.groups()[4:])
    ]
    return seconds[0], max(seconds)


def _plain(rows: Iterable[str]) -> str:
    """What is read on the screen: without markup, entities and breaks."""
    return " ".join(html.unescape(_MARKUP.sub("", " ".join(rows))).replace("\0", "").split())


def changed_tracks(
    found: Tracks, known: Mapping[str, TranscriptFile | None]
) -> tuple[Tracks, tuple[str, ...]]:
    """What is to be done so that a video has the transcripts beside it.

    Args:
        found: that lie there.
        known: that it has. What a client sent (None) stays, also where a file of its track lies there.

    Returns:
        Those to be read, and the tracks whose files are gone.
    """
    tracks = {track for track, _ in found}
    changed = tuple(
        (track, file)
        for track, file in found
        if track not in known or (known[track] is not None and known[track] != origin(file))
    )
    return changed, tuple(track for track, file in known.items() if file is not None and track not in tracks)
