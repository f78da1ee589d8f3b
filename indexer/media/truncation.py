"""Whether a file ends where its container says that it does: what an interrupted transfer leaves.

Only the outermost structures are read: sizes that the container promises of itself, or marks that it
ends with. Where it promises nothing (between two packets of MPEG-TS or MPEG-PS, two fragments of MP4, two
blocks of a Matroska file that was written live), a file that was truncated there looks like one that
was meant to end there.

A header may promise more than the packets hold of a file that lacks nothing: the last picture of slides stays
while sound goes on, and a recorder counts the time in which nothing moved. Such a file is whole where it
proves so.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

import av.error
from av.stream import Discard

from indexer.errors import MediaLimitError
from indexer.media.probing import HEAD_BYTES, MediaLimits, demux_all, open_media, transport_packets
from indexer.media.timeline import Timeline, player_zero_seconds

_MAX_STRUCTURES: Final = 20_000_000
"""Boxes, pages or packets that are read: of days of film by the usual sizes."""

_HEAD_BYTES: Final = 1 << 16

_MP4_BOXES: Final = frozenset(
    {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"meta", b"pnot", b"PICT"}
    | {b"moof", b"mfra", b"sidx", b"ssix", b"styp", b"prft", b"emsg", b"pdin"}
)
"""Outermost boxes of ISO/IEC 14496-12 and QuickTime. Another name after them is a writer's own addition."""

_MATROSKA_SEGMENT: Final = b"\x18\x53\x80\x67"
_MATROSKA_CLUSTER: Final = b"\x1f\x43\xb6\x75"
_SMPTE_KEY: Final = b"\x06\x0e\x2b\x34"
_ASF_FILE_PROPERTIES: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


_STILL_SECONDS: Final = 0.5
"""Sound that ends this much before the promised end still shows that the file goes on to there."""


def check_end(path: Path, container: str, timeline: Timeline, limits: MediaLimits) -> Timeline:
    """The timeline of a file, with what the file itself says of its end.

    Args:
        path: the file.
        container: a key of `indexer.media.probing.DEMUXERS`.
        timeline: as the packets of its video give it.
        limits: what is refused.

    Returns:
        One whose `fraction_present` is below 1 where bytes are missing that no packet shows. Where the header
        promises more than there are packets and the file proves whole, one whose last frame stays up to the
        promised end.

    Raises:
        MediaError: it has more parts than a real video has, or is longer than allowed.
    """
    fraction = fraction_of_bytes(path, container)
    if fraction < 1:
        # The packets of a file that lacks only its end may look like all of them.
        return timeline if timeline.fraction_present < 1 else replace(timeline, fraction_present=fraction)
    is_short = timeline.fraction_present < 1 and not timeline.ends_in_damage
    if not is_short or not _is_proven_whole(path, container, timeline, limits):
        return timeline
    return replace(timeline, fraction_present=1.0, end_seconds=round(timeline.promised_end_seconds, 6))


def _is_proven_whole(path: Path, container: str, timeline: Timeline, limits: MediaLimits) -> bool:
    """Whether a file, all of whose promised bytes are there, lacks nothing although its pictures end
    early."""
    with path.open("rb") as file, open_media(path, limits) as (media, stream):
        size_bytes = os.fstat(file.fileno()).st_size
        if container == "mp4":
            # The table of all samples is in one box; fragments are known one by one.
            kinds = _mp4_kinds(file, size_bytes)
            if b"moov" in kinds and b"moof" not in kinds:
                return len(timeline.ticks) >= stream.frames
        elif container == "avi":
            return _avi_places(file, size_bytes, stream.index) >= stream.frames
        elif (
            (container == "matroska" and _has_sized_segment(file))
            or (container == "asf" and _promised_by_asf(file, size_bytes))
            or (container == "flv" and _noted_in_flv(file) == size_bytes)
        ):
            return True
        for other in media.streams:
            if other.type != "audio":
                other.discard = Discard.all
        sound_end = 0.0
        with suppress(av.error.FFmpegError):
            for packet in demux_all(media):
                if packet.pts is not None and packet.time_base is not None:
                    sound_end = max(
                        sound_end, float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    )
        promised = timeline.media_start_seconds + timeline.promised_end_seconds
        return sound_end - player_zero_seconds(media, container) >= promised - _STILL_SECONDS


