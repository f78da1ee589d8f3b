"""Cleaning up at the start: files that a crash left without an owner."""

from __future__ import annotations

import logging
from pathlib import Path

from indexer.catalog import Catalog
from indexer.job_queue import JobQueue
from service.media_store import MediaStore

MAX_OPEN_JOBS = 1_000_000

logger = logging.getLogger("xclip_search.service")


def sweep(media_store: MediaStore, catalog: Catalog, job_queue: JobQueue) -> int:
    """Delete uploads that no job waits for and accepted files of no video; returns how many.

    The files are listed before the owners: a file that gets its owner in between has one when that is asked.
    """
    ids = media_store.ids_in_store()
    waiting = [
        job for state in ("queued", "running") for job in job_queue.list_jobs(MAX_OPEN_JOBS, state=state)
    ]
    known = {job.video_id for job in waiting} | set(catalog.get_videos(ids))
    deleted = media_store.sweep({Path(job.source_path) for job in waiting}, ids, known)
    if deleted:
        logger.info("deleted %d files that nothing refers to", len(deleted))
    return len(deleted)
