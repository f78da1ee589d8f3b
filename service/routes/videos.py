"""GET /videos, GET, PATCH and DELETE /videos/{id}."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request

from indexer.store.records import Sort, VideoRecord
from indexer.store.store import Store
from service.auth.access import READ, WRITE
from service.errors import (
    FilterTooCostlyError,
    InvalidCursorError,
    InvalidRequestError,
    OverloadedError,
    ReadOnlyIndexError,
    StorageFullError,
    VideoNotFoundError,
)
from service.http.middleware import WHILE_CONNECTED
from service.http.openapi import problems, schema_of
from service.schemas.fields import check_metadata, media_url, preview_url, thumbnail_url, to_datetime
from service.schemas.videos import (
    DeleteVideoParameters,
    ListVideosParameters,
    PatchVideoRequest,
    VideoAnswer,
    VideoPage,
)
from service.state import ReadyService, Service

MERGE_PATCH = "application/merge-patch+json"

_NUMBERS_OF_ONE = 1 << 40
"""Cursors of one generation of the index. JavaScript's numbers, exact up to 2^53, hold 8,192 generations."""

router = APIRouter(prefix="/videos", tags=["videos"], dependencies=[READ])


@router.get(
    "",
    dependencies=[WHILE_CONNECTED],
    responses=problems(InvalidCursorError, FilterTooCostlyError, OverloadedError),
)
async def list_videos(
    request: Request, parameters: Annotated[ListVideosParameters, Query()], service: Service
) -> VideoPage:
    """Videos of the index, newest first. Videos added or deleted in between shift no page."""
    after, recorded_at = _from_cursor(service.catalog, parameters)
    read = partial(
        service.catalog.list_videos,
        parameters.limit + 1,
        after,
        chosen=parameters.filter,
        sort=parameters.sort,
        after_recorded_at=recorded_at,
    )
    if parameters.filter is None:
        records = await to_thread.run_sync(read)
    else:  # May read all videos: as much work as a search.
        records = await service.search_limiter.run(read)
    page = records[: parameters.limit]
    root_path = request.scope.get("root_path", "")
    playable = await to_thread.run_sync(service.playability.of_ids, [record.id for record in page])
    return VideoPage(
        videos=[to_video_answer(record, playable[record.id], root_path) for record in page],
        next=_to_cursor(service.catalog, page[-1], parameters.sort) if len(records) > len(page) else None,
    )


@router.get("/{video_id}", responses=problems(VideoNotFoundError))
async def get_video(request: Request, video_id: str, service: Service) -> VideoAnswer:
    """One video of the index."""
    record = await to_thread.run_sync(service.catalog.get_video, video_id)
    playable = await to_thread.run_sync(service.playability.of_record, record)
    return to_video_answer(record, playable, request.scope.get("root_path", ""))


@router.patch(
    "/{video_id}",
    dependencies=[WRITE],
    responses=problems(VideoNotFoundError, OverloadedError, ReadOnlyIndexError, StorageFullError),
    openapi_extra={"requestBody": {"content": {MERGE_PATCH: schema_of(PatchVideoRequest)}}},
)
async def patch_video(
    request: Request, video_id: str, body: PatchVideoRequest, service: Service
) -> VideoAnswer:
    """Change title, metadata and `recorded_at` by a merge patch (RFC 7396); answers the video as it then
    is."""
    record = await to_thread.run_sync(_patch, service, video_id, body.model_dump(exclude_unset=True))
    playable = await to_thread.run_sync(service.playability.of_record, record)
    return to_video_answer(record, playable, request.scope.get("root_path", ""))


def _patch(service: ReadyService, video_id: str, patch: dict[str, Any]) -> VideoRecord:
    try:
        return service.catalog.patch_video(video_id, patch, check=check_metadata)
    except ValueError as error:
        # What came together is too large or too deep, though the patch itself may be small.
        raise InvalidRequestError(
            f"metadata: {error}", errors=[{"field": "metadata", "message": str(error)}]
        ) from None


@router.delete(
    "/{video_id}",
    status_code=204,
    dependencies=[WRITE],
    responses=problems(VideoNotFoundError, OverloadedError, ReadOnlyIndexError, StorageFullError),
)
async def delete_video(
    video_id: str, parameters: Annotated[DeleteVideoParameters, Query()], service: Service
) -> None:
    """Remove a video from the index; its file too if it was uploaded. No later search finds it."""
    await to_thread.run_sync(_delete, service, video_id, parameters.keep_out)


def _delete(service: ReadyService, video_id: str, keep_out: bool) -> None:
    # The catalog first: an orphaned file is deleted later, a record without a file would be wrong for good.
    service.catalog.delete_video(video_id, keep_out=keep_out)
    service.media_store.remove(video_id)
    service.thumbnails.forget(video_id)
    service.previews.forget(video_id)


def to_video_answer(record: VideoRecord, playable: bool, root_path: str) -> VideoAnswer:
    """`record` as JSON; `root_path` comes before every address of ours."""
    return VideoAnswer(
        id=record.id,
        title=record.title,
        uri=record.uri,
        metadata=dict(record.metadata),
        duration_seconds=record.duration_seconds,
        media_start_seconds=record.media_start_seconds,
        width=record.width,
        height=record.height,
        frame_rate=record.frame_rate,
        codec=record.codec,
        size_bytes=record.size_bytes,
        content_sha256=record.content_sha256,
        partial=record.partial,
        fraction_read=record.fraction_read,
        added_at=datetime.fromtimestamp(record.added_at, UTC),
        recorded_at=to_datetime(record.recorded_at),
        missing_since=to_datetime(record.missing_since),
        thumbnail_url=root_path + thumbnail_url(record.id, 0.0),
        media_url=root_path + media_url(record.id),
        preview_url=root_path + preview_url(record.id, 0.0),
        playable=playable,
    )


def _to_cursor(catalog: Store[Any], last: VideoRecord, sort: Sort) -> int | str:
    """`next` of a list: the change that added its last video, and the generation in which it did so; and
    where that orders the list, when it was recorded."""
    number = (catalog.generation - 1) * _NUMBERS_OF_ONE + last.sequence
    if not sort.endswith("recorded_at"):
        return number
    return f"{number}~{'' if last.recorded_at is None else repr(last.recorded_at)}"


def _from_cursor(catalog: Store[Any], parameters: ListVideosParameters) -> tuple[int | None, float | None]:
    """The number of the change, and when the video was recorded.

    Raises:
        InvalidCursorError: the cursor is of another order, or of another generation: the same numbers are of
            other videos there.
    """
    if parameters.after is None:
        return None, None
    number, mark, time = parameters.after.partition("~")
    if bool(mark) != parameters.sort.endswith("recorded_at"):
        raise InvalidCursorError("The page before had another order: begin without `after`.")
    generation, sequence = divmod(int(number), _NUMBERS_OF_ONE)
    if generation + 1 != catalog.generation:
        raise InvalidCursorError("The index was encoded again since the page before: begin without `after`.")
    try:
        return sequence, float(time) if time else None
    except ValueError:
        raise InvalidCursorError from None
