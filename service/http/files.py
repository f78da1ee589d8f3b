"""What a client has already is not sent again, and a part is sent of what it has: RFC 9110, 13 and 14.

`answer`: the headers of the whole answer, with its ETag, and Last-Modified where it has one.

The Range header, as far as a player needs it: one range of bytes (RFC 9110 section 14).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from fastapi import Request
from starlette.responses import FileResponse, Response

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


_KEPT = ("etag", "last-modified", "cache-control", "accept-ranges")
"""Headers that a 304 repeats."""


def not_modified(request: Request, answer: Mapping[str, str]) -> Response | None:
    """The 304 for a client that has the answer already; None for any other."""
    tags = request.headers.getlist("if-none-match")
    if tags:
        known = {tag.strip().removeprefix("W/") for value in tags for tag in value.split(",")}
        has_it = "*" in known or answer["etag"] in known
    else:
        has_it = request.headers.get("if-modified-since", "") == answer.get("last-modified")
    if not has_it:
        return None
    return Response(status_code=304, headers={name: answer[name] for name in _KEPT if name in answer})


def wanted_part(request: Request, answer: Mapping[str, str], size_bytes: int) -> range | None:
    """The positions that a client wants of `size_bytes`; None: all. Raises RangeNotSatisfiableError."""
    if request.method != "GET":
        return None
    condition = request.headers.get("if-range")
    if condition is not None and condition not in (answer["etag"], answer.get("last-modified")):
        return None
    return wanted_bytes(request.headers.get("range"), size_bytes)


def answer_file(
    request: Request, path: Path, stat_result: os.stat_result, media_type: str, cache_control: str
) -> Response:
    """A file, the part of it that is wanted, or a 304. Raises RangeNotSatisfiableError."""
    whole = FileResponse(
        path, media_type=media_type, stat_result=stat_result, headers={"Cache-Control": cache_control}
    )
    if (known := not_modified(request, whole.headers)) is not None:
        return known
    if wanted_part(request, whole.headers, stat_result.st_size) is None:
        # FileResponse would refuse what is not understood, and send parts for a HEAD.
        headers = request.scope["headers"]
        request.scope["headers"] = [(name, value) for name, value in headers if name != b"range"]
    return whole
