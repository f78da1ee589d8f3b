"""The least streams of video codecs that no encoder at hand writes, made bit by bit: pictures of one colour.

Every block is what its codec predicts where nothing came before, so that a picture is a header and the same
few bits for each macroblock of 16 x 16 pixels.
"""

from __future__ import annotations

import struct
from pathlib import Path

SIDE = 32
_MACROBLOCKS = (SIDE // 16) ** 2

# VC-1 (SMPTE 421M), in I pictures: after coded block pattern 0 (1) and no prediction of AC coefficients (0),
# six DC differences of 0 by the tables for low motion.
_VC1_BLOCKS = "1111" + "0000"


def _bits(text: str) -> bytes:
    text = text.replace(" ", "")
    text += "0" * (-len(text) % 8)
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def _wmv3() -> tuple[bytes, bytes]:
    """Simple profile. Sequence header, annex J, with FASTUVMC, VSTRANSFORM and the reserved bits set."""
    header = _bits("0000 000 00000 0 0 0 1 1 0 00 1 0 0 0 0 000 00 0 1")
    # FRMCNT, PTYPE, BF, PQINDEX, TRANSACFRM, TRANSACFRM2, TRANSDCTAB.
    picture = "00 0 0000000 01010 0 0 0" + ("1 0" + _VC1_BLOCKS) * _MACROBLOCKS
    return header, _bits(picture)


def _vc1() -> tuple[bytes, bytes]:
    """Advanced profile: sequence header and entry point, then pictures with raw bit planes."""
    half = f"{SIDE // 2 - 1:012b}"
    sequence = _bits(f"11 001 01 000 00000 0 {half} {half} 0 0 0 0 1 0 0 0 1")
    entry = _bits("0 1 0 0 0 0 0 00 1 0 00 0 0 0 1")
    header = b"\x00\x00\x01\x0f" + sequence + b"\x00\x00\x01\x0e" + entry
    # PTYPE I, RNDCTRL, PQINDEX, ACPRED (not inverted, raw), TRANSACFRM, TRANSACFRM2, TRANSDCTAB.
    picture = "110 0 01010 0 0000 0 0 0" + ("1 0" + _VC1_BLOCKS) * _MACROBLOCKS + "1"
    return b"\x00" + header, b"\x00\x00\x01\x0d" + _bits(picture)


def _vp6() -> tuple[bytes, bytes]:
    """Key frame of the simple profile; zeros are zeros for the arithmetic decoder, whatever it asks."""
    rows = SIDE // 16
    return b"", bytes([0x00 | 40 << 1, 6 << 3, 0, 40, rows, rows, rows, rows]) + bytes(200)


def _svq3() -> tuple[bytes, bytes]:
    """I slice; each macroblock is predicted as 128 (type 25) without coefficients (pattern number 3)."""
    slice_header = "011 0 00000000 01010 0 0 0 00 0"
    content = _bits(slice_header + ("010001001" + "00001") * _MACROBLOCKS + "1")
    return b"", bytes([0x21, len(content)]) + content + bytes(8)


MADE = {"wmv3": (b"WMV3", _wmv3), "vc1": (b"WVC1", _vc1), "vp6": (b"VP62", _vp6), "vp6f": (b"FLV4", _vp6)}
MADE |= {"svq3": (b"SVQ3", _svq3)}
"""Codec by FFmpeg's canonical name -> its four letters in AVI, and what makes (extradata, one key frame)."""


def write_made_video(path: Path, codec: str, num_frames: int = 5, rate: int = 5) -> Path:
    """An AVI file of pictures of one colour, SIDE x SIDE."""
    letters, make = MADE[codec]
    extradata, picture = make()

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    picture_format = struct.pack(
        "<IiiHH4sIiiII", 40 + len(extradata), SIDE, SIDE, 1, 24, letters, 0, 0, 0, 0, 0
    )
    main = struct.pack("<14I", 1_000_000 // rate, 0, 0, 16, num_frames, 0, 1, 0, SIDE, SIDE, 0, 0, 0, 0)
    stream = struct.pack(
        "<4s4sIHHIIIIIIIIhhhh", b"vids", letters, 0, 0, 0, 0, 1, rate, 0, num_frames, 0, 0, 0, 0, 0, 0, 0
    )
    lists = chunk(b"strh", stream) + chunk(b"strf", picture_format + extradata)
    header = chunk(b"avih", main) + chunk(b"LIST", b"strl" + lists)
    movie = b"".join(chunk(b"00dc", picture) for _ in range(num_frames))
    step = len(chunk(b"00dc", picture))
    index = b"".join(
        struct.pack("<4sIII", b"00dc", 16, 4 + step * number, len(picture)) for number in range(num_frames)
    )
    content = chunk(b"LIST", b"hdrl" + header) + chunk(b"LIST", b"movi" + movie) + chunk(b"idx1", index)
    path.write_bytes(chunk(b"RIFF", b"AVI " + content))
    return path
