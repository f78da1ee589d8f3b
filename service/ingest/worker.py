"""The worker: takes jobs, encodes their videos, stores them, records the outcome.

It runs in a process of its own (`service.ingest.worker_process`).

Files that are still on the web are fetched in other threads (`service.ingest.web`), so that a slow server far
away holds up no video that is here.

A file that hangs or kills its decoder costs a decoding process, never the worker; a worker that dies costs
its lease, and the job goes to the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from pathlib import Path
from typing import Any

from indexer.errors import (
    DecoderDiedError,
    DecodeTimeoutError,
    DuplicateIdError,
    IndexBusyError,
    IndexerError,
    IndexStorageError,
    IndexSupersededError,
    JobNotFoundError,
    KeptOutError,
    LeaseLostError,
    MediaError,
)
from indexer.ingest.video_files import local_path
from indexer.store.job import FailureReason, Job
from indexer.store.records import NewVideo
from indexer.store.store import Jobs, Store
from service.errors import is_full_memory
from service.ingest.media_store import FULL_DISK_ERRORS, MediaStore, delete_orphans, discard_upload
from service.ingest.sent_transcripts import SentTranscripts
from service.settings import WorkerSettings

logger = logging.getLogger("xclip_search.worker")

POLL_SECONDS = 0.1
"""Between two polls of a file that is being encoded: is it done, is it time to stop or to renew the lease."""

JOBS_KEPT_SECONDS = 30 * 24 * 3600.0
"""Ended jobs are forgotten after thirty days, so that the catalog does not grow without bound."""

CLEAN_UP_SECONDS = 600.0
"""Between two times that old jobs are forgotten and orphaned files deleted."""

INTERNAL_REASON = "an internal error occurred while the video was read; the server's log has the details"
FETCHING_OFF_REASON = "this server does not fetch videos from the web"

ReadVideo = Callable[[Path, threading.Event], NewVideo]
"""As `VideoEncoder.encode_file`."""

SEGMENTS_AT_ONCE = 4
"""Encoded together: few, so that a stop is noticed soon and a film of hours takes little memory."""


UNWRITABLE = (IndexBusyError, IndexStorageError)
"""Transient errors of the catalog: it is busy, or the disk is full until space is freed."""

UNWRITABLE_PAUSE_SECONDS = 2.0
"""Pause after the catalog could not be written to: a full disk, or another process that writes for long."""

FULL_DISK_REASON = "the server's disk is full: the video cannot be stored"
KEPT_OUT_REASON = "its content was deleted and is kept out until the operator lets it in again"
ID_TAKEN_REASON = "another video has the id that was asked for"


def worker_name() -> str:
    """The name under which this process leases jobs."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Worker:
    """Processes the jobs of one index, one at a time, until it is stopped."""

    def __init__(
        self,
        settings: WorkerSettings,
        catalog: Store[Any],
        media_store: MediaStore,
        read_video: ReadVideo,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """beat: called at least every few seconds while it takes jobs, unless it hangs."""
        self._settings = settings
        self._catalog = catalog
        self._queue = catalog.jobs
        self._store = media_store
        self._sent = SentTranscripts(media_store, catalog)
        self._read_video = read_video
        self._outcomes = JobOutcomes(self._queue, media_store, catalog)
        self._beat = beat
        self._name = worker_name()

    def run(self, stop: threading.Event) -> None:
        """Take jobs until `stop` is set or the parent is gone; a job under way gets the grace period.

        Raises:
            IndexSupersededError: Another generation of the index has become the current one; the job under
                way then waits there.
        """
        clean_up_at = time.monotonic()
        # Another thread reads, so that this one can renew the lease and notice a stop meanwhile.
        executor = ThreadPoolExecutor(1, "read")
        try:
            while not self._must_stop(stop):
                self._beat()
                try:
                    if time.monotonic() >= clean_up_at:
                        clean_up_at = time.monotonic() + CLEAN_UP_SECONDS
                        self._clean_up()
                    # An idle worker writes nothing, and would never learn of it.
                    if (successor := self._catalog.superseded_by) is not None:
                        raise IndexSupersededError(successor.generation)
                    job = self._queue.lease(self._name, self._settings.lease_seconds)
                    if job is not None:
                        self._process(job, executor, stop)
                    elif self._settings.url_ingest or not self._refuse_to_fetch():
                        stop.wait(self._settings.poll_seconds)
                except UNWRITABLE as error:
                    # The job, if there is one, is tried again when its lease is over.
                    logger.warning("the catalog cannot be written to, trying again: %s", error)
                    stop.wait(UNWRITABLE_PAUSE_SECONDS)
        finally:
            # What is still being read was cancelled. Its decoder ends with the `VideoEncoder`.
            executor.shutdown(wait=False, cancel_futures=True)

    def _clean_up(self) -> None:
        try:
            self._queue.forget_ended(time.time() - JOBS_KEPT_SECONDS)
            delete_orphans(self._store, self._catalog, self._queue)
            self._catalog.keep_reserve()
        except (OSError, IndexerError) as error:
            logger.warning("could not clean up: %s", error)

    def _must_stop(self, stop: threading.Event) -> bool:
        parent = self._settings.parent_pid
        if parent is not None and os.getppid() != parent:
            logger.warning("the server process has ended; stopping")
            stop.set()
        return stop.is_set()

    def _refuse_to_fetch(self) -> bool:
        """Fail a job that was made while fetching was switched on; false where there is none."""
        job = self._queue.lease(self._name, self._settings.lease_seconds, unfetched=True)
        if job is not None:
            self._outcomes.fail(job, FETCHING_OFF_REASON, FailureReason.FETCH)
        return job is not None

    def _process(self, job: Job, executor: ThreadPoolExecutor, stop: threading.Event) -> None:
        started = time.monotonic()
        cancelled = threading.Event()
        try:
            with self._outcomes.recorded(job, INTERNAL_REASON):
                video_id = self._finish_known(job, job.content_sha256)
                if video_id is None:
                    reading = executor.submit(self._read, job, cancelled)
                    if not self._wait(job, reading, stop):
                        logger.info("stopping: job %s goes back to the queue", job.id)
                        self._queue.release(job.id, attempt=job.attempts)
                        return
                    video_id = self._store_video(job, reading.result())
                seconds = time.monotonic() - started
                logger.info("job %s done in %.2f s: video %s", job.id, seconds, video_id)
        finally:
            cancelled.set()

    def _finish_known(self, job: Job, content_sha256: str | None) -> str | None:
        """The id of the video that has these bytes; the job is done with it. None where there is none."""
        known = content_sha256 and self._catalog.find_by_sha256(content_sha256)
        if not known:
            if content_sha256 and (kept_out := self._catalog.kept_out.find([content_sha256])):
                raise KeptOutError(kept_out[content_sha256].video_id)
            return None
        self._queue.finish(job.id, known.id, attempt=job.attempts)
        self._sent.finish(job.id, known.id)
        self._outcomes.discard(job)
        return known.id

    def _wait(self, job: Job, reading: Future[Any], stop: threading.Event) -> bool:
        """Until the file is encoded: true. False where the worker must stop first. Keeps the lease.

        Raises LeaseLostError.
        """
        # At a third of the lease: one renewal may come late, as on a busy disk, and the lease still holds.
        renew_at = time.monotonic() + self._settings.lease_seconds / 3
        stop_at: float | None = None
        while True:
            try:
                reading.exception(POLL_SECONDS)
                return True
            except FutureTimeoutError:
                pass
            self._beat()
            now = time.monotonic()
            if now >= renew_at:
                self._queue.heartbeat(job.id, self._settings.lease_seconds, attempt=job.attempts)
                renew_at = now + self._settings.lease_seconds / 3
            if self._must_stop(stop):
                stop_at = stop_at or now + self._settings.worker_grace_seconds
                if now >= stop_at:
                    return False

    def _source(self, job: Job) -> Path:
        """The file of a job. A worker that died at the worst moment has moved an upload already."""
        source = local_path(job.source_path) or Path(job.source_path)
        if job.delete_source and not source.exists():
            return self._store.kept(job.video_id) or source
        return source

    def _read(self, job: Job, cancelled: threading.Event) -> NewVideo:
        source = self._source(job)
        # A client's uri was resolved when it was checked. A link that is there now was put there since.
        if not job.delete_source and source.resolve() != source:
            raise MediaError("the file is no longer where it was")
        video = self._read_video(source, cancelled)
        # A child computed this hash. A compromised one could claim that of a file that is yet to come.
        if job.content_sha256 not in (None, video.content_sha256):
            raise MediaError("the file is not the one that was sent")
        return video

    def _store_video(self, job: Job, video: NewVideo) -> str:
        """Put the video into the catalog and its file where accepted uploads lie; the job is done with it."""
        known_id = self._finish_known(job, video.content_sha256)
        if known_id is not None:
            return known_id
        # Reading may have taken long, on a machine that slept: move nothing that another worker reads now.
        self._queue.heartbeat(job.id, self._settings.lease_seconds, attempt=job.attempts)
        if job.delete_source:
            # The file first: were the record first, a crash in between would leave a video without a file.
            # Where the record cannot be made, the file stays for `JobOutcomes.discard` or the next worker.
            self._store.keep(self._source(job), job.video_id)
        uri = job.uri
        if uri is not None and job.is_fetched_by_us:
            uri = uri.partition("?")[0]  # A query often holds a signature or a token.
        if video.recorded_at is None and not job.delete_source:
            from indexer.ingest.pipeline import file_time  # Heavy; whatever encoded the video has loaded it.

            video = replace(video, recorded_at=file_time(self._source(job)))
        sent = self._sent.of_job(job.id)
        video = replace(video, id=job.video_id, uri=uri, title=job.title, metadata=job.metadata)
        video = replace(video, transcripts=sent)
        with self._catalog.transaction() as transaction:
            outcome = self._catalog.add_video(video, transaction)
            self._queue.finish(job.id, outcome.video_id, attempt=job.attempts, transaction=transaction)
        self._sent.finish(job.id, outcome.video_id, sent if outcome.created else ())
        if not outcome.created:
            self._outcomes.discard(job)
        return outcome.video_id


# Outcomes


class JobOutcomes:
    """Records how leased jobs fail, and deletes their files: the same for encoding and for fetching."""

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
            MemoryError, RuntimeError: memory is full, see `is_full_memory`.
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
        except KeptOutError:
            self.fail(job, KEPT_OUT_REASON, FailureReason.KEPT_OUT)
        except (*UNWRITABLE, IndexSupersededError):
            raise
        except Exception as error:
            if is_full_memory(error):
                raise  # The process ends; the next one takes the job when its lease is over.
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
