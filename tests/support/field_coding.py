"""H.264 whose pictures are coded as two fields each (PAFF), as AVCHD cameras and DVB do; no encoder here
writes it.

Every macroblock is I_PCM: its samples, uncoded (ITU-T H.264, 7.3.5), so that a few headers are all there is
to write.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

from tests.support.video_files import HEIGHT, WIDTH, numbered_picture

FRAME_RATE = Fraction(30000, 1001)
_IDR, _OTHER, _SPS, _PPS = 0x65, 0x41, 0x67, 0x68
"""First bytes of NAL units: nal_ref_idc and nal_unit_type."""


class _Writer:
    def __init__(self) -> None:
        self.bits = ""

    def put(self, value: int, num_bits: int) -> _Writer:
        self.bits += format(value, f"0{num_bits}b")
        return self

    def code(self, *values: int) -> _Writer:
        """Exp-Golomb codes, clause 9.1."""
        for value in values:
            digits = format(value + 1, "b")
            self.bits += "0" * (len(digits) - 1) + digits
        return self

    def align(self) -> _Writer:
        self.bits += "0" * (-len(self.bits) % 8)
        return self

    def pcm(self, samples: bytes) -> _Writer:
        self.align().bits += "".join(format(sample, "08b") for sample in samples)
        return self

    def unit(self, first_byte: int) -> bytes:
        """The NAL unit; no sample is below 16, so that nothing looks like a start code."""
        self.put(1, 1).align()
        return bytes([first_byte]) + int(self.bits, 2).to_bytes(len(self.bits) // 8, "big")


def parameter_sets() -> list[bytes]:
    """The sequence and the picture parameter set: Main profile, fields allowed, frame_num of 4 bits."""
    sequence = _Writer().put(77, 8).put(0, 8).put(30, 8).code(0, 0, 2, 1).put(0, 1)
    sequence.code(WIDTH // 16 - 1, HEIGHT // 32 - 1).put(0, 1).put(0, 1).put(1, 1).put(0, 1).put(0, 1)
    picture = _Writer().code(0, 0).put(0, 2).code(0, 0, 0).put(0, 3).code(0, 0, 0).put(0b100, 3)
    return [sequence.unit(_SPS), picture.unit(_PPS)]


def field(picture: NDArray[np.uint8], number: int, *, is_bottom: bool) -> bytes:
    """The slice of one field of the frame `number`."""
    luma = np.where(picture[is_bottom::2, :, 0] > 128, 235, 16).astype(np.uint8)
    is_idr = number == 0 and not is_bottom
    slice_ = _Writer().code(0, 7, 0).put(number % 16, 4).put(1, 1).put(int(is_bottom), 1)
    if is_idr:
        slice_.code(0).put(0, 2)
    else:
        slice_.put(0, 1)
    slice_.code(0, 1)  # slice_qp_delta, disable_deblocking_filter_idc
    for left in range(0, WIDTH, 16):
        slice_.code(25).pcm(luma[:, left : left + 16].tobytes() + b"\x80" * 128)
    return slice_.unit(_IDR if is_idr else _OTHER)


def write_field_coded_video(
    path: Path, num_frames: int, packets: Literal["frame", "field"], first_number: int = 0
) -> Path:
    """Write numbered frames, top field first, at 29.97 a second, as MPEG-TS.

    Args:
        path: of the file.
        num_frames: frames, not fields.
        packets: of the container (PES): one for each frame or one for each field.
        first_number: shown by the first frame.
    """
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_mux_stream("h264", rate=FRAME_RATE, width=WIDTH, height=HEIGHT)
        for number in range(num_frames):
            shown = numbered_picture(first_number + number)
            units = [field(shown, number, is_bottom=is_bottom) for is_bottom in (False, True)]
            groups = [units] if packets == "frame" else [[unit] for unit in units]
            for place, group in enumerate(groups):
                heads = parameter_sets() if number % 12 == 0 and not place else []
                packet = av.Packet(b"".join(b"\0\0\0\1" + unit for unit in heads + group))
                packet.stream, packet.time_base = stream, 1 / (2 * FRAME_RATE)
                packet.pts = packet.dts = 2 * number + place
                packet.is_keyframe = not place
                container.mux(packet)
    return path


def copy_streams(source: Path, target: Path) -> Path:
    """Put the packets of a file into another container, as `ffmpeg -c copy` does."""
    with av.open(str(source)) as container, av.open(str(target), "w") as copy:
        streams = {
            stream.index: copy.add_stream_from_template(stream)
            for stream in container.streams
            if stream.type in ("video", "audio")
        }
        for packet in container.demux(*(container.streams[index] for index in streams)):
            if packet.dts is not None and packet.size:
                packet.stream = streams[packet.stream_index]
                copy.mux(packet)
    return target
