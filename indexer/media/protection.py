"""Whether a file's pictures are encrypted, as its container says.

FFmpeg hands encrypted pictures to the decoder as if they were none, which makes grey and green noise of them.
Only what says so is read here: of MP4 the sample entries, of Matroska the track's encodings, of ASF the
header, of MPEG-TS and MPEG-PS the scrambling bits of a part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from indexer.errors import UnsupportedMediaError

PROTECTED_REASON: Final = (
    "the video is protected: its pictures are encrypted, and only a copy without protection can be read"
)

_MAX_BOXES: Final = 20_000
_MAX_HEADER_BYTES: Final = 16 << 20
_SAMPLED_BYTES: Final = 4 << 20

_ENCRYPTED_ENTRIES: Final = frozenset({b"encv", b"drmi"})
"""Sample entries of ISO/IEC 14496-12 protection (CENC in all its schemes, PIFF) and of FairPlay."""
_PATH_TO_ENTRIES: Final = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")

_SEGMENT, _TRACKS, _TRACK, _TRACK_TYPE = 0x18538067, 0x1654AE6B, 0xAE, 0x83
_ENCODINGS, _ENCODING, _ENCODING_TYPE, _ENCRYPTION = 0x6D80, 0x6240, 0x5033, 0x5035
"""Matroska's element ids, RFC 9559."""

_ASF_ENCRYPTIONS: Final = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),  # Content Encryption Object
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),  # Extended Content Encryption Object
)
"""GUIDs of the ASF specification, as they are stored."""


def refuse_protected(path: Path, container: str) -> None:
    """Raise UnsupportedMediaError where a file says that its pictures are encrypted.

    Args:
        path: the file.
        container: a key of `indexer.media.probing.DEMUXERS`.

    Raises:
        UnsupportedMediaError: it is protected.
        OSError: it cannot be read.
    """
    if container in _CHECKS:
        with path.open("rb") as file:
            if _CHECKS[container](file, os.fstat(file.fileno()).st_size):
                raise UnsupportedMediaError(PROTECTED_REASON)


def _is_protected_mp4(file: BinaryIO, size_bytes: int) -> bool:
    spans = [(0, size_bytes)]
    for name in _PATH_TO_ENTRIES:
        spans = [(start, end) for span in spans for kind, start, end in _boxes(file, *span) if kind == name]
    # Eight bytes, version and number of entries, come before the entries.
    return any(
        kind in _ENCRYPTED_ENTRIES for start, end in spans for kind, _, _ in _boxes(file, start + 8, end)
    )


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start and end of the content) of the boxes between two positions."""
    for _ in range(_MAX_BOXES):
        header = _read(file, start, 16)
        if start + 8 > end or len(header) < 8:
            return
        length, content = int.from_bytes(header[:4], "big"), start + 8
        if length == 1:
            length, content = int.from_bytes(header[8:], "big"), start + 16
        until = end if length == 0 else min(end, start + length)
        if until < content:
            return
        yield header[4:8], content, until
        start = until


def _is_protected_matroska(file: BinaryIO, size_bytes: int) -> bool:
    for kind, start, end in _elements(file, 0, size_bytes):
        if kind != _SEGMENT:
            continue
        for inner, *tracks in _elements(file, start, end):
            if inner == _TRACKS:
                return any(
                    kind == _TRACK and _is_encrypted_track(file, *track)
                    for kind, *track in _elements(file, *tracks)
                )
    return False


def _is_encrypted_track(file: BinaryIO, start: int, end: int) -> bool:
    is_video = is_encrypted = False
    for kind, *span in _elements(file, start, end):
        if kind == _TRACK_TYPE:
            is_video = _read(file, span[0], 1) == b"\x01"
        elif kind == _ENCODINGS:
            for _, *encoding in _elements(file, *span):
                for inner, first, _ in _elements(file, *encoding):
                    is_encrypted |= inner == _ENCRYPTION
                    is_encrypted |= inner == _ENCODING_TYPE and _read(file, first, 1) == b"\x01"
    return is_video and is_encrypted


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(id, start and end of the content) of the EBML elements between two positions, RFC 8794."""
    for _ in range(_MAX_BOXES):
        header = _read(file, start, 12)
        if start >= end or not header or not header[0]:
            return
        id_bytes = 9 - header[0].bit_length()
        size = header[id_bytes:]
        if not size or not size[0]:
            return
        size_bytes = 9 - size[0].bit_length()
        ones = (1 << 7 * size_bytes) - 1
        length = int.from_bytes(size[:size_bytes], "big") & ones
        content = start + id_bytes + size_bytes
        until = end if length == ones else min(end, content + length)  # All ones: up to the end.
        yield int.from_bytes(header[:id_bytes], "big"), content, until
        start = until


def _is_protected_asf(file: BinaryIO, size_bytes: int) -> bool:
    header_bytes = int.from_bytes(_read(file, 16, 8), "little")
    header = _read(file, 0, min(header_bytes, _MAX_HEADER_BYTES))
    return any(guid in header for guid in _ASF_ENCRYPTIONS)


def _is_protected_mpegts(file: BinaryIO, size_bytes: int) -> bool:
    # ISO/IEC 13818-1, 2.4.3.2: transport_scrambling_control, as of pay television.
    content = _read(file, 0, _SAMPLED_BYTES)
    for start, step in ((0, 188), (4, 192), (0, 204)):
        if content[start::step][:3] == b"\x47" * 3:
            flags = content[start + 3 :: step]
            return 2 * sum(flag >> 6 > 1 for flag in flags) > len(flags)
    return False


def _is_protected_mpegps(file: BinaryIO, size_bytes: int) -> bool:
    # ISO/IEC 13818-1, 2.4.3.6: PES_scrambling_control, as DVDs have it in about half of their packets.
    content = _read(file, 0, _SAMPLED_BYTES)
    num_video = num_scrambled = 0
    position = content.find(b"\x00\x00\x01")
    while 0 <= position < len(content) - 7:
        kind, length = content[position + 3], int.from_bytes(content[position + 4 : position + 6], "big")
        if 0xE0 <= kind <= 0xEF and content[position + 6] >> 6 == 2:
            num_video += 1
            num_scrambled += content[position + 6] >> 4 & 3 > 0
        position = content.find(b"\x00\x00\x01", position + (6 + length if kind > 0xBA else 4))
    return 10 * num_scrambled > num_video


def _read(file: BinaryIO, position: int, num_bytes: int) -> bytes:
    file.seek(position)
    return file.read(num_bytes)


_CHECKS: Final = {
    "mp4": _is_protected_mp4,
    "matroska": _is_protected_matroska,
    "asf": _is_protected_asf,
    "mpegts": _is_protected_mpegts,
    "mpegps": _is_protected_mpegps,
}