def _mp4_kinds(file: BinaryIO, size_bytes: int) -> set[bytes]:
    """The names of the outermost boxes."""
    kinds, position = set(), 0
    for _ in range(_MAX_STRUCTURES):
        header = _read(file, position, 16)
        box_bytes = int.from_bytes(header[:4], "big")
        if len(header) < 8 or not box_bytes:
            break
        kinds.add(header[4:8])
        position += max(8, int.from_bytes(header[8:], "big") if box_bytes == 1 else box_bytes)
    return kinds


def _avi_places(file: BinaryIO, size_bytes: int, stream_index: int) -> int:
    """Chunks of a stream, the empty ones included, which stand for a frame that is shown once more."""
    position, num_places, prefix = 0, 0, b"%02d" % stream_index
    for _ in range(_MAX_STRUCTURES):
        header = _read(file, position, 12)
        if len(header) < 8:
            break
        kind, chunk_bytes = header[:4], int.from_bytes(header[4:8], "little")
        if kind == b"RIFF" or (kind == b"LIST" and header[8:12] in (b"movi", b"rec ")):
            position += 12
            continue
        num_places += kind[:2] == prefix
        position += 8 + chunk_bytes + chunk_bytes % 2
    return num_places


def _has_sized_segment(file: BinaryIO) -> bool:
    """Whether a Matroska file says how long its Segment is: its writer came to its end."""
    position, kind = 0, b""
    for _ in range(2):
        kind, start, content_bytes = _matroska_element(_read(file, position, 12))
        if content_bytes is None:
            return False
        position += start + content_bytes
    return kind == _MATROSKA_SEGMENT


def _matroska_element(header: bytes) -> tuple[bytes, int, int | None]:
    """(id, where its content starts, bytes of the content) of an element whose first 12 bytes these are, RFC
    8794; None where the size is not known or the bytes are none of an element."""
    if not header or not header[0]:
        return b"", 0, None
    id_bytes = 9 - header[0].bit_length()
    kind, digits = header[:id_bytes], header[id_bytes:]
    length = 9 - digits[0].bit_length() if digits else 9
    if len(digits) < length or id_bytes > 4:
        return kind, 0, None
    ones = (1 << 7 * length) - 1
    content_bytes = int.from_bytes(digits[:length], "big") & ones
    return kind, id_bytes + length, None if content_bytes == ones else content_bytes


