"""The worker's other half: takes jobs whose file is still on the web, and fetches it.

A fetched file is an upload like any other from then on: it has a name of ours, and nobody vouches for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from indexer.errors import (
    IndexSupersededError,
    JobNotFoundError,
    LeaseLostError,
)
from indexer.store.job import FailureReason, Job
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from model.atomic_files import fsync_directory
from service.ingest.media_store import MediaStore, unfinished_download
from service.ingest.outcomes import (
    NO_ROOM_REASON,
    UNWRITABLE,
    UNWRITABLE_PAUSE_SECONDS,
    JobEndings,
    worker_name,
)
from service.ingest.web.download import Download, DownloadRules, Tick, download
from service.ingest.web.policy import DownloadError
from service.settings import Settings

logger = logging.getLogger("xclip_search.worker")

LOOK_SECONDS = 1.0
"""Between two looks of a download at its job: a cancelled one ends so soon."""

TURNED_OFF = "this server does not fetch videos from the web"
INTERNAL = "something went wrong inside while the video was fetched; the server's log says what"

Fetch = Callable[[str, Path, DownloadRules, Tick], Download]
"""As `url_download.download`."""


class _StoppedError(Exception):
    """The worker ends."""


class Fetcher:
    """Fetches the files of one job after the other until told to stop."""

    def __init__(
        self, settings: Settings, catalog: Catalog, media_store: MediaStore, fetch: Fetch = download
    ) -> None:
        self._settings = settings
        self._rules = DownloadRules.of(settings)
        self._catalog = catalog
        self._queue = JobQueue(catalog)
        self._store = media_store
        self._fetch = fetch
        self._endings = JobEndings(self._queue, media_store, catalog)
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
        if not self._settings.url_ingest:  # Turned off since the job was made.
            self._endings.fail(job, TURNED_OFF, FailureReason.FETCH)
            return
        started = time.monotonic()
        unfinished = unfinished_download(job.source_path, job.attempts)
        try:
            fetched = self._fetch(job.uri or "", unfinished, self._rules, self._tick(job, stop))
            # Where another worker has the job now, that one puts its own file here, of the same uri.
            unfinished.rename(job.source_path)
            fsync_directory(self._store.uploads_directory)
            self._queue.put_back_fetched(job.id, fetched.content_sha256, attempt=job.attempts)
        except _StoppedError:
            logger.info("stopping: job %s goes back to the queue", job.id)
            with contextlib.suppress(LeaseLostError, JobNotFoundError):
                self._queue.release(job.id, attempt=job.attempts)
        except (LeaseLostError, JobNotFoundError):
            logger.warning("job %s was cancelled, or taken over by another worker", job.id)
            self._endings.discard_if_ended(job)
        except DownloadError as error:
            self._endings.fail(job, error.reason, FailureReason.FETCH)
        except (*UNWRITABLE, IndexSupersededError):
            raise  # Nothing is wrong with the file.
        except OSError as error:
            no_room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            logger.error("fetching for job %s failed", job.id, exc_info=error)
            if no_room:
                self._endings.fail(job, NO_ROOM_REASON, FailureReason.NO_ROOM)
            else:
                self._endings.fail(job, INTERNAL, FailureReason.FETCH)
        except Exception as error:
            logger.error("fetching for job %s failed", job.id, exc_info=error)
            self._endings.fail(job, INTERNAL, FailureReason.FETCH)
        else:
            seconds = time.monotonic() - started
            logger.info("job %s: fetched %d bytes in %.1f s", job.id, fetched.size_bytes, seconds)
        finally:
            unfinished.unlink(missing_ok=True)

    def _tick(self, job: Job, stop: threading.Event) -> Tick:
        """Ends a download whose worker ends or whose job is gone, and keeps the lease of the others."""
        look_at = time.monotonic() + LOOK_SECONDS
        renew_at = time.monotonic() + self._settings.lease_seconds / 3

        def tick() -> None:
            nonlocal look_at, renew_at
            if stop.is_set():
                raise _StoppedError
            now = time.monotonic()
            if now >= renew_at:
                self._queue.heartbeat(job.id, self._settings.lease_seconds, attempt=job.attempts)
                renew_at = now + self._settings.lease_seconds / 3
            elif now >= look_at:
                seen = self._queue.get(job.id)
                if seen.state != "running" or seen.attempts != job.attempts:
                    raise LeaseLostError(f"the job {job.id} is {seen.state} now")
            else:
                return
            look_at = now + LOOK_SECONDS

        return tick


@contextlib.contextmanager
def fetching(
    settings: Settings, catalog: Catalog, media_store: MediaStore, stop: threading.Event
) -> Iterator[None]:
    """Fetch in threads of their own until `stop` is set, which it is at the end in any case.

    Where fetching is turned off, one thread tells the jobs that were made before.
    """
    num_threads = settings.num_url_downloads if settings.url_ingest else 1
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

    threads = [threading.Thread(target=run, name=f"fetch-{number}") for number in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
