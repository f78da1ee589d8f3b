"""The Range header, as far as a player needs it: one range of bytes (RFC 9110 section 14)."""

from __future__ import annotations

import re

from service.errors import RangeNotSatisfiableError

_ONE_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


def wanted_bytes(header: str | None, size_bytes: int) -> range | None:
    """The positions that a Range header asks for of a file of `size_bytes`; None: all of it.

    What is not understood is ignored (section 14.2), several ranges too. Raises RangeNotSatisfiableError.

    >>> wanted_bytes("bytes=2-4", 10), wanted_bytes("bytes=-3", 10), wanted_bytes("lines=1-", 10)
    (range(2, 5), range(7, 10), None)
    """
    match = _ONE_RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or (match[1] and match[2] and int(match[2]) < int(match[1])):
        return None
    if match[3]:
        wanted = range(max(0, size_bytes - int(match[3])), size_bytes)
    else:
        wanted = range(int(match[1]), min(int(match[2]) + 1 if match[2] else size_bytes, size_bytes))
    if not wanted:
        raise RangeNotSatisfiableError(headers={"Content-Range": f"bytes */{size_bytes}"})
    return wanted
