"""The worker: what becomes of a job and of its file, whatever happens on the way."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_fakes import add_video, make_catalog, segment

from indexer.errors import IndexDamagedError, NotAVideoError
from indexer.job_queue import Job, JobQueue
from service.media_store import MediaStore
from service.settings import ServiceSettings, WorkerSettings
from service.worker import ID_TAKEN_REASON, INTERNAL_REASON, NO_ROOM_REASON, Worker
from service.worker_process import keep_worker_running, worker_command

MP4 = b"\x00\x00\x00\x18ftypmp42" + bytes(1000)


def read_by_rote(path: Path) -> dict[str, Any]:
    """Fields of a video whose file has any bytes."""
    content = path.read_bytes()
    return {
        "content_sha256": hashlib.sha256(content).hexdigest(),
        "segments": [segment()],
        "duration_seconds": 10.0,
        "width": 64,
        "height": 48,
        "frame_rate": 25.0,
        "codec": "h264",
        "size_bytes": len(content),
    }


class Bench:
    """An index with a queue, and a worker that runs in a thread until no job waits."""

    def __init__(self, directory: Path) -> None:
        self.catalog = make_catalog(directory)
        self.queue = JobQueue(self.catalog)
        self.store = MediaStore(directory)
        self.store.prepare()
        self.settings = WorkerSettings(directory, poll_seconds=0.01, worker_grace_seconds=0.1)
        self.read: Callable[[Path], dict[str, Any]] = read_by_rote
        self.stop = threading.Event()

    def upload(self, content: bytes = MP4, **fields: Any) -> Job:
        path = self.store.new_upload_path()
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return self.queue.enqueue(None, str(path), content_sha256=digest, delete_source=True, **fields)

    def start(self) -> threading.Thread:
        worker = Worker(self.settings, self.catalog, self.store, lambda path: self.read(path))
        thread = threading.Thread(target=worker.run, args=(self.stop,))
        thread.start()
        return thread

    def run(self) -> None:
        """Work until every job has ended."""
        thread = self.start()
        try:
            deadline = time.monotonic() + 20
            while not all(job.ended for job in self.queue.list_jobs()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            self.stop.set()
            thread.join()
            self.stop.clear()

    def files(self) -> list[str]:
        """Everything in the folders of uploads and accepted files."""
        folders = (self.store.uploads_directory, self.store.media_directory)
        return sorted(path.name for folder in folders for path in folder.iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "index")
    yield bench
    bench.catalog.close()


def test_an_upload_becomes_a_video_and_its_file_is_kept_under_the_videos_id(bench: Bench) -> None:
    job = bench.upload(title="🐕", metadata={"é": [1]})
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.video_id, ended.reason) == ("done", job.video_id, None)
    video = bench.catalog.get_video(job.video_id)
    assert (video.title, video.metadata, video.uri) == ("🐕", {"é": [1]}, None)
    assert bench.files() == [f"{job.video_id}.mp4"]
    media = bench.store.locate(video)
    assert media is not None and media.path.read_bytes() == MP4


def test_a_video_in_place_stays_in_place(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "corpus.mp4"
    path.write_bytes(MP4)
    bench.queue.enqueue("mine", str(path), uri=str(path))
    bench.run()
    media = bench.store.locate(bench.catalog.get_video("mine"))
    assert media is not None and media.path == path and bench.files() == []


def test_a_link_that_took_the_place_of_a_file_is_not_read(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(MP4)
    (tmp_path / "corpus.mp4").symlink_to(tmp_path / "secret")
    job = bench.queue.enqueue("mine", str(tmp_path / "corpus.mp4"))
    bench.run()
    assert bench.queue.get(job.id).reason == "the file is no longer where it was"


def test_a_file_that_is_no_video_fails_with_the_reason_and_is_deleted(bench: Bench) -> None:
    def refuse(path: Path) -> dict[str, Any]:
        raise NotAVideoError("a PNG image, not a video")

    bench.read = refuse
    job = bench.upload()
    bench.run()
    assert bench.queue.get(job.id).reason == "a PNG image, not a video"
    assert bench.files() == [] and bench.catalog.num_videos == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("/secret/path"), INTERNAL_REASON),
        (IndexDamagedError("/secret/path"), INTERNAL_REASON),
        (FileNotFoundError(errno.ENOENT, "gone", "/secret/path"), INTERNAL_REASON),
        (OSError(errno.ENOSPC, "full", "/secret/path"), NO_ROOM_REASON),
    ],
)
def test_an_unforeseen_error_fails_the_job_without_telling_our_insides_and_the_next_one_works(
    bench: Bench, error: Exception, reason: str
) -> None:
    def fail_once(path: Path) -> dict[str, Any]:
        bench.read = read_by_rote
        raise error

    bench.read = fail_once
    first, second = bench.upload(), bench.upload(MP4 + b"2")
    bench.run()
    assert bench.queue.get(first.id).reason == reason
    assert bench.queue.get(second.id).state == "done"
    assert bench.files() == [f"{second.video_id}.mp4"]


def test_bytes_that_came_in_meanwhile_end_the_job_with_the_id_that_they_have(bench: Bench) -> None:
    add_video(bench.catalog, "old", MP4)
    job = bench.upload()
    bench.read = lambda path: pytest.fail("there is nothing to read")
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.video_id) == ("done", "old") and bench.files() == []


def test_bytes_that_come_in_while_they_are_read_end_the_job_with_the_id_that_they_have(bench: Bench) -> None:
    def read(path: Path) -> dict[str, Any]:
        add_video(bench.catalog, "quicker", MP4)
        return read_by_rote(path)

    bench.read = read
    job = bench.upload()
    bench.run()
    assert bench.queue.get(job.id).video_id == "quicker" and bench.files() == []


def test_an_id_that_was_taken_meanwhile_fails_the_job(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(MP4)

    def read(path: Path) -> dict[str, Any]:
        add_video(bench.catalog, "mine", b"other bytes")
        return read_by_rote(path)

    bench.read = read
    job = bench.queue.enqueue("mine", str(tmp_path / "a.mp4"))
    bench.run()
    assert bench.queue.get(job.id).reason == ID_TAKEN_REASON


def test_a_job_cancelled_while_it_is_read_adds_no_video_and_leaves_no_file(bench: Bench) -> None:
    def read(path: Path) -> dict[str, Any]:
        bench.queue.cancel(job.id)
        return read_by_rote(path)

    bench.read = read
    job = bench.upload()
    bench.run()
    wait_until(lambda: bench.files() == [])
    assert bench.queue.get(job.id).state == "failed" and bench.catalog.num_videos == 0


def test_a_job_cancelled_before_it_is_read_is_noticed_by_the_heartbeat(bench: Bench) -> None:
    hold = threading.Event()

    def read(path: Path) -> dict[str, Any]:
        hold.wait(20)
        return read_by_rote(path)

    bench.read = read
    bench.settings = WorkerSettings(bench.catalog.directory, poll_seconds=0.01, lease_seconds=0.3)
    job = bench.upload()
    thread = bench.start()
    wait_until(lambda: bench.queue.get(job.id).state == "running")
    bench.queue.cancel(job.id)
    wait_until(lambda: bench.files() == [])
    hold.set()
    bench.stop.set()
    thread.join()
    assert bench.catalog.num_videos == 0


def test_a_lease_is_kept_while_a_video_takes_longer_than_the_lease(bench: Bench) -> None:
    def read(path: Path) -> dict[str, Any]:
        time.sleep(1.2)
        return read_by_rote(path)

    bench.read = read
    bench.settings = WorkerSettings(bench.catalog.directory, poll_seconds=0.01, lease_seconds=0.5)
    job = bench.upload()
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.attempts) == ("done", 1)


def test_a_stop_gives_the_job_back_after_the_grace_period_and_keeps_its_file(bench: Bench) -> None:
    hold = threading.Event()

    def read(path: Path) -> dict[str, Any]:
        hold.wait(20)
        return read_by_rote(path)

    bench.read = read
    job = bench.upload()
    thread = bench.start()
    wait_until(lambda: bench.queue.get(job.id).state == "running")
    bench.stop.set()
    wait_until(lambda: bench.queue.get(job.id).state == "queued")
    hold.set()
    thread.join()
    assert bench.queue.get(job.id).attempts == 0
    bench.stop.clear()
    bench.run()
    assert bench.queue.get(job.id).state == "done"


def test_a_job_whose_worker_died_after_moving_the_file_is_done_by_the_next_one(bench: Bench) -> None:
    job = bench.upload()
    bench.store.keep(Path(job.source_path), job.video_id)
    bench.run()
    assert bench.queue.get(job.id).state == "done" and bench.files() == [f"{job.video_id}.mp4"]


def test_a_worker_ends_when_the_server_that_started_it_is_gone(bench: Bench) -> None:
    bench.settings = WorkerSettings(bench.catalog.directory, poll_seconds=0.01, parent_pid=os.getppid() + 1)
    bench.start().join(5)
    assert bench.stop.is_set()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The server's side


def run_supervised(program: str, until: Callable[[], bool], grace_seconds: float = 10) -> None:
    async def supervise() -> None:
        task = asyncio.create_task(keep_worker_running([sys.executable, "-c", program], grace_seconds))
        deadline = time.monotonic() + 20
        while not until():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(supervise())


def test_a_worker_that_dies_is_started_again_and_ended_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker_process.FIRST_PAUSE_SECONDS", 0.05)
    log = tmp_path / "log"
    program = f"""
import os, pathlib, signal, sys, time
log = pathlib.Path({str(log)!r})
num_before = len(log.read_text().split()) if log.exists() else 0
with log.open("a") as file: file.write(str(os.getpid()) + " ")
if num_before < 2: sys.exit(1)
signal.signal(signal.SIGTERM, lambda *_: (log.with_name("ended").touch(), sys.exit(0)))
log.with_name("ready").touch()
time.sleep(60)
"""
    run_supervised(program, (tmp_path / "ready").exists)
    assert len(log.read_text().split()) == 3 and (tmp_path / "ended").exists()


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = f"""
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))
time.sleep(60)
"""
    run_supervised(program, lambda: pid_file.exists() and pid_file.read_text() != "", grace_seconds=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_the_worker_is_started_for_the_same_index_model_and_device() -> None:
    command = worker_command(ServiceSettings(Path("/index"), "demo", "cpu"))
    assert command[:4] == [sys.executable, "-m", "xclip_search", "worker"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--index"] == "/index" and options["--model"] == "demo" and options["--device"] == "cpu"
    assert options["--parent"] == str(os.getpid())
    assert "--model" not in worker_command(ServiceSettings(Path("/index")))
