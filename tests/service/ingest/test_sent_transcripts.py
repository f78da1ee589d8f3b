"""Transcripts in the form of an upload: they reach the video, whatever happens to its job meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexer.store.job import Admission
from indexer.store.records import NewVideo
from indexer.store.transcripts import MAX_TRACKS, MAX_TRANSCRIPT_BYTES, Line, Transcript
from service.ingest.media_store import STALE_UPLOAD_SECONDS, MediaStore, delete_orphans
from service.ingest.sent_transcripts import SentTranscripts
from tests.faults.dying_worker import read_by_rote
from tests.support.servers.service_fakes import Service, add_video, running, working

SUBRIP = b"1\r\n00:00:01,500 --> 00:00:03,000\r\nHello there\r\n"
CONTENT = b"bytes of a video"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "index", wait_limit_seconds=20) as service:
        yield service


def upload(
    service: Service, *transcripts: tuple[str, bytes], content: bytes = CONTENT, query: str = ""
) -> Any:
    parts = [("transcript", transcript) for transcript in transcripts]
    files = [*parts[:1], ("file", ("movie.mp4", content)), *parts[1:]]
    return service.client.post(f"/videos{query}", files=files)


def tracks(service: Service, video_id: str) -> dict[str, str]:
    """The text of each track of a video."""
    found = service.catalog.transcripts.of_videos([video_id]).get(video_id, [])
    return {one.track: " ".join(line.text for line in one.lines) for one in found}


def left(service: Service) -> list[str]:
    return sorted(path.suffix for path in (service.directory / "uploads").iterdir())


def test_transcripts_come_with_the_video_and_are_searched(service: Service) -> None:
    german = SUBRIP.replace(b"Hello there", "Grüß Gott".encode())
    names = [("movie.en.srt", SUBRIP), ("C:\\films\\movie.de.forced.vtt", german), ("other.srt", SUBRIP)]
    with working(service, read_by_rote):
        answer = upload(service, *names, query="?wait=true")
    assert answer.status_code == 201
    video_id = answer.json()["video"]["id"]
    expected = {"en": "Hello there", "de.forced": "Grüß Gott", "und": "Hello there"}
    assert tracks(service, video_id) == expected
    listed = service.client.get(f"/videos/{video_id}/transcripts").json()["transcripts"]
    assert {one["track"] for one in listed} == set(expected) and not any(one["from_file"] for one in listed)
    assert len(service.catalog.find_words("gruss gott")) == 1
    assert left(service) == []


def test_those_of_a_known_video_are_stored_at_once(service: Service) -> None:
    add_video(service.catalog, "known", CONTENT)
    answer = upload(service, ("movie.en.srt", SUBRIP))
    assert (answer.status_code, answer.json()["job"]) == (200, None)
    assert tracks(service, "known") == {"en": "Hello there"} and left(service) == []


def test_those_of_the_same_bytes_sent_twice_come_together(service: Service) -> None:
    first = upload(service, ("movie.en.srt", SUBRIP), ("movie.de.srt", SUBRIP))
    again = upload(service, ("movie.en.srt", SUBRIP.replace(b"Hello", b"Well")))
    assert first.json()["job"]["id"] == again.json()["job"]["id"]
    with working(service, read_by_rote):
        video_id = upload(service, query="?wait=true").json()["video"]["id"]
    assert tracks(service, video_id) == {"en": "Well there", "de": "Hello there"} and left(service) == []


def test_none_is_lost_that_comes_while_the_worker_reads(service: Service) -> None:
    def read(path: Path, cancelled: threading.Event) -> NewVideo:
        assert upload(service, ("movie.en.srt", SUBRIP)).status_code == 202
        return read_by_rote(path)

    with working(service, read):
        video_id = upload(service, ("movie.de.srt", SUBRIP), query="?wait=true").json()["video"]["id"]
    assert set(tracks(service, video_id)) == {"de", "en"} and left(service) == []


def test_none_is_lost_that_is_written_when_the_job_has_ended(service: Service) -> None:
    job = upload(service).json()["job"]
    before = service.job_queue.get(job["id"])
    with working(service, read_by_rote):
        while not service.job_queue.get(job["id"]).ended:
            time.sleep(0.01)
    sent = SentTranscripts(MediaStore(service.directory), service.catalog)
    sent.hand_over(Admission(before, before.video_id), [Transcript("en", (Line(0, 1, "late"),))])
    assert tracks(service, job["video_id"]) == {"en": "late"} and left(service) == []


def test_none_is_lost_that_comes_while_the_worker_stores(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = ""
    looked = SentTranscripts.of_job

    def look_and_then_write(self: SentTranscripts, asked: str) -> list[Transcript]:
        found = looked(self, asked)
        if not found:  # The worker's first look: the other request is quicker than the transaction.
            self._write(asked, [Transcript("en", (Line(0, 1, "just in time"),))])
        return found

    job_id = upload(service).json()["job"]["id"]
    monkeypatch.setattr(SentTranscripts, "of_job", look_and_then_write)
    with working(service, read_by_rote):
        while not service.job_queue.get(job_id).ended or left(service):
            time.sleep(0.01)
    assert tracks(service, service.job_queue.get(job_id).video_id) == {"en": "just in time"}


@pytest.mark.parametrize(
    ("transcripts", "status", "kind"),
    [
        ([("movie.en.srt", b"no times")], 422, "transcript-rejected"),
        ([("movie.en.srt", b"")], 422, "transcript-rejected"),
        ([("movie.en.srt", SUBRIP), ("movie.en.vtt", SUBRIP)], 422, "transcript-rejected"),
        ([(f"movie.t{n}.srt", SUBRIP) for n in range(MAX_TRACKS + 1)], 422, "invalid-request"),
        ([("movie.en.srt", SUBRIP + b"x" * MAX_TRANSCRIPT_BYTES)], 413, "body-too-large"),
    ],
)
def test_what_cannot_be_stored_refuses_the_upload_and_leaves_nothing(
    service: Service, transcripts: list[tuple[str, bytes]], status: int, kind: str
) -> None:
    answer = upload(service, *transcripts)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, kind)
    assert left(service) == [] and service.job_queue.list_jobs() == []


def test_a_job_that_is_cancelled_or_fails_takes_its_transcripts_along(service: Service) -> None:
    job = upload(service, ("movie.en.srt", SUBRIP)).json()["job"]
    assert left(service) == ["", ".transcripts"]
    service.client.delete(f"/jobs/{job['id']}")
    assert left(service) == []

    def fail(path: Path, cancelled: threading.Event) -> NewVideo:
        return replace(read_by_rote(path), content_sha256="0" * 64)

    with working(service, fail):
        assert upload(service, ("movie.en.srt", SUBRIP), query="?wait=true").status_code == 422
    assert left(service) == []


def test_orphans_are_those_of_no_job_that_waits(service: Service) -> None:
    upload(service, ("movie.en.srt", SUBRIP))
    store = MediaStore(service.directory)
    orphan = store.transcripts_path("0" * 32)
    orphan.write_text("[]")
    for path in store.uploads_directory.iterdir():
        os.utime(path, (time.time() - 2 * STALE_UPLOAD_SECONDS,) * 2)
    assert delete_orphans(store, service.catalog, service.job_queue) == 1
    assert left(service) == ["", ".transcripts"] and not orphan.exists()
