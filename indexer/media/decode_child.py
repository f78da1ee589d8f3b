"""What runs in a child of the decode pool: one file at a time, inside limits that the kernel keeps.

Imports neither torch nor anything that opens a network connection. Run by `indexer.media.decode_pool` as a
fresh interpreter, so that nothing of the parent's memory is in it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import socket
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from indexer.errors import DecoderDiedError, MediaError, MediaLimitError, UnsupportedMediaError
from indexer.media.decode_messages import (
    FILE_CHANGED,
    DecodedSegment,
    DecodedVideo,
    DecodeRequest,
    decoded_to_message,
    error_to_message,
    receive_message,
    send_message,
)
from indexer.media.frame_reader import VideoFile
from indexer.media.preview import make_clip
from indexer.media.probing import MediaLimits, check_file, check_frame_size
from indexer.media.sampling import PlannedSegment, plan_segments
from indexer.media.sandbox import allow_processor_seconds, limit_resources, refuse_system_calls
from model.preprocessing import Resizing

_GRACE_SECONDS = 10.0
"""How much later than the parent's own time limit the kernel ends a child, for where the parent is gone."""

_JPEG_QUALITY = 85

_PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""Pillow's names of what is read as a picture; of an animation, its first frame."""

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""Of ISO/IEC 23008-12, B.4. Pillow does not read them, and FFmpeg gives the tiles of a picture one by one."""

_MAX_PICTURE_PIXELS = 256_000_000
"""Cameras of telephones make pictures of 200 million."""


def serve(descriptor: int) -> None:
    """Answer requests from the socket `descriptor` until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides when to stop.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with socket.socket(fileno=descriptor) as connection:
        try:
            settings, _ = receive_message(connection, 0)
            os.nice(int(settings["niceness"]))
            limit_resources(int(settings["memory_limit_bytes"]))
            is_filtered = refuse_system_calls()
            files = _Files(MediaLimits(**settings["limits"]))
            send_message(connection, {"kind": "ready", "is_filtered": is_filtered})
            while True:
                header, _ = receive_message(connection, 0)
                # A decoder that hangs may hold the interpreter lock: only the kernel's own timer is sure.
                signal.setitimer(signal.ITIMER_REAL, float(header["timeout_seconds"]) + _GRACE_SECONDS)
                allow_processor_seconds(float(header["processor_seconds"]))
                answer, payload = _answer(header, files)
                send_message(connection, answer, payload)
                signal.setitimer(signal.ITIMER_REAL, 0)
        except (EOFError, OSError):
            return


class _Files:
    """Opens files, and keeps the last one open to further requests for it."""

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        self._last: VideoFile | None = None
        self._last_stamp: tuple[int, ...] = ()

    def open(self, path: Path, stamp: tuple[int, ...], *, goes_on: bool) -> VideoFile:
        """Probe a file.

        Args:
            path: the file.
            stamp: of the file now.
            goes_on: the request is for more of the same file. Reading all packets of a film again for each
                few segments would take longer than decoding them.

        Raises:
            MediaError: the file cannot become a video.
        """
        last = self._last
        if goes_on and last is not None and last.path == path and self._last_stamp == stamp:
            return last
        self._last = None
        self._last, self._last_stamp = VideoFile(path, self.limits), stamp
        return self._last


def _answer(header: dict[str, Any], files: _Files) -> tuple[dict[str, Any], list[memoryview]]:
    try:
        if header["kind"] == "hash":
            return {"kind": "hash", **_hash(Path(header["path"]), files.limits)}, []
        if header["kind"] == "picture":
            picture = _take_picture(header, files.limits)
            return {"kind": "picture"}, [memoryview(picture)]
        if header["kind"] == "still":
            square = _read_still(Path(header["path"]), Resizing(**header["resizing"]), files.limits)
            return {"kind": "still"}, [] if square is None else [square.data.cast("B")]
        if header["kind"] == "clip":
            clip = make_clip(Path(header["path"]), float(header["time_seconds"]), files.limits)
            return {"kind": "clip"}, [memoryview(clip)]
        return decoded_to_message(_decode(DecodeRequest.from_dict(header["request"]), files))
    except MediaError as error:
        return error_to_message(error), []
    except MemoryError:
        return _out_of_memory(), []
    except (av.error.FFmpegError, OSError) as error:  # The first are OSErrors or EOFErrors at times.
        if error.errno in (errno.ENOMEM, errno.EAGAIN):  # No memory for a thread's stack is EAGAIN.
            return _out_of_memory(), []
        return error_to_message(MediaError(f"the file cannot be read ({error.strerror})")), []
    except Exception:
        return error_to_message(DecoderDiedError("the decoder failed"), traceback.format_exc()), []


