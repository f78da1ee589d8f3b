"""What has to be known of H.264 and HEVC before they are decoded: which packets are second fields, which key
packets are whole, whether pictures that nothing refers to can be told.

An interlaced picture may be coded as two fields, which MPEG-TS, and what is remuxed from it, gives as two
packets; a decoder makes one frame of them. Only headers are read, by ITU-T H.264 (08/2021), clause 7.3, and
H.265 (08/2021), clause 7.3.1.2. Clauses are those of H.264 unless H.265 is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from av.packet import Packet
from av.video.stream import VideoStream

_SLICE, _IDR_SLICE, _SPS, _PPS = 1, 5, 7, 8
"""nal_unit_type, table 7-1. 1 to 5 are slices."""

_HEADER_BYTES: Final = 2048
"""The first slice of a packet begins within these, but for packets with much user data."""

_SLICE_HEADER_BYTES: Final = 32
"""More than the slice header's fields up to bottom_field_flag can take."""

_HEVC_SLICES: Final = range(32)
"""nal_unit_type of H.265, table 7-1, that are slices."""

_PROFILES_WITH_CHROMA: Final = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
"""profile_idc whose sequence parameter sets say more, clause 7.3.2.1.1."""


@dataclass(frozen=True)
class _Sequence:
    """Of a sequence parameter set: how a slice header is to be read."""

    frame_num_bits: int
    has_fields: bool
    has_colour_planes: bool


@dataclass(frozen=True)
class _Field:
    frame_num: int
    is_bottom: bool
    sequence: int


class H264Headers:
    """Takes the packets of one H.264 stream in the order of the file.

    Attributes:
        all_keys_whole: whether all key packets so far hold a whole picture (IDR). With intra refresh the
            picture builds up over many frames after a key packet, which show nothing until then.
    """

    def __init__(self, extradata: bytes | None) -> None:
        """extradata: of the stream; an avcC box (ISO/IEC 14496-15, 5.3.3.1) where NAL units have lengths
        before them, else start codes are before them."""
        self._length_bytes = _length_bytes(extradata, 4)
        self._sequences: dict[int, _Sequence] = {}
        self._sequence_of_pps: dict[int, int] = {}
        self._may_have_fields = False
        self._first_field: _Field | None = None
        self.all_keys_whole = self._length_bytes > 0
        if extradata is not None:
            for unit in _avcc_units(extradata) if self._length_bytes else _units(extradata, 0):
                self._take_parameters(unit)

    def is_second_field(self, packet: Packet[VideoStream]) -> bool:
        """Whether a packet, the next of the file, holds the second field of the frame before."""
        if not (self._may_have_fields or packet.is_keyframe):
            return False
        head = bytes(memoryview(packet)[:_HEADER_BYTES])
        unit = self._first_slice(head)
        if unit is None and packet.size > _HEADER_BYTES:
            unit = self._first_slice(bytes(packet))
        if packet.is_keyframe and self.all_keys_whole:
            self.all_keys_whole = unit is not None and unit[0] & 31 == _IDR_SLICE
        field = self._field_of(unit) if unit is not None else None
        first, self._first_field = self._first_field, field
        # Clause 7.4.1.2.4 and 3.30: opposite parity, the same frame_num; a field that has its second takes no
        # third.
        is_second = (
            field is not None
            and first is not None
            and field.is_bottom != first.is_bottom
            and (field.frame_num, field.sequence) == (first.frame_num, first.sequence)
        )
        if is_second:
            self._first_field = None
        return is_second

    def _first_slice(self, head: bytes) -> bytes | None:
        for unit in _units(head, self._length_bytes):
            if _SLICE <= unit[0] & 31 <= _IDR_SLICE:
                return unit
            self._take_parameters(unit)
        return None

    def _take_parameters(self, unit: bytes) -> None:
        kind = unit[0] & 31
        if kind not in (_SPS, _PPS):
            return
        try:
            bits = _Bits(unit[1:])
            if kind == _SPS:
                number, sequence = _read_sequence(bits)
                self._sequences[number] = sequence
                self._may_have_fields |= sequence.has_fields
            else:
                number = bits.unsigned()
                self._sequence_of_pps[number] = bits.unsigned()
        except ValueError:
            return  # Cut off or damaged; the decoder will say so.

    def _field_of(self, unit: bytes) -> _Field | None:
        """The field that a slice belongs to; None where it is of a whole frame."""
        try:
            bits = _Bits(unit[1 : 1 + _SLICE_HEADER_BYTES])
            bits.unsigned()  # first_mb_in_slice
            bits.unsigned()  # slice_type
            number = self._sequence_of_pps.get(bits.unsigned(), 0)
            sequence = self._sequences.get(number)
            if sequence is None or not sequence.has_fields:
                return None
            if sequence.has_colour_planes:
                bits.read(2)
            frame_num = bits.read(sequence.frame_num_bits)
            return _Field(frame_num, bool(bits.read(1)), number) if bits.read(1) else None
        except ValueError:
            return None


