"""The outcomes of jobs that fail, and what becomes of their files: the same for encoding and for fetching."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from indexer.errors import (
    DecoderDiedError,
    DecodeTimeoutError,
    DuplicateIdError,
    IndexBusyError,
    IndexStorageError,
    IndexSupersededError,
    JobNotFoundError,
    LeaseLostError,
    MediaError,
)
from indexer.store.job import FailureReason, Job
from indexer.store.store import Jobs, Store
from service.ingest.media_store import FULL_DISK_ERRORS, MediaStore, discard_upload

logger = logging.getLogger("xclip_search.worker")

UNWRITABLE = (IndexBusyError, IndexStorageError)
"""Transient errors of the catalog: it is busy, or the disk is full until space is freed."""

UNWRITABLE_PAUSE_SECONDS = 2.0
"""Pause after the catalog could not be written to: a full disk, or another process that writes for long."""

FULL_DISK_REASON = "the server's disk is full: the video cannot be stored"
ID_TAKEN_REASON = "another video has the id that was asked for"


def worker_name() -> str:
    """The name under which this process leases jobs."""
    return f"{socket.gethostname()}:{os.getpid()}"


class JobOutcomes:
    """Records how leased jobs fail, and deletes their files."""

    def __init__(self, queue: Jobs[Any], media_store: MediaStore, catalog: Store[Any]) -> None:
        self._queue = queue
        self._store = media_store
        self._catalog = catalog

    @contextlib.contextmanager
    def recorded(
        self, job: Job, internal_reason: str, failure: FailureReason | None = None
    ) -> Iterator[None]:
        """Let an error of the work inside become the outcome of the job.

        Args:
            job: a leased job. Where it was cancelled or leased by another worker, it is left as it is.
            internal_reason: what the client reads where the fault is ours.
            failure: the class of all errors of the file and of ours; None where it follows from the error.

        Raises:
            IndexBusyError, IndexStorageError, IndexSupersededError: nothing is wrong with the file.
        """
        try:
            yield
        except (LeaseLostError, JobNotFoundError):
            logger.warning("job %s was cancelled, or leased by another worker", job.id)
            self.discard_if_ended(job)
        except MediaError as error:
            is_decoder = isinstance(error, DecoderDiedError | DecodeTimeoutError)
            self.fail(job, error.reason, failure or FailureReason("decoder" if is_decoder else "media"))
        except DuplicateIdError:
            self.fail(job, ID_TAKEN_REASON, FailureReason.ID_TAKEN)
        except (*UNWRITABLE, IndexSupersededError):
            raise
        except Exception as error:
            logger.error("job %s failed", job.id, exc_info=error)
            if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS:
                self.fail(job, FULL_DISK_REASON, FailureReason.NO_ROOM)
            else:
                self.fail(job, internal_reason, failure or FailureReason.INTERNAL)

    def fail(self, job: Job, reason: str, failure: FailureReason) -> None:
        """The job has failed, unless another worker has it by now; its upload is deleted.

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
