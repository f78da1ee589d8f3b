"""What a file is, found out without trusting it: first bytes, then PyAV held to one format and one protocol.

A file name, its extension or a demuxer's guess decides nothing. A playlist, a concat script or a session
description that is named .mp4 would make FFmpeg open other files or addresses; here it is refused by its
first bytes before FFmpeg sees it, and the whitelists refuse it once more.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import av
import av.codec.codec
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from indexer.errors import MediaError, MediaLimitError, NotAVideoError, UnsupportedMediaError
from indexer.media.view import pixel_aspect, square_size

DEMUXERS: Final = {
    "mp4": "mov",
    "matroska": "matroska",
    "avi": "avi",
    "mpegts": "mpegts",
    "mpegps": "mpeg",
    "ogg": "ogg",
    "flv": "flv",
    "asf": "asf",
    "dv": "dv",
    "mxf": "mxf",
}
"""Our names of the containers that we read, and FFmpeg's demuxer for each."""

TRANSPORT_CONTAINERS: Final = frozenset({"mpegts", "mpegps"})
"""Those with the clock of a broadcast, which restarts in joined recordings, and without a promise of their
length: the duration that FFmpeg gives is the difference of the last and the first time."""

_EXTENSIONS: Final = {
    "mp4": "mp4",
    "matroska": "mkv",
    "avi": "avi",
    "mpegts": "ts",
    "mpegps": "mpg",
    "ogg": "ogv",
    "flv": "flv",
    "asf": "wmv",
    "dv": "dv",
    "mxf": "mxf",
}

_FORMAT_NAMES: Final = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}

VIDEO_CODECS: Final = frozenset(
    {"av1", "cfhd", "cinepak", "dnxhd", "dvvideo", "ffv1", "ffvhuff", "flv1", "h261", "h263", "h264", "hevc"}
    | {"huffyuv", "magicyuv", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3"}
    | {"msvideo1", "png", "prores", "qtrle", "rawvideo", "rpza", "svq1", "svq3", "theora", "utvideo", "vc1"}
    | {"vp6", "vp6f", "vp8", "vp9", "wmv1", "wmv2", "wmv3"}
)
"""Codecs that we decode, by FFmpeg's canonical names. It has hundreds, each of them code that reads hostile
bytes: these are the ones that people's files hold, see docs/decisions/0012."""


def _decoders_of(codecs: frozenset[str]) -> str:
    """FFmpeg's `codec_whitelist`: it knows decoders by their own names, `flv` for what is called `flv1`."""
    names = {"libdav1d", "libvpx", "libvpx-vp9"}  # Libraries that come before FFmpeg's own.
    for codec in codecs:
        with suppress(av.codec.codec.UnknownCodecError):
            names.add(av.codec.Codec(codec, "r").name)
    return ",".join(sorted(names))


_DECODERS: Final = _decoders_of(VIDEO_CODECS)
"""No sound or subtitle decoder is on it."""

_REPLACED_CODECS: Final = frozenset({"cinepak", "msvideo1", "rpza", "svq1"})
"""A QuickTime file may hold its pictures twice: in one of these for old players, and in a later one."""

_REMAKE = "; convert it first: ffmpeg -i FILE -c:v libx264 -pix_fmt yuv420p NEW.mp4"
_WRAP = "; put it into a container first: ffmpeg -i FILE -c copy NEW.mp4"

_IMAGES: Final = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x00\x00\x01\x00", "an icon"),
)
_OTHERS: Final = (
    (b"PK", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"ID3", "a sound file"),
    (b"fLaC", "a sound file"),
    (b"#EXTM3U", "a playlist"),
    (b"ffconcat", "a list of files"),
    (b"v=0", "a session description"),
)
_UNREAD: Final = (
    (b"GIF8", "a GIF image, not a video", _REMAKE.replace("first", "where it moves")),
    (b".RMF", "RealMedia, which is not read", _REMAKE),
    (b".ra\xfd", "a RealAudio sound file, not a video", ""),
    (b"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e\x00\x07", "WTV, which is not read", _REMAKE),
    (b"DKIF", "an IVF stream, which is not read", _WRAP.replace("mp4", "webm")),
    (b"YUV4MPEG2", "a raw Y4M stream, which is not read", _REMAKE),
    (b"BIKi", "Bink, which is not read", _REMAKE),
    (b"SMK2", "Smacker, which is not read", _REMAKE),
    (b"nut/multimedia container", "NUT, which is not read", _WRAP),
    (b"\x00\x00\x01\xb3", "a raw MPEG-1 or MPEG-2 stream, which is not read", _WRAP.replace("mp4", "mkv")),
)
"""Formats of common files that `DEMUXERS` lacks, with what to do about it."""

