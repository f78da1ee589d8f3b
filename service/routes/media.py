"""The file of a video, pictures of its moments, and short clips of it that every browser plays."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, RedirectResponse, Response

from service.auth.access import READ
from service.derived_media import PREVIEW_CONTENT_TYPE
from service.errors import (
    MediaNotFoundError,
    OverloadedError,
    RangeNotSatisfiableError,
    VideoNotFoundError,
)
from service.http.files import answer_blocks, answer_bytes, answer_file
from service.http.openapi import problems
from service.ingest.media_store import MediaFile
from service.remote_media import RemoteMediaFile
from service.schemas.videos import PreviewParameters, ThumbnailParameters
from service.state import ReadyService, Service

router = APIRouter(prefix="/videos/{video_id}", tags=["videos"], dependencies=[READ])

_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_CLIP: dict[str, Any] = {PREVIEW_CONTENT_TYPE: _BINARY}


@router.get(
    "/media",
    response_class=FileResponse,
    responses={
        **problems(VideoNotFoundError, MediaNotFoundError, RangeNotSatisfiableError),
        200: {"description": "The whole file", "content": {"video/*": _BINARY}},
        206: {"description": "The part that the Range header asked for", "content": {"video/*": _BINARY}},
        304: {"description": "It is the one that If-None-Match or If-Modified-Since names"},
        307: {"description": "Where the file is, of a video that was indexed from an address"},
    },
)
async def get_media(request: Request, video_id: str, service: Service) -> Response:
    """The video's file. Takes a Range header with one range, so that a player can jump."""
    media = await to_thread.run_sync(_find_media, service, video_id)
    if isinstance(media, RemoteMediaFile):
        if (address := await service.remote_media.address_of(media)) is not None:
            return RedirectResponse(address, 307, headers={"Cache-Control": "private, max-age=300"})
        return await answer_blocks(request, media, service.remote_media.open, "private, max-age=3600")
    return answer_file(request, media.path, media.stat_result, media.content_type, "private, max-age=3600")


router.add_api_route("/media", get_media, methods=["HEAD"], include_in_schema=False)


@router.get(
    "/thumbnail",
    response_class=Response,
    responses={
        **problems(VideoNotFoundError, MediaNotFoundError, OverloadedError),
        200: {"description": "A JPEG picture", "content": {"image/jpeg": _BINARY}},
    },
)
async def get_thumbnail(
    video_id: str, parameters: Annotated[ThumbnailParameters, Query()], service: Service
) -> Response:
    """The picture that the video shows at a moment; the last one for any moment after its end."""
    media = await _local_media(service, video_id)
    picture = await service.thumbnails.get(video_id, media, parameters.time_seconds, parameters.width)
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


@router.get(
    "/preview",
    response_class=Response,
    responses={
        **problems(VideoNotFoundError, MediaNotFoundError, RangeNotSatisfiableError, OverloadedError),
        200: {"description": "A silent MP4 of a few seconds", "content": _CLIP},
        206: {"description": "The part that the Range header asked for", "content": _CLIP},
        304: {"description": "It is the one that If-None-Match names"},
    },
)
async def get_preview(
    request: Request, video_id: str, parameters: Annotated[PreviewParameters, Query()], service: Service
) -> Response:
    """A few seconds from a moment on, in a form that every browser plays. Takes a Range header."""
    media = await _local_media(service, video_id)
    clip = await service.previews.get(video_id, media, parameters.time_seconds)
    return answer_bytes(request, clip, PREVIEW_CONTENT_TYPE, "private, max-age=86400")


router.add_api_route("/preview", get_preview, methods=["HEAD"], include_in_schema=False)


async def _local_media(service: ReadyService, video_id: str) -> MediaFile:
    """The file of a video on this machine, fetched where it lies at an address. Raises as `_find_media`."""
    media = await to_thread.run_sync(_find_media, service, video_id)
    return await service.remote_media.copy(media) if isinstance(media, RemoteMediaFile) else media


def _find_media(service: ReadyService, video_id: str) -> MediaFile | RemoteMediaFile:
    """The file of a video that the index knows. Raises VideoNotFoundError, MediaNotFoundError."""
    record = service.catalog.get_video(video_id)
    media = service.media_store.locate(record) or service.remote_media.find(service.catalog, record)
    if media is None:
        raise MediaNotFoundError()
    return media
