"""What the decode pool asks of its children and what they answer, and how it crosses the socket between them.

A child reads hostile bytes and may be compromised, so its answers are data, never code: a JSON header
and raw pixels, which the parent checks against what it asked for and what can be. Nothing is pickled.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from indexer import errors
from indexer.errors import DecoderDiedError, MediaError
from indexer.media.frame_reader import Backend
from indexer.media.probing import DEMUXERS, VIDEO_CODECS, MediaInfo, plausible_recording_time
from indexer.media.sampling import Sampling
from model.preprocessing import Resizing

MAX_SEGMENTS_PER_ANSWER: Final = 16
"""Bounds the memory of one answer: 16 segments of 12 frames of 224 x 224 pixels are 29 MB."""

FILE_CHANGED: Final = "the file changed while it was read"

NONSENSE_REASON: Final = "the decoder gave an invalid answer"
_SIZES: Final = struct.Struct("!IQ")  # bytes of the header, bytes of the payload
_MAX_HEADER_BYTES: Final = 4 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class DecodeRequest:
    """Frames wanted from one file.

    Attributes:
        path: the file.
        sampling: which frames.
        resizing: how a picture becomes the model's square.
        trusted: whether the operator trusts the file, so that decord may read it.
        backend: for trusted files, see `indexer.media.frame_reader.VideoFile.frames_at`; others are read by
            PyAV.
        first_segment: the first of the video's segments that is wanted.
        max_segments: how many are wanted at most, so that the answer for a long film stays small.
        stamp: of the file when it was hashed (see `HashedFile`); a file that has changed since is refused.
    """

    path: str
    sampling: Sampling
    resizing: Resizing
    trusted: bool = False
    backend: Backend = "auto"
    first_segment: int = 0
    max_segments: int = MAX_SEGMENTS_PER_ANSWER
    stamp: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_segments <= MAX_SEGMENTS_PER_ANSWER or self.first_segment < 0:
            raise ValueError(f"a request is for 1 to {MAX_SEGMENTS_PER_ANSWER} segments, from 0 on")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecodeRequest:
        """What `to_dict` gave."""
        stamp = None if values["stamp"] is None else tuple(values["stamp"])
        return cls(
            **{
                **values,
                "sampling": Sampling(**values["sampling"]),
                "resizing": Resizing(**values["resizing"]),
                "stamp": stamp,
            }
        )


@dataclass(frozen=True)
class HashedFile:
    """Which bytes a file holds.

    content_sha256: 64 hex digits over them. stamp: device, inode, size in bytes and time of modification in
    nanoseconds; all four stay what they are while the file does.
    """

    content_sha256: str
    stamp: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DecodedSegment:
    """An interval of a video and its sampled frames.

    Attributes:
        start_seconds: where it begins.
        end_seconds: where it ends.
        frames: uint8 [n, R, R, 3] RGB, as shown, 1 <= n <= F.
        frame_times: float64 [n], when they start, seconds after the first frame of the video, ascending.
    """

    start_seconds: float
    end_seconds: float
    frames: NDArray[np.uint8]
    frame_times: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DecodedVideo:
    """Segments `first_segment` and following of a file.

    Attributes:
        info: what the file is.
        segments: those that were asked for.
        partial: the file ends early or is damaged.
        fraction_read: of the promised length, times the share of wanted frames that were whole, 0 to 1.
        first_segment: number of the first of `segments`.
        num_segments: in the whole file.
        decode_seconds: what the child spent.
    """

    info: MediaInfo
    segments: list[DecodedSegment] = field(repr=False)
    partial: bool
    fraction_read: float
    first_segment: int
    num_segments: int
    decode_seconds: float


def decoded_to_message(video: DecodedVideo) -> tuple[dict[str, Any], list[memoryview]]:
    """Header and payload parts of an answer."""
    header = {
        "kind": "decode",
        "info": video.info.to_dict(),
        "partial": video.partial,
        "fraction_read": video.fraction_read,
        "first_segment": video.first_segment,
        "num_segments": video.num_segments,
        "decode_seconds": video.decode_seconds,
        "segments": [
            {
                "start_seconds": segment.start_seconds,
                "end_seconds": segment.end_seconds,
                "frame_times": segment.frame_times.tolist(),
            }
            for segment in video.segments
        ],
    }
    return header, [np.ascontiguousarray(segment.frames).data.cast("B") for segment in video.segments]


def decoded_from_message(header: dict[str, Any], payload: bytearray, request: DecodeRequest) -> DecodedVideo:
    """The answer to `request`.

    Raises:
        DecoderDiedError: the message cannot be an answer to it.
    """
    try:
        info = _checked_info(header["info"])
        size = request.resizing.image_size
        pixels = np.frombuffer(payload, dtype=np.uint8).reshape(-1, size, size, 3)
        segments, used = [], 0
        for values in header["segments"][: request.max_segments]:
            times = np.asarray(values["frame_times"], dtype=np.float64)
            if times.ndim != 1 or not 1 <= len(times) <= request.sampling.num_frames:
                raise ValueError("frame_times")
            _check(bool(np.isfinite(times).all()) and bool((times >= 0).all()), "frame_times")
            frames = pixels[used : used + len(times)]
            used += len(times)
            start, end = _number(values["start_seconds"]), _number(values["end_seconds"])
            _check(start <= end, "segment")
            segments.append(DecodedSegment(start, end, frames, times))
        num_segments, fraction_read = header["num_segments"], _number(header["fraction_read"])
        # A segment lasts a second at least.
        _check(type(num_segments) is int and 1 <= num_segments <= 1 + info.duration_seconds, "num_segments")
        num_answered = min(request.max_segments, num_segments - request.first_segment)
        _check(used == len(pixels) and len(segments) == num_answered >= 1, "number of frames")
        _check(fraction_read <= 1 and header["partial"] is (fraction_read < 1), "fraction_read")
        return DecodedVideo(
            info=info,
            segments=segments,
            partial=header["partial"],
            fraction_read=fraction_read,
            first_segment=request.first_segment,
            num_segments=num_segments,
            decode_seconds=_number(header["decode_seconds"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DecoderDiedError(NONSENSE_REASON) from error


def hashed_from_message(header: dict[str, Any]) -> HashedFile:
    """The answer to a question for a file's hash. Raises DecoderDiedError where it cannot be one."""
    try:
        _check(bool(_SHA256.fullmatch(header["content_sha256"])), "content_sha256")
        stamp = header["stamp"]
        _check(len(stamp) == 4 and all(type(number) is int for number in stamp), "stamp")
        return HashedFile(header["content_sha256"], tuple(stamp))
    except (KeyError, TypeError, ValueError) as error:
        raise DecoderDiedError(NONSENSE_REASON) from error


