"""POST /videos."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import sleep, to_thread
from fastapi import APIRouter, Query, Request, Response

from indexer.job_queue import Job
from service.addresses import job_url, video_url
from service.errors import (
    BodyTooLargeError,
    IdTakenError,
    StorageFullError,
    UnsupportedContentTypeError,
    UriNotAllowedError,
    VideoRejectedError,
)
from service.media_store import resolve_uri
from service.ready_service import ReadyService, Service
from service.request_body import describe_body, media_type, read_json
from service.routes.descriptions import BODY_ERRORS, problems
from service.routes.jobs import to_job_answer
from service.schemas import (
    MAX_TITLE_CHARACTERS,
    AddVideoAnswer,
    AddVideoParameters,
    AddVideoRequest,
    VideoReference,
)
from service.upload import Upload, receive_upload

router = APIRouter(tags=["videos"])

FIRST_LOOK_SECONDS, SLOWEST_LOOK_SECONDS = 0.02, 0.25
"""Pauses between two looks at a job that a client waits for."""

_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "title": {
            "type": "string",
            "maxLength": MAX_TITLE_CHARACTERS,
            "description": "The file's name without its ending where there is none.",
        },
        "metadata": {"type": "string", "description": "A JSON object, as text."},
    },
}


@router.post(
    "/videos",
    status_code=202,
    responses={
        **problems(*BODY_ERRORS, UriNotAllowedError, IdTakenError, VideoRejectedError, StorageFullError),
        200: {"model": AddVideoAnswer, "description": "The same bytes are in the index already"},
        201: {"model": AddVideoAnswer, "description": "With ?wait=true: the video can be found"},
        202: {"description": "Accepted: GET the Location to see how it goes"},
    },
    openapi_extra=describe_body(AddVideoRequest, _FORM),
)
async def add_video(
    request: Request,
    response: Response,
    parameters: Annotated[AddVideoParameters, Query()],
    service: Service,
) -> AddVideoAnswer:
    """Add a video: upload it, or name one that lies on the server inside an allowed folder."""
    kind = media_type(request)
    if kind == "multipart/form-data":
        path = service.media_store.new_upload_path()
        upload = await receive_upload(request, path, service.settings.upload_limit_bytes)
        found = await to_thread.run_sync(_accept_upload, service, upload)
    elif kind == "application/json":
        body = await read_json(request, AddVideoRequest, service.settings.body_limit_bytes)
        found = await to_thread.run_sync(_accept_uri, service, body)
    else:
        raise UnsupportedContentTypeError(
            "Send the file as a form with the header Content-Type: multipart/form-data, "
            "or a uri as JSON with Content-Type: application/json."
        )
    root_path = request.scope.get("root_path", "")
    if isinstance(found, str):
        response.status_code = 200
        response.headers["Location"] = root_path + video_url(found)
        return AddVideoAnswer(job=None, video=VideoReference(id=found))
    job = await _wait(service, found) if parameters.wait else found
    if job.state == "failed" and parameters.wait:
        raise VideoRejectedError(job.reason, job=to_job_answer(job).model_dump(mode="json"))
    if job.state == "done" and parameters.wait:
        response.status_code = 201
        response.headers["Location"] = root_path + video_url(job.video_id)
    else:
        response.headers["Location"] = root_path + job_url(job.id)
    return AddVideoAnswer(job=to_job_answer(job), video=VideoReference(id=job.video_id))


def _accept_upload(service: ReadyService, upload: Upload) -> Job | str:
    """A job for the upload, or the id of the video that has the same bytes. The file is ours until queued."""
    try:
        known = _find_same_bytes(service, upload.content_sha256)
        if known is None:
            return service.job_queue.enqueue(
                None,
                str(upload.path),
                title=upload.title,
                metadata=upload.metadata,
                content_sha256=upload.content_sha256,
                delete_source=True,
            )
    except BaseException:
        upload.path.unlink(missing_ok=True)
        raise
    upload.path.unlink(missing_ok=True)
    return known


def _accept_uri(service: ReadyService, body: AddVideoRequest) -> Job | str:
    path = resolve_uri(body.uri, service.settings.allowed_roots)
    if path is None:
        raise UriNotAllowedError()
    content_sha256 = _hash_file(path, service.settings.upload_limit_bytes)
    known = _find_same_bytes(service, content_sha256)
    if known is not None:
        return known
    return service.job_queue.enqueue(
        body.id,
        str(path),
        title=body.title or path.stem,
        metadata=body.metadata,
        uri=path.as_uri(),
        content_sha256=content_sha256,
    )


def _find_same_bytes(service: ReadyService, content_sha256: str) -> Job | str | None:
    record = service.catalog.find_by_sha256(content_sha256)
    return service.job_queue.find_open(content_sha256) if record is None else record.id


def _hash_file(path: Path, limit_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            if path.stat().st_size > limit_bytes:
                raise BodyTooLargeError(f"The file is larger than {limit_bytes} bytes.")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise UriNotAllowedError() from None


async def _wait(service: ReadyService, job: Job) -> Job:
    """The job when it has ended, or as it is when the waiting time is over."""
    deadline = time.monotonic() + service.settings.wait_limit_seconds
    pause = FIRST_LOOK_SECONDS
    while not job.ended and time.monotonic() < deadline:
        await sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(1.5 * pause, SLOWEST_LOOK_SECONDS)
        job = await to_thread.run_sync(partial(service.job_queue.get, job.id))
    return job
