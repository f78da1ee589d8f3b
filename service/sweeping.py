"""Cleaning up, at the start and now and then: files that a crash left without an owner, keys that ran out."""

from __future__ import annotations

import logging
from pathlib import Path

from indexer.catalog import Catalog
from indexer.errors import IndexBusyError, IndexerError, IndexStorageError, IndexSupersededError
from indexer.former_generations import find_in_others
from indexer.job_admission import forget_expired_keys
from indexer.job_queue import Job, JobQueue
from service.media_store import MediaStore

MAX_OPEN_JOBS = 1_000_000
MAX_TRIES = 5

logger = logging.getLogger("xclip_search.service")


def sweep(media_store: MediaStore, catalog: Catalog, job_queue: JobQueue) -> int:
    """Delete uploads of jobs that have ended or never came to be, and accepted files of no video of any
    generation; returns how many. Forget idempotency keys that were kept long enough.

    May run in several processes, and while videos come and go.
    """
    try:
        forget_expired_keys(catalog)
    except IndexSupersededError:
        return 0
    except (IndexBusyError, IndexStorageError) as error:  # Files can be deleted where nothing can be written.
        logger.warning("cannot forget old keys: %s", error)
    for _ in range(MAX_TRIES):
        try:
            num_deleted = _sweep_files(media_store, catalog, job_queue)
        except FileNotFoundError:  # A file went away, as it should, while it was looked at.
            continue
        except IndexerError as error:  # Whose the files are cannot be told.
            logger.error("no files are deleted: %s", error)
            return 0
        if num_deleted:
            logger.info("deleted %d files that nothing refers to", num_deleted)
        return num_deleted
    return 0


def discard_upload(job: Job, media_store: MediaStore, catalog: Catalog) -> None:
    """Delete the upload of a job that has ended, wherever it lies, unless it is a video's file now."""
    if not job.delete_source:
        return
    Path(job.source_path).unlink(missing_ok=True)
    if not catalog.get_videos([job.video_id]):
        media_store.remove(job.video_id)


def _sweep_files(media_store: MediaStore, catalog: Catalog, job_queue: JobQueue) -> int:
    """The files are listed before the owners: a file that gets its owner in between has one when that is
    asked."""
    # A worker that died between the end of a job and the deletion of its upload. The job says so, so there is
    # no need to wait until the file is stale.
    left_over = job_queue.ended_sources(list(media_store.uploads_directory.glob("*")))
    for path in left_over:
        path.unlink(missing_ok=True)
    ids = media_store.ids_in_store()
    waiting = [
        job for state in ("queued", "running") for job in job_queue.list_jobs(MAX_OPEN_JOBS, state=state)
    ]
    known = {job.video_id for job in waiting} | set(catalog.get_videos(ids))
    if catalog.succession is not None:  # Another generation of the index knows more.
        return len(left_over)
    # Going back needs the files of videos that only a former generation has.
    known |= find_in_others(catalog, [video_id for video_id in ids if video_id not in known])
    deleted = media_store.sweep({Path(job.source_path) for job in waiting}, ids, known)
    return len(left_over) + len(deleted)
