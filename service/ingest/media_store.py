"""Files of videos: uploads that arrive, accepted ones, and those that lie elsewhere.

    INDEX/uploads/<32 hex digits>   an upload while it arrives and until its job has ended
    INDEX/uploads/<32 hex digits>.<attempt>  a file that is being fetched from the web
    INDEX/uploads/<job id>.transcripts  what was sent with an upload (`service.ingest.sent_transcripts`)
    INDEX/media/<video id>.<extension>  an accepted upload

All names are ours. A video that was indexed in place is not moved; its `uri` says where it is.

Orphans, files that a crash left without an owner, are deleted at the start and every few minutes.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import IndexerError
from indexer.ingest.video_files import MEDIA_FOLDER, local_path
from indexer.media.probing import file_extension
from indexer.store.job import Job
from indexer.store.records import VideoRecord
from indexer.store.store import Jobs, Store
from model.atomic_files import fsync_directory

CONTENT_TYPES = {
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mkv": "video/x-matroska",
    "avi": "video/x-msvideo",
    "ts": "video/mp2t",
    "mpg": "video/mpeg",
    "ogv": "video/ogg",
    "flv": "video/x-flv",
    "wmv": "video/x-ms-wmv",
    "dv": "video/x-dv",
    "mxf": "application/mxf",
}
"""Fixed per kind of container: nothing that a client says decides how a browser reads a file."""

UNKNOWN_CONTENT_TYPE = "application/octet-stream"

STALE_UPLOAD_SECONDS = 3600.0
"""An upload that no byte was added to for so long, and that no job waits for, is left over from a crash."""

FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors by which a disk or a quota says that it is full."""

MAX_OPEN_JOBS = 1_000_000
MAX_TRIES = 5

_OWN_NAME = re.compile(r"[0-9a-f]{32}")

logger = logging.getLogger("xclip_search.service")


@dataclass(frozen=True)
class MediaFile:
    """A file that may be served: where it is, and what it is."""

    path: Path
    content_type: str
    stat_result: os.stat_result


