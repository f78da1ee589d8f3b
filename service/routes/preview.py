"""GET /videos/{id}/preview."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.auth.access import READ
from service.derived_media import PREVIEW_CONTENT_TYPE
from service.errors import (
    MediaNotFoundError,
    OverloadedError,
    RangeNotSatisfiableError,
    VideoNotFoundError,
)
from service.http.files import not_modified, wanted_part
from service.http.openapi import problems
from service.routes.media import find_media
from service.schemas import PreviewParameters
from service.state import Service

router = APIRouter(prefix="/videos/{video_id}", tags=["videos"], dependencies=[READ])

_CONTENT: dict[str, Any] = {PREVIEW_CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}


@router.get(
    "/preview",
    response_class=Response,
    responses={
        **problems(VideoNotFoundError, MediaNotFoundError, RangeNotSatisfiableError, OverloadedError),
        200: {"description": "A silent MP4 of a few seconds", "content": _CONTENT},
        206: {"description": "The part that the Range header asked for", "content": _CONTENT},
        304: {"description": "It is the one that If-None-Match names"},
    },
)
async def get_preview(
    request: Request, video_id: str, parameters: Annotated[PreviewParameters, Query()], service: Service
) -> Response:
    """A few seconds from a moment on, in a form that every browser plays. Takes a Range header."""
    media = await to_thread.run_sync(find_media, service, video_id)
    clip = await service.previews.get(video_id, media, parameters.time_seconds)
    etag = f'"{hashlib.sha256(clip).hexdigest()[:32]}"'
    headers = {"cache-control": "private, max-age=86400", "etag": etag, "accept-ranges": "bytes"}
    if (known := not_modified(request, headers)) is not None:
        return known
    wanted = wanted_part(request, headers, len(clip))
    if wanted is None:
        return Response(clip, media_type=PREVIEW_CONTENT_TYPE, headers=headers)
    headers["content-range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{len(clip)}"
    part = clip[wanted.start : wanted.stop]
    return Response(part, 206, media_type=PREVIEW_CONTENT_TYPE, headers=headers)


router.add_api_route("/preview", get_preview, methods=["HEAD"], include_in_schema=False)