_RAW_STREAMS: Final = {
    "H.264": (b"\x67", b"\x27", b"\x47", b"\x09"),  # Parameter sets and access unit delimiters.
    "HEVC": (b"\x40\x01", b"\x46\x01", b"\x42\x01"),
}
"""How the first NAL unit of a stream without a container begins, after its start code."""

_IMAGE_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"})
_RECORDING_KEYS: Final = (
    "com.apple.quicktime.creationdate",  # The only one with the zone of the place.
    "date_recorded",  # A tag of Matroska.
    "creation_time",  # FFmpeg's name of `mvhd` in MP4, `DateUTC` in Matroska, `IDIT` in the header of AVI.
    "idit",
    "creationdate",  # In FLV.
    "date",
)
"""Metadata of containers that says when a video was recorded, the surest first."""

_EARLIEST_RECORDING_SECONDS: Final = 2 * 86_400.0
"""The 3rd of January 1970. Clocks that were never set say 1904 (QuickTime's zero) or 1970, in any zone."""

_ASF_FILE_PROPERTIES: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_CREATION_DATE: Final = slice(48, 56)
"""In that object, after its id, size, the file's id and size (ASF specification 3.2)."""

_FILETIME_EPOCH_SECONDS: Final = -11_644_473_600
"""1601, from which Windows counts 100 ns; FFmpeg (up to 8.0) reads this date and does not report it."""

_MP4_BOXES: Final = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"})
_ASF_HEAD_BYTES: Final = 64 << 10
_DATE: Final = re.compile(r"[0-9]{4}([-:/])[0-9]{2}\1[0-9]{2}")

HEAD_BYTES: Final = 2048
"""What is read of a file to recognise it: ten packets of MPEG-TS, wherever the first begins."""

_TS_PACKET_BYTES: Final = (188, 192, 204)
"""ISO/IEC 13818-1; with a time code before each (.m2ts); with 16 Reed-Solomon bytes after each (DVB)."""
_TS_MARKS: Final = 5
"""So many packets in a row must begin with the mark where a file does not begin with one."""


@dataclass(frozen=True)
class MediaLimits:
    """What is refused before it costs anything.

    Attributes:
        max_pixels: width x height of a frame as shown. 36 million is 8K (7680 x 4320) and a little.
        max_aspect_ratio: longer side by shorter side. Frames are enlarged to the network's square by their
            shorter side, so that a line one pixel wide would become enormous.
        max_duration_seconds: of the file; `math.inf` where its length has been judged before.
        max_size_bytes: of the file.
        max_frames: in the file, however short they are.
        max_streams: video, sound, subtitles, attached fonts and so on together.
        max_packets: of all streams.
    """

    max_pixels: int = 36_000_000
    max_aspect_ratio: float = 50.0
    max_duration_seconds: float = 6 * 3600.0
    max_size_bytes: int = 64 << 30
    max_frames: int = 5_000_000
    max_streams: int = 200
    max_packets: int = 20_000_000