class MediaStore:
    """The media files of an index. Methods block on the disk, for a moment."""

    def __init__(self, index_directory: Path, allowed_roots: Sequence[Path] = ()) -> None:
        """Name the folders; `prepare` makes them.

        Args:
            index_directory: of the index.
            allowed_roots: folders, themselves resolved, that clients may name files in. A file inside one is
                only served while its path still resolves to there: someone who may write there could replace
                it by a link.
        """
        self._allowed_roots = tuple(allowed_roots)
        self.uploads_directory = index_directory / "uploads"
        self.media_directory = index_directory / MEDIA_FOLDER

    def prepare(self) -> None:
        """Make the folders, readable by the owner alone."""
        for directory in (self.uploads_directory, self.media_directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def new_upload_path(self) -> Path:
        """A path for one more upload; nothing is there yet."""
        return self.uploads_directory / uuid.uuid4().hex

    def transcripts_path(self, job_id: str) -> Path:
        """Where transcripts that were sent with an upload lie until its job has ended."""
        return self.uploads_directory / f"{job_id}.transcripts"

    def keep(self, source: Path, video_id: str) -> Path:
        """Move an upload to where accepted ones lie, and return that path.

        Args:
            source: the upload.
            video_id: one of our own ids, 32 hex digits.

        Raises:
            ValueError: the id is not ours, so it cannot be that of an upload.
        """
        if not _OWN_NAME.fullmatch(video_id):
            raise ValueError("only uploads, whose ids are ours, are kept")
        target = self.media_directory / f"{video_id}.{file_extension(source) or 'bin'}"
        source.rename(target)
        fsync_directory(self.media_directory)
        return target

    def kept(self, video_id: str) -> Path | None:
        """Where the accepted upload `video_id` lies; None where there is none."""
        if not _OWN_NAME.fullmatch(video_id):
            return None
        for extension in (*CONTENT_TYPES, "bin"):
            path = self.media_directory / f"{video_id}.{extension}"
            if path.is_file():
                return path
        return None

    def remove(self, video_id: str) -> None:
        """Delete the accepted upload `video_id`, if there is one."""
        path = self.kept(video_id)
        if path is not None:
            path.unlink(missing_ok=True)

    def locate(self, record: VideoRecord) -> MediaFile | None:
        """The file of a video of the index, if it is there and still as large as the one that was indexed."""
        path = self.kept(record.id) or local_path(record.uri)
        if path is None:
            return None
        try:
            if _is_inside(path, self._allowed_roots) and not _is_inside(path.resolve(), self._allowed_roots):
                return None
            stat_result = path.stat()
            if not stat.S_ISREG(stat_result.st_mode) or stat_result.st_size != record.size_bytes:
                return None
            content_type = CONTENT_TYPES.get(file_extension(path) or "", UNKNOWN_CONTENT_TYPE)
        except OSError:
            return None
        return MediaFile(path, content_type, stat_result)

    def kept_ids(self) -> list[str]:
        """Ids of all accepted uploads."""
        return [path.stem for path in self.media_directory.glob("*") if _OWN_NAME.fullmatch(path.stem)]


def unfinished_download(source_path: str, attempt: int) -> Path:
    """Where a file is while it is fetched: each attempt has its own path, and none is `source_path`."""
    return Path(f"{source_path}.{attempt}")


def resolve_uri(uri: str, allowed_roots: Sequence[Path]) -> Path | None:
    """The regular file that `uri` names, symbolic links followed, if it lies inside one of `allowed_roots`.

    None for anything else, without a difference between a file that is not there and one that is not allowed:
    the answer must not reveal what lies outside of the roots.

    Args:
        uri: an absolute path, or `file:///...`.
        allowed_roots: folders, themselves resolved.
    """
    path = local_path(uri)
    if path is None:
        return None
    try:
        resolved = path.resolve(strict=True)
        if not _is_inside(resolved, allowed_roots):
            return None
        return resolved if stat.S_ISREG(resolved.stat().st_mode) else None
    except (OSError, ValueError, RuntimeError):
        return None


def _is_inside(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def discard_upload(job: Job, media_store: MediaStore, catalog: Store[Any]) -> None:
    """Delete the upload of a job that has ended, wherever it lies, unless it is a video's file now."""
    if not job.delete_source:
        return
    Path(job.source_path).unlink(missing_ok=True)
    media_store.transcripts_path(job.id).unlink(missing_ok=True)
    if not catalog.get_videos([job.video_id]):
        media_store.remove(job.video_id)


def delete_orphans(media_store: MediaStore, catalog: Store[Any], job_queue: Jobs[Any]) -> int:
    """Delete uploads of jobs that have ended or were never made, and accepted files of no video of any
    generation.

    May run in several processes, and while videos are added and deleted.

    Returns:
        How many files were deleted; 0 where the index cannot say whose the files are.
    """
    for _ in range(MAX_TRIES):
        try:
            num_deleted = _delete_orphans(media_store, catalog, job_queue)
        except FileNotFoundError:  # A file was deleted, as it should be, between two looks.
            continue
        except IndexerError as error:
            logger.error("orphaned files were not deleted: %s", error)
            return 0
        if num_deleted:
            logger.info("deleted %d orphaned files", num_deleted)
        return num_deleted
    return 0


def _delete_orphans(media_store: MediaStore, catalog: Store[Any], job_queue: Jobs[Any]) -> int:
    # A worker may have died between the end of a job and the deletion of its upload. The job says so: no need
    # to wait until the file is stale.
    orphans = job_queue.ended_sources(list(media_store.uploads_directory.glob("*")))
    for path in orphans:
        path.unlink(missing_ok=True)
    # Files are listed before owners: a file that gets its owner meanwhile then has one.
    ids = media_store.kept_ids()
    waiting = [
        job for state in ("queued", "running") for job in job_queue.list_jobs(MAX_OPEN_JOBS, state=state)
    ]
    known = {job.video_id for job in waiting} | set(catalog.get_videos(ids))
    if catalog.superseded_by is not None:  # Another generation of the index knows more.
        return len(orphans)
    # Going back needs the files of videos that only a former generation has.
    known |= catalog.ids_in_other_generations([video_id for video_id in ids if video_id not in known])
    sources = {Path(job.source_path) for job in waiting}
    sources |= {media_store.transcripts_path(job.id) for job in waiting}
    stale = [
        path
        for path in media_store.uploads_directory.glob("*")
        if path not in sources and time.time() - path.stat().st_mtime > STALE_UPLOAD_SECONDS
    ]
    unowned = [media_store.kept(video_id) for video_id in ids if video_id not in known]
    for orphan in (*stale, *unowned):
        if orphan is not None:
            orphan.unlink(missing_ok=True)
            orphans.append(orphan)
    return len(orphans)