def _out_of_memory() -> dict[str, Any]:
    # What is left of its memory, fragmented, may not be enough for the next file.
    return {**error_to_message(MediaLimitError("decoding needs more memory than allowed")), "is_last": True}


def _hash(path: Path, limits: MediaLimits) -> dict[str, Any]:
    _, before = check_file(path, limits)  # Refuses what is not a video before reading all of it.
    with path.open("rb") as stream:
        content_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    _require_unchanged(path, _stamp(before))
    return {"content_sha256": content_sha256, "stamp": _stamp(before)}


def _decode(request: DecodeRequest, files: _Files) -> DecodedVideo:
    started = time.perf_counter()
    path = Path(request.path)
    _, before = check_file(path, files.limits)
    stamp = _stamp(before)
    if request.stamp not in (None, stamp):
        raise MediaError(FILE_CHANGED)
    file = files.open(path, stamp, goes_on=request.stamp is not None)
    planned = _plan(file, request)
    chosen = planned[request.first_segment : request.first_segment + request.max_segments]
    segments, exact_share = _read_segments(file, chosen, request)
    _require_unchanged(path, stamp)
    fraction_read = file.timeline.fraction_present * exact_share
    return DecodedVideo(
        info=file.info,
        segments=segments,
        partial=fraction_read < 1,
        fraction_read=fraction_read,
        first_segment=request.first_segment,
        num_segments=len(planned),
        decode_seconds=time.perf_counter() - started,
    )


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _require_unchanged(path: Path, stamp: tuple[int, ...]) -> None:
    if _stamp(path.stat()) != stamp:
        raise MediaError(FILE_CHANGED)


def _plan(file: VideoFile, request: DecodeRequest) -> list[PlannedSegment]:
    timeline = file.timeline
    try:
        planned = plan_segments(timeline.times, timeline.end_seconds, timeline.frame_rate, request.sampling)
    except ValueError as error:
        raise UnsupportedMediaError(str(error)) from None
    if request.first_segment >= len(planned):
        raise MediaError(FILE_CHANGED)
    return planned


def _read_segments(
    file: VideoFile, planned: list[PlannedSegment], request: DecodeRequest
) -> tuple[list[DecodedSegment], float]:
    """The segments, and the share of their frames that are whole and the wanted ones."""
    times = [time_seconds for segment in planned for time_seconds in segment.times_seconds]
    backend = request.backend if request.trusted else "pyav"
    frames = file.frames_at(times, backend, min_side=2 * request.resizing.image_size)
    segments, num_exact, last = [], 0, None
    for segment in planned:
        pixels, starts = [], []
        for _ in segment.times_seconds:
            frame = next(frames)
            # One frame may be shown for seconds: it is resized once for all its times.
            if last is None or frame is not last:
                square = request.resizing(frame.rgb)
            last = frame
            pixels.append(square)
            starts.append(frame.time_seconds)
            num_exact += frame.exact
        segments.append(
            DecodedSegment(segment.start_seconds, segment.end_seconds, np.stack(pixels), np.array(starts))
        )
    return segments, num_exact / len(times)


def _take_picture(header: dict[str, Any], limits: MediaLimits) -> bytes:
    file = VideoFile(Path(header["path"]), limits)
    frame = next(file.frames_at([float(header["time_seconds"])]))
    picture = Image.fromarray(frame.rgb)
    width = int(header["max_width"])
    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _read_still(path: Path, resizing: Resizing, limits: MediaLimits) -> NDArray[np.uint8] | None:
    """The picture in a file as the model's square, uint8 [R, R, 3]; None where the file is no picture.

    Upright, as its camera says; transparency on white, as pages show it.

    Raises:
        MediaError: it is a picture that is damaged or too large.
    """
    Image.MAX_IMAGE_PIXELS = None  # Its warning; the size is judged below, before a pixel is decoded.
    try:
        picture = Image.open(path, formats=_PICTURE_FORMATS)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            head = file.read(12)
        if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
            raise UnsupportedMediaError("a HEIC picture, which is not read: save it as JPEG") from None
        return None
    except (ValueError, SyntaxError):
        raise MediaError("the picture is damaged") from None
    with picture:
        check_frame_size(*picture.size, replace(limits, max_pixels=_MAX_PICTURE_PIXELS))
        try:
            # A JPEG is decoded at a fraction of its size, as large as the square needs at least.
            picture.draft(None, (2 * resizing.image_size, 2 * resizing.image_size))
            shown = ImageOps.exif_transpose(picture)
            if shown.mode.startswith("I;16"):
                shown = Image.fromarray((np.asarray(shown) >> 8).astype(np.uint8))
            if shown.has_transparency_data:
                shown = shown.convert("RGBA")
                shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
            rgb = np.asarray(shown.convert("RGB"))
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # Not the picture, but the disk or the memory.
            raise MediaError("the picture is damaged") from None
    return resizing(rgb)