def _checked_info(values: dict[str, Any]) -> MediaInfo:
    info = MediaInfo(**values)
    counts = (info.width, info.height, info.num_frames, info.size_bytes)
    _check(all(type(count) is int and 1 <= count < 2**63 for count in counts), "info")
    _check(_number(info.frame_rate) > 0 and _number(info.duration_seconds) > 0, "info")
    _check(info.container in DEMUXERS and info.codec in VIDEO_CODECS, "info")
    _number(info.media_start_seconds)
    _check(info.rotation_degrees in (0, 90, 180, 270) and type(info.has_audio) is bool, "info")
    _check(
        info.recorded_at is None or plausible_recording_time(_number(info.recorded_at)) is not None, "info"
    )
    return info


def _number(value: Any) -> float:
    """A finite number, 0 or more, as JSON gives it."""
    _check(type(value) in (int, float) and 0 <= value <= sys.float_info.max, "a number")
    return float(value)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def error_to_message(error: MediaError, detail: str = "") -> dict[str, Any]:
    """Header of an answer that is a refusal. detail: for our log, never shown to the client."""
    return {"kind": "error", "error": type(error).__name__, "reason": error.reason, "detail": detail}


def error_from_message(header: dict[str, Any]) -> MediaError:
    """The refusal that a child sent."""
    kind = getattr(errors, str(header.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, MediaError)):
        kind = DecoderDiedError
    reason = str(header.get("reason"))[:1000]
    return kind("".join(letter if letter.isprintable() else " " for letter in reason))


def send_message(
    connection: socket.socket, header: dict[str, Any], payload: list[memoryview] | None = None
) -> None:
    """Write one message.

    Raises:
        OSError: the other side is gone.
    """
    text = json.dumps(header).encode()
    parts = payload or []
    connection.sendall(_SIZES.pack(len(text), sum(part.nbytes for part in parts)) + text)
    for part in parts:
        connection.sendall(part)


def receive_message(
    connection: socket.socket, max_payload_bytes: int, deadline: float | None = None
) -> tuple[dict[str, Any], bytearray]:
    """Read one message: (header, payload).

    Args:
        connection: from the other side.
        max_payload_bytes: more is refused.
        deadline: of `time.monotonic`.

    Raises:
        TimeoutError: the deadline has passed.
        EOFError: the other side is gone.
        ValueError: the message is malformed or too large.
    """
    header_bytes, payload_bytes = _SIZES.unpack(_receive(connection, _SIZES.size, deadline))
    if header_bytes > _MAX_HEADER_BYTES or payload_bytes > max_payload_bytes:
        raise ValueError(f"a message of {header_bytes} + {payload_bytes} bytes")
    try:
        header = json.loads(_receive(connection, header_bytes, deadline))
    except RecursionError:
        raise ValueError("a message nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("a message without a header")
    return header, _receive(connection, payload_bytes, deadline)


def _receive(connection: socket.socket, num_bytes: int, deadline: float | None) -> bytearray:
    buffer = bytearray(num_bytes)
    view = memoryview(buffer)
    while view:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
        else:
            connection.settimeout(None)
        try:
            received = connection.recv_into(view)
        except ConnectionError:
            received = 0
        if not received:
            raise EOFError
        view = view[received:]
    return buffer