def fraction_of_bytes(path: Path, container: str) -> float:
    """The share of the bytes promised by a container that are there.

    Args:
        path: the file.
        container: a key of `indexer.media.probing.DEMUXERS`.

    Returns:
        Above 0, at most 1; 1.0 for a file that is not truncated. One that lacks an unknown number
        of bytes counts as lacking one.

    Raises:
        MediaLimitError: it has more parts than a real video has.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        promised_bytes = _PROMISES[container](file, size_bytes) if container in _PROMISES else 0
    return size_bytes / promised_bytes if promised_bytes > size_bytes else 1.0


def _promised_by_mp4(file: BinaryIO, size_bytes: int) -> int:
    position = 0
    for _ in range(_MAX_STRUCTURES):
        header = _read(file, position, 16)
        if len(header) < 8:
            # Fewer bytes than a box begins with: its first ones, or zeros that some writers end with.
            return position + 8 if header.strip(b"\x00") else position
        box_bytes, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if box_bytes == 0:  # up to the end, wherever that is
            return 0
        if kind not in _MP4_BOXES:
            is_name = all(32 <= letter < 127 for letter in kind)
            return 0 if is_name else size_bytes + 1  # No box begins here, so a part before is missing.
        if box_bytes == 1:
            if len(header) < 16:
                return position + 16
            box_bytes = int.from_bytes(header[8:], "big")
        position += max(8, box_bytes)
        if position >= size_bytes:
            return position
    raise MediaLimitError(f"more than {_MAX_STRUCTURES} boxes")


def _promised_by_matroska(file: BinaryIO, size_bytes: int) -> int:
    # RFC 8794: each element is its id, its size, its content. The EBML head first, then one Segment. Of what
    # is written live, no size is known, and the elements inside are read.
    position = 0
    for _ in range(_MAX_STRUCTURES):
        header = _read(file, position, 12)
        if not header or not header[0]:
            return position
        id_bytes = 9 - header[0].bit_length()
        kind, digits = header[:id_bytes], header[id_bytes:]
        length = 9 - digits[0].bit_length() if digits else 1
        if len(digits) < length:
            return position + id_bytes + length if length < 9 and id_bytes < 5 else 0
        ones = (1 << 7 * length) - 1
        content_bytes = int.from_bytes(digits[:length], "big") & ones
        position += id_bytes + length
        if content_bytes != ones:
            position += content_bytes
            if kind == _MATROSKA_SEGMENT or position >= size_bytes:
                return position
        elif kind not in (_MATROSKA_SEGMENT, _MATROSKA_CLUSTER):
            return 0
    raise MediaLimitError(f"more than {_MAX_STRUCTURES} elements")


def _promised_by_avi(file: BinaryIO, size_bytes: int) -> int:
    position = 0
    for _ in range(_MAX_STRUCTURES):
        header = _read(file, position, 8)
        if header[:4] != b"RIFF" or len(header) < 8:
            return 0  # An index or padding that was appended.
        chunk_bytes = int.from_bytes(header[4:], "little")
        if chunk_bytes in (0, 0xFFFFFFFF):  # never filled in
            return 0
        position += 8 + chunk_bytes
        if position >= size_bytes:
            return position
        position += chunk_bytes % 2  # to an even length, which not all writers do at the end
    return 0


def _promised_by_asf(file: BinaryIO, size_bytes: int) -> int:
    head = _read(file, 0, _HEAD_BYTES)
    start = head.find(_ASF_FILE_PROPERTIES)
    if start < 0 or len(head) < start + 92:
        return 0
    is_broadcast = head[start + 88] & 1  # Then the size means nothing.
    return 0 if is_broadcast else int.from_bytes(head[start + 40 : start + 48], "little")


def _noted_in_flv(file: BinaryIO) -> int:
    """The size that writers that can go back note in the script data at the front, an AMF number (type 0,
    float64); 0 where there is none."""
    head = _read(file, 0, _HEAD_BYTES)
    name = b"\x00\x08filesize\x00"
    start = head.find(name)
    if start < 0 or len(head) < start + len(name) + 8:
        return 0
    (file_bytes,) = struct.unpack_from(">d", head, start + len(name))
    return int(file_bytes) if 0 < file_bytes < 2**62 else 0


def _promised_by_flv(file: BinaryIO, size_bytes: int) -> int:
    file_bytes = _noted_in_flv(file)
    if file_bytes > size_bytes:
        return file_bytes
    # After each tag stands its length, which leads back to its head.
    if size_bytes < 4:
        return size_bytes + 1
    tag_bytes = int.from_bytes(_read(file, size_bytes - 4, 4), "big")
    tag = _read(file, max(0, size_bytes - 4 - tag_bytes), 4)
    is_whole = 11 <= tag_bytes <= size_bytes - 13 and int.from_bytes(tag[1:4], "big") + 11 == tag_bytes
    return size_bytes if is_whole else size_bytes + 1


def _promised_by_ogg(file: BinaryIO, size_bytes: int) -> int:
    # RFC 3533: pages, each of one stream; the last of a stream is marked so.
    open_streams: set[bytes] = set()
    position = 0
    for _ in range(_MAX_STRUCTURES):
        header = _read(file, position, 27 + 255)
        if len(header) < 27 or not header.startswith(b"OggS"):
            return size_bytes + 1
        kind, stream, num_parts = header[5], header[14:18], header[26]
        if kind & 2:
            open_streams.add(stream)
        if kind & 4:
            open_streams.discard(stream)
        position += 27 + num_parts + sum(header[27 : 27 + num_parts])
        if position == size_bytes:
            return size_bytes + bool(open_streams)
        if position > size_bytes or len(header) < 27 + num_parts:
            return max(position, size_bytes + 1)
    raise MediaLimitError(f"more than {_MAX_STRUCTURES} pages")


def _promised_by_mpegts(file: BinaryIO, size_bytes: int) -> int:
    first, packet_bytes = transport_packets(_read(file, 0, HEAD_BYTES)) or (0, 188)
    return first + -(-(size_bytes - first) // packet_bytes) * packet_bytes


def _promised_by_mpegps(file: BinaryIO, size_bytes: int) -> int:
    # ISO/IEC 13818-1, 2.5.3: packs, each a header of fixed length and packets that say theirs.
    position = 0
    for _ in range(_MAX_STRUCTURES):
        header = _read(file, position, 14)
        if not header:
            return position
        if not b"\x00\x00\x01".startswith(header[:3]):
            return 0  # padding, or damage
        kind = header[3] if len(header) > 3 else 0
        if len(header) < 4:
            return position + 4
        if kind == 0xBA:
            is_mpeg2 = len(header) > 4 and header[4] >> 6 == 1
            position += 14 + (header[13] & 7 if len(header) > 13 else 0) if is_mpeg2 else 12
        elif kind == 0xB9:
            position += 4
        elif kind > 0xBA:
            position += 6 + int.from_bytes(header[4:6], "big") if len(header) > 5 else 6
        else:
            return 0
        if position > size_bytes:
            return position
    raise MediaLimitError(f"more than {_MAX_STRUCTURES} packets")


def _promised_by_dv(file: BinaryIO, size_bytes: int) -> int:
    # IEC 61834-2: frames of one size, which the first byte of the header tells apart by its DSF bit.
    header = _read(file, 0, 4)
    frame_bytes = 144_000 if len(header) == 4 and header[3] & 0x80 else 120_000
    return -(-size_bytes // frame_bytes) * frame_bytes


def _promised_by_mxf(file: BinaryIO, size_bytes: int) -> int:
    # SMPTE ST 336: a key of 16 bytes, the length in BER, the value.
    position = 0
    for _ in range(_MAX_STRUCTURES):
        header = _read(file, position, 25)
        if not header:
            return position
        if not header.startswith(_SMPTE_KEY[: len(header)]):
            return 0 if position else size_bytes
        if len(header) < 17:
            return position + 17
        num_digits = header[16] & 0x7F if header[16] & 0x80 else 0
        digits = header[17 : 17 + num_digits] if num_digits else header[16:17]
        if len(digits) < max(1, num_digits) or num_digits > 8:
            return position + 17 + num_digits if num_digits <= 8 else 0
        position += 17 + num_digits + int.from_bytes(digits, "big")
        if position >= size_bytes:
            return position
    raise MediaLimitError(f"more than {_MAX_STRUCTURES} elements")


def _read(file: BinaryIO, position: int, num_bytes: int) -> bytes:
    file.seek(position)
    return file.read(num_bytes)


_PROMISES: Final = {
    "mp4": _promised_by_mp4,
    "matroska": _promised_by_matroska,
    "avi": _promised_by_avi,
    "asf": _promised_by_asf,
    "flv": _promised_by_flv,
    "ogg": _promised_by_ogg,
    "mpegts": _promised_by_mpegts,
    "mpegps": _promised_by_mpegps,
    "dv": _promised_by_dv,
    "mxf": _promised_by_mxf,
}
"""Each gives how many bytes the file promises to have; a number up to its size: nothing is missing."""
