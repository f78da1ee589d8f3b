"""Leases jobs whose file is still on the web, and downloads it.

A fetched file is an upload like any other from then on: it has a name of ours and is not trusted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from indexer.errors import (
    IndexSupersededError,
    JobNotFoundError,
    LeaseLostError,
)
from indexer.store.job import FailureReason, Job
from indexer.store.store import Store
from model.atomic_files import fsync_directory
from service.ingest.media_store import MediaStore, unfinished_download
from service.ingest.web.download import Download, DownloadRules, Tick, download
from service.ingest.worker import (
    UNWRITABLE,
    UNWRITABLE_PAUSE_SECONDS,
    JobOutcomes,
    worker_name,
)
from service.settings import WorkerSettings

logger = logging.getLogger("xclip_search.worker")

POLL_SECONDS = 1.0
"""Pause between two checks whether a job was cancelled: its download ends within that time."""

INTERNAL_REASON = "an internal error occurred while the video was fetched; the server's log has the details"

Fetch = Callable[[str, Path, DownloadRules, Tick], Download]
"""As `service.ingest.web.download.download`."""


class _StoppedError(BaseException):
    """The worker ends: no error of the job."""


class Fetcher:
    """Downloads the files of one job after the other until it is stopped. fetch: replaced in tests."""

    def __init__(
        self, settings: WorkerSettings, catalog: Store[Any], media_store: MediaStore, fetch: Fetch = download
    ) -> None:
        self._settings = settings
        self._rules = DownloadRules.of(settings)
        self._catalog = catalog
        self._queue = catalog.jobs
        self._store = media_store
        self._fetch = fetch
        self._outcomes = JobOutcomes(self._queue, media_store, catalog)
        self._name = worker_name()

    def run(self, stop: threading.Event) -> None:
        """Take jobs until `stop` is set; a job under way goes back to the queue."""
        while not stop.is_set():
            try:
                job = self._queue.lease(self._name, self._settings.lease_seconds, unfetched=True)
                if job is None:
                    stop.wait(self._settings.poll_seconds)
                else:
                    self._process(job, stop)
            except UNWRITABLE as error:
                # The job, if there is one, is tried again when its lease is over.
                logger.warning("the catalog cannot be written to, trying again: %s", error)
                stop.wait(UNWRITABLE_PAUSE_SECONDS)

    def _process(self, job: Job, stop: threading.Event) -> None:
        started = time.monotonic()
        unfinished = unfinished_download(job.source_path, job.attempts)
        try:
            with self._outcomes.recorded(job, INTERNAL_REASON, FailureReason.FETCH):
                fetched = self._fetch(job.uri or "", unfinished, self._rules, self._tick(job, stop))
                # Where another worker has the job now, that one puts its own file here, of the same uri.
                unfinished.rename(job.source_path)
                fsync_directory(self._store.uploads_directory)
                self._queue.put_back_fetched(job.id, fetched.content_sha256, attempt=job.attempts)
                seconds = time.monotonic() - started
                logger.info("job %s: fetched %d bytes in %.1f s", job.id, fetched.size_bytes, seconds)
        except _StoppedError:
            logger.info("stopping: job %s goes back to the queue", job.id)
            with contextlib.suppress(LeaseLostError, JobNotFoundError):
                self._queue.release(job.id, attempt=job.attempts)
        finally:
            unfinished.unlink(missing_ok=True)

    def _tick(self, job: Job, stop: threading.Event) -> Tick:
        """Ends a download whose worker ends or whose job is gone, and keeps the lease of the others."""
        poll_at = time.monotonic() + POLL_SECONDS
        renew_at = time.monotonic() + self._settings.lease_seconds / 3

        def tick() -> None:
            nonlocal poll_at, renew_at
            if stop.is_set():
                raise _StoppedError
            now = time.monotonic()
            if now >= renew_at:
                self._queue.heartbeat(job.id, self._settings.lease_seconds, attempt=job.attempts)
                renew_at = now + self._settings.lease_seconds / 3
            elif now >= poll_at:
                seen = self._queue.get(job.id)
                if seen.state != "running" or seen.attempts != job.attempts:
                    raise LeaseLostError(f"the job {job.id} is {seen.state} now")
            else:
                return
            poll_at = now + POLL_SECONDS

        return tick


@contextlib.contextmanager
def fetching(
    settings: WorkerSettings, catalog: Store[Any], media_store: MediaStore, stop: threading.Event
) -> Iterator[None]:
    """Run `settings.num_url_downloads` threads that fetch, for as long as the context is open.

    Args:
        settings: Of the worker.
        catalog: Its job queue has the jobs.
        media_store: Where the files go.
        stop: Ends the threads. Also set when a thread fails, and at the end of the context.
    """
    fetcher = Fetcher(settings, catalog, media_store)

    def run() -> None:
        try:
            fetcher.run(stop)
        except IndexSupersededError:
            logger.info("the index was reindexed: its new generation fetches what waits")
        except Exception as error:
            logger.error("cannot fetch any more; the worker ends", exc_info=error)
        finally:
            stop.set()

    threads = [
        threading.Thread(target=run, name=f"fetch-{number}") for number in range(settings.num_url_downloads)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