@dataclass(frozen=True)
class MediaInfo:
    """What a file says and its packets show.

    Attributes:
        container: a key of `DEMUXERS`.
        codec: FFmpeg's canonical name, one of `VIDEO_CODECS`.
        width: of a frame as shown: upright, with square pixels.
        height: of a frame as shown.
        rotation_degrees: clockwise, that make a stored frame upright: 0, 90, 180 or 270. Where the container
            mirrors it as well, left to right, that comes before.
        frame_rate: frames a second, on average.
        duration_seconds: from the start of the first frame to the end of the last that is there.
        num_frames: frames that are there, by their packets.
        size_bytes: of the file.
        has_audio: whether there is a sound stream.
        media_start_seconds: when the first frame starts on the clock of a player of the file, 0 or more.
        recorded_at: when the container says that it was recorded, in seconds since 1970; None where it says
            nothing that can be.
    """

    container: str
    codec: str
    width: int
    height: int
    rotation_degrees: int
    frame_rate: float
    duration_seconds: float
    num_frames: int
    size_bytes: int
    has_audio: bool
    media_start_seconds: float
    recorded_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def identify_container(head: bytes) -> str:
    """The container, a key of `DEMUXERS`, that a file's first HEAD_BYTES show; fewer settle most.

    Raises:
        NotAVideoError: it is something else; the reason says what.

    >>> identify_container(b"RIFF....AVI LIST")
    'avi'
    """
    if not head:
        raise NotAVideoError("the file is empty")
    for signature, name in _IMAGES:
        if head.startswith(signature):
            moves = b"acTL" in head[:512]
            raise NotAVideoError(f"{name}, not a video" + (_REMAKE if moves else ""))
    _refuse_unread(head)
    if head[4:8] in _MP4_BOXES:
        if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS:
            raise NotAVideoError("a HEIF or AVIF image, not a video")
        return "mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF"):
        if head[8:11] == b"AVI":
            return "avi"
        raise NotAVideoError("a WebP image, not a video" if head[8:12] == b"WEBP" else "not a video")
    if transport_packets(head) is not None:
        return "mpegts"
    if head.startswith(b"\x00\x00\x01\xba"):
        return "mpegps"
    if head.startswith(b"OggS"):
        return "ogg"
    if head.startswith(b"FLV\x01"):
        return "flv"
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "asf"
    if head.startswith(b"\x1f\x07\x00") and head[3:4] in (b"\x3f", b"\xbf"):  # The first DIF block's ID.
        return "dv"
    if head.startswith(b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02"):  # Header partition.
        return "mxf"
    for signature, name in _OTHERS:
        if head.startswith(signature):
            raise NotAVideoError(f"{name}, not a video")
    if b"\x00" not in head:
        text = head.lstrip().lower()
        is_html = text.startswith((b"<!doctype html", b"<html"))
        raise NotAVideoError("an HTML page, not a video" if is_html else "not a video in any format we know")
    raise NotAVideoError("not a video in any format we know")


def transport_packets(head: bytes) -> tuple[int, int] | None:
    """(where the first whole packet begins, bytes of each) of an MPEG-TS file, which may begin inside a
    packet, or None.

    Args:
        head: its first HEAD_BYTES, or all of a smaller file.
    """
    for step in _TS_PACKET_BYTES:
        before = 4 if step == 192 else 0  # the time code
        for mark in range(before, before + step):
            marks = head[mark::step]
            if len(marks) >= min(_TS_MARKS, len(head) // step) >= 2 and not marks.strip(b"\x47"):
                return mark - before, step
    return None


def _refuse_unread(head: bytes) -> None:
    for signature, name, advice in _UNREAD:
        if head.startswith(signature):
            raise NotAVideoError(f"{name}{advice}")
    for start_code in (b"\x00\x00\x01", b"\x00\x00\x00\x01"):
        for name, starts in _RAW_STREAMS.items():
            if head.startswith(tuple(start_code + unit for unit in starts)):
                raise NotAVideoError(f"a raw {name} stream, which is not read{_WRAP}")


def file_extension(path: Path) -> str | None:
    """The usual extension, without a dot, of the container that a file's first bytes show; None: no video.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        container = identify_container(head)
    except MediaError:
        return None
    if container == "mp4" and (head[4:8] != b"ftyp" or head[8:12] == b"qt  "):
        return "mov"
    if container == "matroska" and b"webm" in head[:64]:
        return "webm"
    return _EXTENSIONS[container]


def check_file(path: Path, limits: MediaLimits) -> tuple[str, os.stat_result]:
    """(container, stat) of a regular file of allowed size that begins as a video does.

    Raises:
        MediaError: it is not such a file, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # Opening a named pipe would wait for its writer.
            raise NotAVideoError("not a regular file")
        if status.st_size > limits.max_size_bytes:
            raise MediaLimitError(f"the file has {status.st_size} bytes; {limits.max_size_bytes} are allowed")
        with path.open("rb") as file:
            return identify_container(file.read(HEAD_BYTES)), status
    except OSError as error:
        raise MediaError(f"the file cannot be read ({error.strerror})") from error


@contextmanager
def open_media(
    path: str | Path, limits: MediaLimits, num_threads: int = 1
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file as PyAV's container and its video stream, decoder set up, nothing decoded yet by us.

    The demuxer is the one that the first bytes show and no other; the only protocol is `file`; only the
    decoders of `VIDEO_CODECS` may run; frames larger than the limit are refused by FFmpeg itself, also when a
    stream grows in the middle.

    Args:
        path: the file.
        limits: what is refused.
        num_threads: decoding threads. With 1, frames come out as early as they can.

    Raises:
        NotAVideoError: it is no video, or damaged.
        UnsupportedMediaError: its codec is none of `VIDEO_CODECS`.
        MediaLimitError: it exceeds a limit.
        MediaError: it cannot be read.
    """
    path = Path(path).absolute()  # A relative name such as `http:x` could be read as a protocol.
    kind, _ = check_file(path, limits)
    demuxer = DEMUXERS[kind]
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _FORMAT_NAMES.get(demuxer, demuxer),
        "codec_whitelist": _DECODERS,
        "max_pixels": str(limits.max_pixels),
        "max_streams": str(limits.max_streams + 1),
    }
    if demuxer == "mov":
        options["enable_drefs"] = "0"  # FFmpeg's default too: no pictures from other files that it names.
    try:
        container = av.open(str(path), format=demuxer, options=options, metadata_errors="replace")
    except MemoryError as error:  # FFmpeg raises it for one stream too many, too.
        raise MediaLimitError("the file needs more streams or more memory than allowed") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise NotAVideoError(
            "the file is damaged, or not of the format that its first bytes indicate"
        ) from error
    try:
        if len(container.streams) > limits.max_streams:
            raise MediaLimitError(f"more than {limits.max_streams} streams")
        stream = _video_stream(container)
        codec = _codec_name(stream)
        if codec not in VIDEO_CODECS:
            raise UnsupportedMediaError(f"the video codec {codec} is not supported{_REMAKE}")
        check_frame_size(*square_size(stream.width, stream.height, pixel_aspect(stream)), limits)
        if kind not in TRANSPORT_CONTAINERS:
            _check_duration(container, stream, limits)
        context = stream.codec_context
        context.options = {"max_pixels": str(limits.max_pixels)}
        context.thread_count = num_threads
        context.thread_type = "SLICE" if num_threads == 1 else "AUTO"
        yield container, stream
    finally:
        container.close()


def recording_time(container: InputContainer, stream: VideoStream, kind: str) -> float | None:
    """When the container says that it was recorded, in seconds since 1970; None where it says nothing that
    can be. What has no zone is taken as UTC, for the place is not known.

    kind: a key of `DEMUXERS`.
    """
    said = {name.lower(): text for name, text in container.metadata.items()}
    for name in _RECORDING_KEYS:
        text = said.get(name) or (stream.metadata.get(name, "") if name == "creation_time" else "")
        # In MP4 and Matroska, a date without a time is that of a film's release.
        if name == "date" and kind != "avi" and ":" not in text:
            continue
        seconds = _parsed_time(text.strip())
        if seconds is not None and (checked := plausible_recording_time(seconds)) is not None:
            return checked
    if kind == "asf" and isinstance(container.name, str):
        with suppress(OSError), Path(container.name).open("rb") as file:
            head = file.read(_ASF_HEAD_BYTES)
            if (start := head.find(_ASF_FILE_PROPERTIES)) >= 0:
                ticks = int.from_bytes(head[start:][_ASF_CREATION_DATE], "little")
                return plausible_recording_time(_FILETIME_EPOCH_SECONDS + ticks / 1e7)
    return None


def plausible_recording_time(seconds: float) -> float | None:
    """`seconds` since 1970 where a video can have been recorded then: not before 1970, nor in the future by
    more than the zones of the earth differ; else None."""
    return seconds if _EARLIEST_RECORDING_SECONDS <= seconds <= time.time() + 86_400 else None


def _parsed_time(text: str) -> float | None:
    """Seconds since 1970 of a date, or a date and time, as containers hold them."""
    with suppress(ValueError):
        moment = datetime.strptime(" ".join(text.split()), "%a %b %d %H:%M:%S %Y")  # As C's asctime.
        return moment.replace(tzinfo=UTC).timestamp()
    if not _DATE.match(text):  # Not what only `fromisoformat` takes for a date, such as 20240501.
        return None
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text[:10].replace(":", "-").replace("/", "-") + text[10:])
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None


def demux_all(container: InputContainer, *streams: VideoStream) -> Iterator[Packet[Any]]:
    """The packets of these streams, or of all, and at the end an empty one for each: `container.demux`.

    PyAV (up to 18.1) counts the streams when it begins. Where others appear while it reads (MPEG-TS, MPEG-PS,
    FLV), it may fail on them with an IndexError, after all packets.
    """
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):
            return
        yield packet


def check_frame_size(width: int, height: int, limits: MediaLimits) -> None:
    """Raise MediaLimitError where a frame, as shown, is larger or narrower than allowed."""
    if min(width, height) < 1:
        raise UnsupportedMediaError("frames without a size")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise MediaLimitError(f"frames of {width} x {height} pixels, too narrow")
    if width * height > limits.max_pixels:
        raise MediaLimitError(
            f"frames of {width} x {height} pixels; at most {limits.max_pixels} pixels are allowed"
        )


def check_duration(duration_seconds: float, limits: MediaLimits) -> None:
    """Raise MediaLimitError where a video is longer than allowed."""
    if duration_seconds > limits.max_duration_seconds:
        raise MediaLimitError(
            f"{duration_seconds:.0f} seconds long; at most {limits.max_duration_seconds:.0f} are allowed"
            " (--max-hours of `xclip-search index`, XCLIP_MAX_VIDEO_SECONDS of a server)"
        )


def _video_stream(container: InputContainer) -> VideoStream:
    pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not pictures:
        if container.streams.audio:
            raise NotAVideoError("sound without pictures")
        raise NotAVideoError("the file has no video stream")
    best = container.streams.best("video")
    for codecs in (VIDEO_CODECS - _REPLACED_CODECS, VIDEO_CODECS):
        read = [stream for stream in pictures if _codec_name(stream) in codecs]
        if read:
            return best if isinstance(best, VideoStream) and best in read else read[0]
    return pictures[0]


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _codec_name(stream: VideoStream) -> str:
    try:
        return str(stream.codec_context.codec.canonical_name)
    except (AttributeError, ValueError):
        return "unknown"


def _check_duration(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> None:
    """By what the header says, before all packets are read; `timeline` reads what is there."""
    if container.duration is not None:
        # Matroska says when a video ends, and what was cut out of a long recording may begin at any time.
        begins_at = max(0, container.start_time or 0)
        check_duration((container.duration - begins_at) / av.time_base, limits)
    if stream.duration is not None and stream.time_base is not None:
        # Of MP4 in fragments, which have no table of frames, it is the time at which the last one ends.
        begins_at = 0 if stream.frames else max(0, stream.start_time or 0)
        check_duration(float((stream.duration - begins_at) * stream.time_base), limits)
