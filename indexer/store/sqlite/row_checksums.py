"""Checksums over rows of the catalog: SQLite checks its own structure, but not what a row says.

A byte that changes on a disk is noticed where the row is read, and by `verify`, instead of being searched
with or shown.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence

NO_CHECKSUM = -1
"""Of values of types that were never written: a damaged row can hold anything. No row's checksum is this."""


def checksum_of_row(values: Sequence[str | int | float | None]) -> int:
    """CRC-32 of a row's values in the order of its columns, booleans as the 0 or 1 that the catalog holds."""
    try:
        return zlib.crc32(json.dumps(list(values), ensure_ascii=False).encode())
    except (TypeError, ValueError):
        return NO_CHECKSUM


def checksum_of_blob(
    blob: bytes | bytearray | memoryview, *numbers: int | float, fingerprint: bytes = b""
) -> int:
    """CRC-32 of bytes together with numbers that say what they belong to, whole ones below 2^53, and with the
    fingerprint that they were made with."""
    try:
        numbers_crc = zlib.crc32(struct.pack(f"<{len(numbers)}d", *numbers))
        return zlib.crc32(blob, zlib.crc32(fingerprint, numbers_crc))
    except (TypeError, struct.error, OverflowError):
        return NO_CHECKSUM
