"""How a job ends badly, and what becomes of its file: for indexing and for fetching alike."""

from __future__ import annotations

import logging
import os
import socket

from indexer.errors import IndexBusyError, IndexStorageError, JobNotFoundError, LeaseLostError
from indexer.store.job import FailureReason, Job
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from service.ingest.media_store import MediaStore, discard_upload

logger = logging.getLogger("xclip_search.worker")

UNWRITABLE = (IndexBusyError, IndexStorageError)
"""Errors of the catalog that pass by themselves, or when somebody makes room."""

UNWRITABLE_PAUSE_SECONDS = 2.0
"""Pause after the catalog could not be written to: a full disk, or another process that writes for long."""

NO_ROOM_REASON = "the server has no room left to store the video"


def worker_name() -> str:
    """What this process is called where it holds jobs."""
    return f"{socket.gethostname()}:{os.getpid()}"


class JobEndings:
    """Ends leased jobs that come to no good."""

    def __init__(self, queue: JobQueue, media_store: MediaStore, catalog: Catalog) -> None:
        self._queue = queue
        self._store = media_store
        self._catalog = catalog

    def fail(self, job: Job, reason: str, failure: FailureReason) -> None:
        """The job has failed, unless it is another worker's by now; its upload goes.

        Args:
            job: a leased job.
            reason: a sentence for the client.
            failure: the same in one of few classes.
        """
        logger.info("job %s failed: %s", job.id, reason)
        try:
            self._queue.fail(job.id, reason, failure, attempt=job.attempts)
        except (LeaseLostError, JobNotFoundError):
            self.discard_if_ended(job)
            return
        self.discard(job)

    def discard_if_ended(self, job: Job) -> None:
        """Delete the upload of a job that was cancelled; not of one that another worker has now."""
        try:
            if self._queue.get(job.id).ended:
                self.discard(job)
        except JobNotFoundError:
            self.discard(job)

    def discard(self, job: Job) -> None:
        """Delete the upload of a job, unless it is a video's file by now."""
        discard_upload(job, self._store, self._catalog)
