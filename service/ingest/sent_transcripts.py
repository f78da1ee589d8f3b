"""Transcripts that come in the form of an upload: kept beside it until its video is in the catalog.

    INDEX/uploads/<job id>.transcripts    JSON: [{"track": "en", "lines": [[start, end, text], ...]}, ...]

The file is written when the job is there already, and the job may end meanwhile. So both sides look twice:
the worker before it stores the video and once more after that, the request after it has written. Whatever the
order, one of them finds what the other has left.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from indexer.errors import InvalidRecordError, TranscriptError, VideoNotFoundError
from indexer.ingest.transcript_files import parse_transcript, track_of
from indexer.store.job import Admission
from indexer.store.store import Store
from indexer.store.transcripts import MAX_TRACKS, Line, Transcript
from model.atomic_files import write_atomically
from service.errors import TranscriptRejectedError
from service.ingest.media_store import MediaStore

logger = logging.getLogger("xclip_search.service")


def parse_sent(video_name: str, files: Sequence[tuple[str, bytes | bytearray]]) -> list[Transcript]:
    """The transcripts in the files of a form.

    Args:
        video_name: What the client calls the file of the video.
        files: What the client calls each file, which says its track, and its bytes.

    Raises:
        TranscriptRejectedError: One is no transcript, or two are of the same track.
    """
    read: dict[str, Transcript] = {}
    for name, data in files:
        track = track_of(_last(video_name), _last(name))
        if track in read:
            raise TranscriptRejectedError(
                f"Two transcripts are of the track {track}. Name their files by languages: movie.en.srt."
            )
        try:
            read[track] = parse_transcript(track, bytes(data))
        except TranscriptError as error:
            raise TranscriptRejectedError(f"The transcript {track} is not stored: {error}.") from None
    return list(read.values())


def _last(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


class SentTranscripts:
    """Those of the uploads of one index. Methods block on the disk."""

    def __init__(self, media_store: MediaStore, catalog: Store[Any]) -> None:
        self._media_store = media_store
        self._catalog = catalog

    def of_job(self, job_id: str) -> list[Transcript]:
        """What was sent with the upload of a job."""
        try:
            found = json.loads(self._media_store.transcripts_path(job_id).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        return [Transcript(one["track"], tuple(Line(*line) for line in one["lines"])) for one in found]

    def hand_over(self, admission: Admission, transcripts: Sequence[Transcript]) -> None:
        """Give what a form holds to the job that reads its video, or to the video that is there."""
        job = admission.job
        if not transcripts:
            return
        if job is None:
            self._store(admission.video_id, transcripts)
            return
        sent = {one.track: one for one in (*self.of_job(job.id), *transcripts)}
        self._write(job.id, list(sent.values())[:MAX_TRACKS])
        job = self._catalog.jobs.get(job.id)
        if job.ended:
            self.finish(job.id, job.video_id)

    def finish(self, job_id: str, video_id: str, stored: Sequence[Transcript] = ()) -> None:
        """Store what was sent with the upload of a job, which has ended, and forget it.

        video_id: of its video, if there is one. stored: what the video got already.
        """
        self._store(video_id, [one for one in self.of_job(job_id) if one not in stored])
        self._media_store.transcripts_path(job_id).unlink(missing_ok=True)

    def _store(self, video_id: str, transcripts: Sequence[Transcript]) -> None:
        for transcript in transcripts:
            try:
                self._catalog.transcripts.put(video_id, transcript)
            except VideoNotFoundError:
                return  # The job has failed, or the video was deleted.
            except InvalidRecordError as error:
                logger.warning("a transcript of video %s was not stored: %s", video_id, error)

    def _write(self, job_id: str, transcripts: Sequence[Transcript]) -> None:
        rows = [
            {
                "track": one.track,
                "lines": [[line.start_seconds, line.end_seconds, line.text] for line in one.lines],
            }
            for one in transcripts
        ]

        text = json.dumps(rows, ensure_ascii=False)
        path = self._media_store.transcripts_path(job_id)
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
