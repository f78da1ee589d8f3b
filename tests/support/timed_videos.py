"""Numbered videos with clocks of their own: sound and pictures, late starts, joined recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.support.video_files import HEIGHT, MILLISECOND, WIDTH, numbered_picture

SOUND_RATE = 48_000
_SOUND_CODECS = {"webm": "libopus", "ts": "mp2", "mpg": "mp2", "avi": "mp2", "wmv": "adpcm_ms"}
_VIDEO_CODECS = {"webm": "libvpx", "mpg": "mpeg2video", "avi": "mpeg4", "wmv": "wmv2"}
_QUICK = {
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "2"},
    "mpeg2video": {"bf": "2"},
    "mpeg4": {},
    "wmv2": {},
}


def write_timed_video(
    path: Path,
    times_milliseconds: Sequence[int],
    *,
    sound_seconds: tuple[float, float] | None = None,
    first_number: int = 0,
    container_options: Mapping[str, str] | None = None,
) -> Path:
    """Write numbered frames at these times of the file's clock.

    Args:
        path: its ending chooses container and codecs.
        times_milliseconds: when each frame starts, ascending.
        sound_seconds: from when to when there is sound; None for no sound.
        first_number: shown by the first frame.
        container_options: of the muxer.
    """
    ending = path.suffix[1:]
    codec = _VIDEO_CODECS.get(ending, "libx264")
    with av.open(str(path), "w", container_options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=25, options=_QUICK[codec])
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 12
        stream.codec_context.time_base = (
            MILLISECOND if codec in ("libx264", "libvpx", "wmv2") else Fraction(1, 25)
        )
        sound = None
        if sound_seconds is not None:
            sound = container.add_stream(_SOUND_CODECS.get(ending, "aac"), rate=SOUND_RATE, layout="mono")
        packets = []
        for number, milliseconds in enumerate(times_milliseconds):
            frame = av.VideoFrame.from_ndarray(numbered_picture(first_number + number), format="rgb24")
            frame.pts, frame.time_base = milliseconds, MILLISECOND
            packets += stream.encode(frame)
        packets += stream.encode()
        if sound is not None and sound_seconds is not None:
            size = sound.codec_context.frame_size or 1024
            first, last = (round(seconds * SOUND_RATE) for seconds in sound_seconds)
            for start in range(first, last, size):
                samples = np.zeros((1, size), dtype=np.int16)
                tone = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                tone.sample_rate, tone.pts, tone.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
                packets += sound.encode(tone)
            packets += sound.encode()
        # In their order, as a recorder writes them.
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            container.mux(packet)
    return path


def join_files(target: Path, *parts: Path) -> Path:
    """One file after the other, byte by byte, as `cat` does."""
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def shift_fragments(content: bytes, seconds: float) -> bytes:
    """A fragmented MP4 file whose fragments say that they come so much later (tfdt, ISO/IEC 14496-12,
    8.8.12), as those of a live recording do. Both `mdhd` and `tfdt` of the file must be of their usual
    version, 0 and 1."""
    shifted, scales, position = bytearray(content), {}, 0
    number = 0
    while (position := shifted.find(b"mdhd", position + 1)) >= 0:
        number += 1
        scales[number] = int.from_bytes(shifted[position + 16 : position + 20], "big")
    position = 0
    while (position := shifted.find(b"tfhd", position + 1)) >= 0:
        track = int.from_bytes(shifted[position + 8 : position + 12], "big")
        time = shifted.find(b"tfdt", position) + 8
        assert shifted[time - 4] == 1
        later = int.from_bytes(shifted[time : time + 8], "big") + round(seconds * scales[track])
        shifted[time : time + 8] = later.to_bytes(8, "big")
    return bytes(shifted)
