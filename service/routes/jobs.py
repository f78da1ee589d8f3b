"""GET /jobs, GET and DELETE /jobs/{id}."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query

from indexer.store.job import Job
from service.auth.access import READ, WRITE
from service.errors import JobNotFoundError, OverloadedError, StorageFullError
from service.http.openapi import problems
from service.ingest.media_store import discard_upload, unfinished_download
from service.schemas.videos import JobAnswer, JobPage, ListJobsParameters
from service.state import ReadyService, Service

router = APIRouter(prefix="/jobs", tags=["jobs"], dependencies=[READ])


@router.get("")
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


@router.get("/{job_id}", responses=problems(JobNotFoundError))
async def get_job(job_id: str, service: Service) -> JobAnswer:
    """One ingest request: whether it waits, runs, is done or has failed, and why."""
    return to_job_answer(await to_thread.run_sync(service.job_queue.get, job_id))


@router.delete(
    "/{job_id}",
    dependencies=[WRITE],
    responses=problems(JobNotFoundError, OverloadedError, StorageFullError),
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