class HevcHeaders:
    """Takes the packets of one HEVC stream.

    Attributes:
        has_layers: whether a picture so far belongs to a temporal layer above the lowest. A slice that is
            marked as no reference (TRAIL_N, RASL_N and so on) is none for its own layer (H.265, 7.4.2.2);
            pictures of higher layers may refer to it. Without layers it is none at all.
    """

    def __init__(self, extradata: bytes | None) -> None:
        """extradata: of the stream; an hvcC box (ISO/IEC 14496-15, 8.3.3.1) where NAL units have lengths
        before them, else start codes are before them."""
        self._length_bytes = _length_bytes(extradata, 21)
        self.has_layers = False

    def look(self, packet: Packet[VideoStream]) -> None:
        """Take a packet into account."""
        if self.has_layers or not packet.size:
            return
        units = _units(bytes(memoryview(packet)[:_HEADER_BYTES]), self._length_bytes)
        if not any((unit[0] >> 1) & 63 in _HEVC_SLICES for unit in units):
            units = _units(bytes(packet), self._length_bytes)
        # nuh_temporal_id_plus1, H.265 7.3.1.2; that of all slices of a picture is the same.
        self.has_layers = any(
            len(unit) > 1 and (unit[0] >> 1) & 63 in _HEVC_SLICES and unit[1] & 7 > 1 for unit in units
        )


def _length_bytes(extradata: bytes | None, position: int) -> int:
    """Bytes of the length before each NAL unit, which an avcC or hvcC box says there; 0: start codes."""
    is_box = extradata is not None and len(extradata) > position and extradata[0] == 1
    return (extradata[position] & 3) + 1 if extradata is not None and is_box else 0


def _units(data: bytes, length_bytes: int) -> list[bytes]:
    """The NAL units of a packet, none empty; the last may be cut off."""
    units, position = [], 0
    if length_bytes:
        while position + length_bytes < len(data):
            start = position + length_bytes
            position = start + int.from_bytes(data[position:start], "big")
            units.append(data[start:position])
        return [unit for unit in units if unit]
    start = data.find(b"\x00\x00\x01")
    while start >= 0:
        after = data.find(b"\x00\x00\x01", start + 3)
        units.append(data[start + 3 : after if after >= 0 else len(data)])
        start = after
    return [unit for unit in units if unit]


def _avcc_units(extradata: bytes) -> list[bytes]:
    """The parameter sets of an avcC box: a count in five bits, then each behind its length; twice."""
    units, position = [], 5
    for mask in (31, 255):
        if position >= len(extradata):
            break
        count = extradata[position] & mask
        position += 1
        for _ in range(count):
            length = int.from_bytes(extradata[position : position + 2], "big")
            units.append(extradata[position + 2 : position + 2 + length])
            position += 2 + length
    return [unit for unit in units if unit]


def _read_sequence(bits: _Bits) -> tuple[int, _Sequence]:
    """(seq_parameter_set_id, what of it is needed), clause 7.3.2.1.1."""
    profile = bits.read(8)
    bits.read(16)  # constraint flags, level_idc
    number = bits.unsigned()
    has_colour_planes = False
    if profile in _PROFILES_WITH_CHROMA:
        chroma_format = bits.unsigned()
        if chroma_format == 3:
            has_colour_planes = bool(bits.read(1))
        bits.unsigned()  # bit_depth_luma_minus8
        bits.unsigned()  # bit_depth_chroma_minus8
        bits.read(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.read(1):
            for index in range(8 if chroma_format != 3 else 12):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    frame_num_bits = bits.unsigned() + 4
    order_type = bits.unsigned()
    if order_type == 0:
        bits.unsigned()  # log2_max_pic_order_cnt_lsb_minus4
    elif order_type == 1:
        bits.read(1)
        bits.signed()
        bits.signed()
        for _ in range(min(bits.unsigned(), 255)):
            bits.signed()
    bits.unsigned()  # max_num_ref_frames
    bits.read(1)  # gaps_in_frame_num_value_allowed_flag
    bits.unsigned()  # pic_width_in_mbs_minus1
    bits.unsigned()  # pic_height_in_map_units_minus1
    is_progressive = bool(bits.read(1))  # frame_mbs_only_flag
    return number, _Sequence(min(frame_num_bits, 16), not is_progressive, has_colour_planes)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    """Clause 7.3.2.1.1.1."""
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


class _Bits:
    """Reads the bits of a NAL unit; ValueError at its end."""

    def __init__(self, payload: bytes) -> None:
        payload = payload.replace(b"\x00\x00\x03", b"\x00\x00")  # emulation prevention, clause 7.4.1
        self._value = int.from_bytes(payload, "big")
        self._left = 8 * len(payload)

    def read(self, num_bits: int) -> int:
        """The next bits as a number."""
        self._left -= num_bits
        if self._left < 0:
            raise ValueError("the NAL unit ends early")
        return (self._value >> self._left) & ((1 << num_bits) - 1)

    def unsigned(self) -> int:
        """An Exp-Golomb code, clause 9.1."""
        num_zeros = 0
        while not self.read(1):
            num_zeros += 1
        return (1 << num_zeros) - 1 + self.read(num_zeros)

    def signed(self) -> int:
        """A signed Exp-Golomb code, clause 9.1.1."""
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)
