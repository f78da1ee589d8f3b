"""POST /videos; and the jobs that it makes: GET /jobs, GET and DELETE /jobs/{id}."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import sleep, to_thread
from fastapi import APIRouter, Query, Request, Response

from indexer.errors import IndexFullError, QueueFullError
from indexer.ingest.video_files import title_of_file
from indexer.store.job import Admission, Job, NewJob
from indexer.store.transcripts import MAX_TRACKS, Transcript
from service.auth.access import READ, WRITE
from service.errors import (
    BodyTooLargeError,
    IdTakenError,
    InvalidRequestError,
    JobNotFoundError,
    OverloadedError,
    ReadOnlyIndexError,
    StorageFullError,
    TranscriptRejectedError,
    UnsupportedContentTypeError,
    UriNotAllowedError,
    VideoRejectedError,
)
from service.http.middleware import WITHOUT_DEADLINE
from service.http.openapi import problems, schema_of
from service.ingest.media_store import FULL_DISK_ERRORS, discard_upload, resolve_uri, unfinished_download
from service.ingest.sent_transcripts import SentTranscripts
from service.ingest.upload import FORM, media_type_of, receive_json, receive_upload, title_from_filename
from service.schemas.fields import MAX_TITLE_CHARACTERS, METADATA_SCHEMA, TITLE_PATTERN, job_url, video_url
from service.schemas.videos import (
    AddVideoAnswer,
    AddVideoParameters,
    AddVideoRequest,
    JobAnswer,
    JobPage,
    ListJobsParameters,
    VideoReference,
)
from service.state import Drain, ReadyService, Service, get_service

router = APIRouter(tags=["videos"], dependencies=[WRITE, WITHOUT_DEADLINE])
jobs_router = APIRouter(prefix="/jobs", tags=["jobs"], dependencies=[READ])

FIRST_POLL_SECONDS, SLOWEST_POLL_SECONDS = 0.02, 0.25
"""Pauses between two polls of a job that a client waits for."""

WEB_TURNED_OFF = (
    "This server does not fetch videos from the web. Upload the file instead; "
    "or start the server with XCLIP_URL_INGEST=true."
)

QUEUE_RETRY_SECONDS = 10
"""In Retry-After when the queue is full. Encoding a video takes seconds."""

JSON = "application/json"

_FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary", "minLength": 1},
        "title": {
            "type": "string",
            "maxLength": MAX_TITLE_CHARACTERS,
            "pattern": f"^$|{TITLE_PATTERN}",
            "description": "By default the file's name without its extension.",
        },
        "metadata": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": METADATA_SCHEMA,
            "description": "A JSON object, as text.",
        },
        "transcript": {
            "type": "array",
            "maxItems": MAX_TRACKS,
            "items": {"type": "string", "format": "binary"},
            "description": "Files in SubRip or WebVTT, each a part of this name. The name of a file says its"
            " track: en of movie.en.srt, und (not known) of movie.srt.",
        },
    },
}


@router.post(
    "/videos",
    status_code=202,
    responses={
        **problems(
            UriNotAllowedError,
            IdTakenError,
            TranscriptRejectedError,
            VideoRejectedError,
            OverloadedError,
            ReadOnlyIndexError,
            StorageFullError,
        ),
        200: {"model": AddVideoAnswer, "description": "The same bytes are in the index already"},
        201: {"model": AddVideoAnswer, "description": "With ?wait=true: the video is searchable"},
        202: {"description": "Accepted: poll the Location for the job's state"},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: schema_of(AddVideoRequest),
                FORM: {"schema": _FORM_SCHEMA},
            },
        },
    },
)
async def add_video(
    request: Request,
    response: Response,
    parameters: Annotated[AddVideoParameters, Query()],
    service: Service,
) -> AddVideoAnswer:
    """Add a video: upload it, or name one that lies on the server inside an allowed folder or on the web."""
    content_type = media_type_of(request)
    if content_type not in (FORM, JSON):
        raise UnsupportedContentTypeError(
            f"Send the file as a form with the header Content-Type: {FORM}, "
            f"or a uri as JSON with Content-Type: {JSON}."
        )
    # Before the body: gigabytes that would be refused in the end need not be sent.
    if service.catalog.is_read_only:
        raise ReadOnlyIndexError()
    has_capacity = partial(service.job_queue.has_capacity, max_queued=service.settings.max_queued_jobs)
    if not await to_thread.run_sync(has_capacity):
        raise _queue_full_problem()
    transcripts: list[Transcript] = []
    if content_type == FORM:
        new, transcripts = await _from_form(request, service)
        # The upload took its time: by now another generation of the index may be the current one.
        service = await get_service(request)
    else:
        new = await _from_json(request, service)
    admission = await to_thread.run_sync(_admit, service, new, transcripts, limiter=service.ingest_limiter)
    job = admission.job
    if job is None:
        response.status_code = 200
    elif parameters.wait:
        job = await _wait(service, job, request.app.state.drain)
        if job.state == "failed":
            raise VideoRejectedError(job.reason, job=to_job_answer(job).model_dump(mode="json"))
        if job.state == "done":
            response.status_code = 201
    video_id = admission.video_id if job is None else job.video_id
    location = video_url(video_id) if job is None or response.status_code == 201 else job_url(job.id)
    response.headers["Location"] = request.scope.get("root_path", "") + location
    answer = None if job is None else to_job_answer(job)
    return AddVideoAnswer(job=answer, video=VideoReference(id=video_id))


async def _from_form(request: Request, service: ReadyService) -> tuple[NewJob, list[Transcript]]:
    """A job for the upload, and what was sent with it. Its file is ours from now on, until a job has it."""
    path = service.media_store.new_upload_path()
    upload = await receive_upload(request, path, service.settings.upload_limit_bytes, service.ingest_limiter)
    new = NewJob(
        source_path=str(path),
        title=upload.title,
        metadata=upload.metadata,
        content_sha256=upload.content_sha256,
        delete_source=True,
    )
    return new, upload.transcripts


async def _from_json(request: Request, service: ReadyService) -> NewJob:
    body = await receive_json(request, AddVideoRequest, service.settings.body_limit_bytes)
    if body.uri[:8].lower().startswith(("http:", "https:")):
        return _from_web_address(service, body)
    return await to_thread.run_sync(_from_local_uri, service, body, limiter=service.ingest_limiter)


def _from_local_uri(service: ReadyService, body: AddVideoRequest) -> NewJob:
    path = resolve_uri(body.uri, service.settings.allowed_roots)
    if path is None:
        raise UriNotAllowedError()
    return NewJob(
        source_path=_as_text(path),
        video_id=body.id,
        title=body.title or title_of_file(path),
        metadata=body.metadata,
        uri=path.as_uri(),
        content_sha256=_hash_file(path, service.settings.upload_limit_bytes),
    )


def _as_text(path: Path) -> str:
    """A path as a job holds it: where its bytes are not UTF-8, as the address that percent-encodes them."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.as_uri()
    return str(path)


