"""Answers with a file or with bytes: whole, the part that is asked for, or nothing to a client that has it.

RFC 9110, sections 13 and 14.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from fastapi import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.staticfiles import NotModifiedResponse, StaticFiles

from service.errors import RangeNotSatisfiableError
from service.remote_media import RemoteMediaFile

OpenAt = Callable[[RemoteMediaFile, range], Awaitable[AsyncIterator[bytes]]]
"""(file, positions) -> its bytes there, block by block."""

_ONE_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")
_is_not_modified = StaticFiles().is_not_modified


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


def answer_file(
    request: Request, path: Path, stat_result: os.stat_result, media_type: str, cache_control: str
) -> Response:
    """A file, the part of it that is wanted, or a 304. Raises RangeNotSatisfiableError."""
    whole = FileResponse(
        path, media_type=media_type, stat_result=stat_result, headers={"Cache-Control": cache_control}
    )
    if _is_not_modified(whole.headers, request.headers):
        return NotModifiedResponse(whole.headers)
    if _wanted_part(request, whole, stat_result.st_size) is None:
        # FileResponse would refuse what is not understood, and send parts for a HEAD.
        headers = request.scope["headers"]
        request.scope["headers"] = [(name, value) for name, value in headers if name != b"range"]
    return whole


def answer_bytes(request: Request, content: bytes, media_type: str, cache_control: str) -> Response:
    """The same for what is in memory."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Cache-Control": cache_control, "ETag": etag, "Accept-Ranges": "bytes"}
    whole = Response(content, media_type=media_type, headers=headers)
    if _is_not_modified(whole.headers, request.headers):
        return NotModifiedResponse(whole.headers)
    part = _wanted_part(request, whole, len(content))
    if part is None:
        return whole
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(content)}"
    return Response(content[part.start : part.stop], 206, media_type=media_type, headers=headers)


async def answer_blocks(
    request: Request, media: RemoteMediaFile, open_at: OpenAt, cache_control: str
) -> Response:
    """The same for a file that is read from elsewhere, block by block. Raises what `open_at` raises."""
    headers = {"Cache-Control": cache_control, "ETag": media.etag, "Accept-Ranges": "bytes"}
    headers["Content-Length"] = str(media.size_bytes)
    whole = Response(headers=headers, media_type=media.content_type)
    if _is_not_modified(whole.headers, request.headers):
        return NotModifiedResponse(whole.headers)
    if request.method == "HEAD":
        return whole
    part = _wanted_part(request, whole, media.size_bytes)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{media.size_bytes}"
        headers["Content-Length"] = str(len(part))
    blocks = await open_at(media, range(media.size_bytes) if part is None else part)
    status = 200 if part is None else 206
    return StreamingResponse(blocks, status, media_type=media.content_type, headers=headers)


def _wanted_part(request: Request, whole: Response, size_bytes: int) -> range | None:
    """The positions that a client wants; None: all, or its part is of something else (section 13.1.5)."""
    condition = request.headers.get("if-range")
    known = (None, whole.headers["etag"], whole.headers.get("last-modified"))
    if request.method != "GET" or condition not in known:
        return None
    return wanted_bytes(request.headers.get("range"), size_bytes)