def _from_web_address(service: ReadyService, body: AddVideoRequest) -> NewJob:
    """A job that fetches the file. Its host name is resolved by the worker, just before it connects."""
    settings = service.settings
    if not settings.url_ingest:
        raise UriNotAllowedError(WEB_TURNED_OFF)
    from service.ingest.web.policy import AllowedHosts, DownloadError, parse_web_address

    try:
        allowed = AllowedHosts.parse(settings.url_allowed_hosts)
        address = parse_web_address(body.uri, settings.url_ports, allowed)
    except DownloadError as error:
        raise UriNotAllowedError(f"{error.reason[0].upper()}{error.reason[1:]}.") from None
    if body.id is not None:
        message = "A video from the web gets an id of the server's. Leave the id out."
        raise InvalidRequestError(f"id: {message}", errors=[{"field": "id", "message": message}])
    return NewJob(
        source_path=str(service.media_store.new_upload_path()),
        title=body.title or title_from_filename(address.url.path) or address.host,
        metadata=body.metadata,
        uri=str(address.url),
        delete_source=True,
    )


def _admit(service: ReadyService, new: NewJob, transcripts: Sequence[Transcript]) -> Admission:
    """A new job, or what is there already; then an upload is deleted, as it is after an error."""
    is_new = False
    try:
        admission = service.job_queue.admit(new, max_queued=service.settings.max_queued_jobs)
        is_new = admission.is_new
        sent = SentTranscripts(service.media_store, service.catalog)
        sent.hand_over(admission, transcripts)
        return admission
    except QueueFullError:
        raise _queue_full_problem() from None
    except (IndexFullError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL_DISK_ERRORS:
            raise
        raise StorageFullError() from error
    finally:
        if new.delete_source and not is_new:
            Path(new.source_path).unlink(missing_ok=True)


def _queue_full_problem() -> OverloadedError:
    problem = OverloadedError(
        "Too many videos wait to be read. Try again after the seconds in the Retry-After header."
    )
    problem.headers["Retry-After"] = str(QUEUE_RETRY_SECONDS)
    return problem


def _hash_file(path: Path, limit_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            if path.stat().st_size > limit_bytes:
                raise BodyTooLargeError(f"The file is larger than {limit_bytes} bytes.")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise UriNotAllowedError() from None


async def _wait(service: ReadyService, job: Job, drain: Drain) -> Job:
    """The job when it has ended, or as it is when the waiting time is over or the server is ending."""
    deadline = time.monotonic() + service.settings.wait_limit_seconds
    pause = FIRST_POLL_SECONDS
    while not job.ended and time.monotonic() < deadline and not drain.begun:
        await sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(1.5 * pause, SLOWEST_POLL_SECONDS)
        job = await to_thread.run_sync(partial(service.job_queue.get, job.id))
    return job


# Jobs


@jobs_router.get("")
async def list_jobs(parameters: Annotated[ListJobsParameters, Query()], service: Service) -> JobPage:
    """Ingest requests, newest first."""

    def read() -> list[Job]:
        return service.job_queue.list_jobs(
            parameters.limit + 1, state=parameters.state, after=parameters.after
        )

    jobs = await to_thread.run_sync(read)
    page = jobs[: parameters.limit]
    return JobPage(
        jobs=[to_job_answer(job) for job in page], next=page[-1].number if len(jobs) > len(page) else None
    )


@jobs_router.get("/{job_id}", responses=problems(JobNotFoundError))
async def get_job(job_id: str, service: Service) -> JobAnswer:
    """One ingest request: whether it waits, runs, is done or has failed, and why."""
    return to_job_answer(await to_thread.run_sync(service.job_queue.get, job_id))


@jobs_router.delete(
    "/{job_id}",
    dependencies=[WRITE],
    responses=problems(JobNotFoundError, OverloadedError, ReadOnlyIndexError, StorageFullError),
)
async def cancel_job(job_id: str, service: Service) -> JobAnswer:
    """Cancel a job that waits or runs: it becomes failed. A job that has ended stays as it is."""
    return to_job_answer(await to_thread.run_sync(_cancel, service, job_id))


def _cancel(service: ReadyService, job_id: str) -> Job:
    job = service.job_queue.cancel(job_id)
    # A worker that reads it just now deletes the file itself. Where the job waited, no worker does.
    if job.state == "failed" and job.worker_name is None:
        discard_upload(job, service.media_store, service.catalog)
    return job


def to_job_answer(job: Job) -> JobAnswer:
    """`job` as JSON, without the path of its file."""
    return JobAnswer(
        id=job.id,
        state=job.state,
        video_id=job.video_id,
        title=job.title,
        reason=job.reason,
        attempts=job.attempts,
        received_bytes=_received_bytes(job),
        created_at=datetime.fromtimestamp(job.created_at, UTC),
        started_at=None if job.started_at is None else datetime.fromtimestamp(job.started_at, UTC),
        finished_at=None if job.finished_at is None else datetime.fromtimestamp(job.finished_at, UTC),
    )


def _received_bytes(job: Job) -> int | None:
    if job.state != "running" or not job.is_unfetched:
        return None
    try:
        return unfinished_download(job.source_path, job.attempts).stat().st_size
    except OSError:
        return 0
