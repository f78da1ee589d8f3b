"""The worker: what becomes of a job and of its file, whatever happens on the way."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import IndexBusyError, IndexDamagedError, IndexFullError, NotAVideoError
from indexer.maintenance.verification import verify
from indexer.store.job import FailureReason, Job
from indexer.store.job_rows import GAVE_UP_REASON
from indexer.store.records import NewVideo
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from service.ingest.media_store import MediaStore, delete_orphans
from service.ingest.worker import FULL_DISK_REASON, ID_TAKEN_REASON, INTERNAL_REASON, Worker
from service.ingest.worker_process import WorkerState, keep_worker_running, worker_command
from service.settings import Settings
from tests.faults.dying_worker import POISON, read_by_rote
from tests.support.catalog_builders import enqueue
from tests.support.servers.service_fakes import add_video, make_catalog
from tests.support.video_files import write_numbered_video

TESTS = Path(__file__).resolve().parents[2]
MP4 = b"\x00\x00\x00\x18ftypmp42" + bytes(1000)


class Bench:
    """An index with a queue, and a worker that runs in a thread until no job waits."""

    def __init__(self, directory: Path) -> None:
        self.catalog = make_catalog(directory)
        self.queue = JobQueue(self.catalog)
        self.store = MediaStore(directory)
        self.store.prepare()
        self.settings = Settings(index=directory, poll_seconds=0.01, worker_grace_seconds=0.1)
        self.read: Callable[[Path], NewVideo] = read_by_rote
        self.cancelled = threading.Event()
        self.stop = threading.Event()

    def upload(self, content: bytes = MP4, **fields: Any) -> Job:
        path = self.store.new_upload_path()
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return enqueue(self.queue, None, str(path), content_sha256=digest, delete_source=True, **fields)

    def start(self) -> threading.Thread:
        def read(path: Path, cancelled: threading.Event) -> NewVideo:
            self.cancelled = cancelled
            return self.read(path)

        worker = Worker(self.settings, self.catalog, self.store, read)
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
    enqueue(bench.queue, "mine", str(path), uri=str(path))
    bench.run()
    media = bench.store.locate(bench.catalog.get_video("mine"))
    assert media is not None and media.path == path and bench.files() == []


def test_a_link_that_took_the_place_of_a_file_is_not_read(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(MP4)
    (tmp_path / "corpus.mp4").symlink_to(tmp_path / "secret")
    job = enqueue(bench.queue, "mine", str(tmp_path / "corpus.mp4"))
    bench.run()
    assert bench.queue.get(job.id).reason == "the file is no longer where it was"


def test_an_upload_of_content_that_is_kept_out_fails_and_is_not_read(bench: Bench) -> None:
    job = bench.upload()
    bench.run()
    bench.catalog.delete_video(bench.queue.get(job.id).video_id, keep_out=True)

    def read(path: Path) -> NewVideo:
        raise AssertionError("it is known")

    bench.read = read
    again = bench.upload()
    bench.run()
    ended = bench.queue.get(again.id)
    assert ended.failure == FailureReason.KEPT_OUT and "kept out" in str(ended.reason)


def test_a_file_that_is_no_video_fails_with_the_reason_and_is_deleted(bench: Bench) -> None:
    def refuse(path: Path) -> NewVideo:
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
        (OSError(errno.ENOSPC, "full", "/secret/path"), FULL_DISK_REASON),
    ],
)
def test_an_unforeseen_error_fails_the_job_without_telling_our_insides_and_the_next_one_works(
    bench: Bench, error: Exception, reason: str
) -> None:
    def fail_once(path: Path) -> NewVideo:
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
    def read(path: Path) -> NewVideo:
        add_video(bench.catalog, "quicker", MP4)
        return read_by_rote(path)

    bench.read = read
    job = bench.upload()
    bench.run()
    assert bench.queue.get(job.id).video_id == "quicker" and bench.files() == []


def test_an_id_that_was_taken_meanwhile_fails_the_job(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(MP4)

    def read(path: Path) -> NewVideo:
        add_video(bench.catalog, "mine", b"other bytes")
        return read_by_rote(path)

    bench.read = read
    job = enqueue(bench.queue, "mine", str(tmp_path / "a.mp4"))
    bench.run()
    assert bench.queue.get(job.id).reason == ID_TAKEN_REASON


def test_a_job_cancelled_while_it_is_read_adds_no_video_and_leaves_no_file(bench: Bench) -> None:
    def read(path: Path) -> NewVideo:
        bench.queue.cancel(job.id)
        return read_by_rote(path)

    bench.read = read
    job = bench.upload()
    bench.run()
    wait_until(lambda: bench.files() == [])
    assert bench.queue.get(job.id).state == "failed" and bench.catalog.num_videos == 0


def reading_once_let(hold: threading.Event) -> Callable[[Path], NewVideo]:
    """Reads by rote when `hold` is set, or after long."""

    def read(path: Path) -> NewVideo:
        hold.wait(30)
        return read_by_rote(path)

    return read


def test_a_job_cancelled_before_it_is_read_is_noticed_by_the_heartbeat(bench: Bench) -> None:
    hold = threading.Event()
    bench.read = reading_once_let(hold)
    bench.settings = Settings(index=bench.catalog.directory, poll_seconds=0.01, lease_seconds=0.3)
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
    def read(path: Path) -> NewVideo:
        time.sleep(1.2)
        return read_by_rote(path)

    bench.read = read
    bench.settings = Settings(index=bench.catalog.directory, poll_seconds=0.01, lease_seconds=0.5)
    job = bench.upload()
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.attempts) == ("done", 1)


def test_a_stop_gives_the_job_back_after_the_grace_period_and_keeps_its_file(bench: Bench) -> None:
    hold = threading.Event()
    bench.read = reading_once_let(hold)
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


def reading_until_cancelled(bench: Bench) -> Callable[[Path], NewVideo]:
    """As `VideoEncoder` reads a film: ends soon after it was cancelled."""

    def read(path: Path) -> NewVideo:
        if bench.cancelled.wait(30):
            raise CancelledError
        return read_by_rote(path)

    return read


def test_a_film_is_left_unfinished_when_its_worker_ends(bench: Bench) -> None:
    bench.read = reading_until_cancelled(bench)
    job = bench.upload()
    thread = bench.start()
    wait_until(lambda: bench.queue.get(job.id).state == "running")
    bench.stop.set()
    thread.join(10)
    assert not thread.is_alive() and bench.queue.get(job.id).state == "queued"
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("read")])


def test_a_file_whose_reading_cannot_be_ended_does_not_keep_its_worker(bench: Bench) -> None:
    hold = threading.Event()
    bench.read = reading_once_let(hold)
    job = bench.upload()
    thread = bench.start()
    wait_until(lambda: bench.queue.get(job.id).state == "running")
    bench.stop.set()
    thread.join(10)
    assert not thread.is_alive() and bench.queue.get(job.id).state == "queued"
    hold.set()


def test_a_film_that_was_cancelled_does_not_hold_up_the_next_job(bench: Bench) -> None:
    def read(path: Path) -> NewVideo:
        bench.read = read_by_rote
        return reading_until_cancelled(bench)(path)

    bench.read = read
    bench.settings = Settings(index=bench.catalog.directory, poll_seconds=0.01, lease_seconds=0.3)
    film = bench.upload()
    thread = bench.start()
    wait_until(lambda: bench.queue.get(film.id).state == "running")
    following = bench.upload(MP4 + b"2")
    bench.queue.cancel(film.id)
    wait_until(lambda: bench.queue.get(following.id).state == "done", seconds=15)
    bench.stop.set()
    thread.join()


def test_a_job_whose_worker_died_after_moving_the_file_is_done_by_the_next_one(bench: Bench) -> None:
    job = bench.upload()
    bench.store.keep(Path(job.source_path), job.video_id)
    bench.run()
    assert bench.queue.get(job.id).state == "done" and bench.files() == [f"{job.video_id}.mp4"]


def test_a_worker_ends_when_the_server_that_started_it_is_gone(bench: Bench) -> None:
    bench.settings = Settings(index=bench.catalog.directory, poll_seconds=0.01, parent_pid=os.getppid() + 1)
    bench.start().join(5)
    assert bench.stop.is_set()


def test_a_cancel_at_any_moment_leaves_a_video_with_its_file_or_nothing(bench: Bench) -> None:
    chance = random.Random(0)
    cancelled_early = bench.upload(b"early")
    bench.queue.cancel(cancelled_early.id)
    thread = bench.start()
    jobs = [cancelled_early]
    for number in range(40):
        job = bench.upload(MP4 + str(number).encode())
        jobs.append(job)
        time.sleep(chance.uniform(0, 0.04))
        said = bench.queue.cancel(job.id)
        assert said.ended and bench.queue.get(job.id) == said, "nothing happens to it any more"
    bench.stop.set()
    thread.join()
    delete_orphans(bench.store, bench.catalog, bench.queue)
    done = {job.video_id for job in jobs if bench.queue.get(job.id).state == "done"}
    assert {video.id for video in bench.catalog.list_videos(100)} == done
    assert bench.files() == sorted(f"{video_id}.mp4" for video_id in done)
    assert bench.catalog.sequence == len(done)


def test_a_worker_that_wakes_up_late_takes_nothing_from_the_one_that_took_over(bench: Bench) -> None:
    hold = threading.Event()

    class SlowStore(MediaStore):
        def keep(self, source: Path, video_id: str) -> Path:
            path = super().keep(source, video_id)
            hold.wait(20)
            return path

    bench.settings = Settings(index=bench.catalog.directory, poll_seconds=0.01, lease_seconds=0.3)
    quick_store, bench.store = bench.store, SlowStore(bench.catalog.directory)
    job = bench.upload()
    late = bench.start()
    wait_until(lambda: quick_store.kept(job.video_id) is not None)
    bench.store = quick_store
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.attempts) == ("done", 2)
    bench.stop.set()
    hold.set()
    late.join()
    assert bench.queue.get(job.id) == ended and bench.files() == [f"{job.video_id}.mp4"]


@pytest.mark.parametrize(
    "error", [IndexFullError("the disk is full"), IndexBusyError("writing for 30 seconds")]
)
def test_a_catalog_that_cannot_be_written_to_costs_a_try_and_not_the_video(
    bench: Bench, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.ingest.worker.UNWRITABLE_PAUSE_SECONDS", 0.01)
    add_really, errors = bench.catalog.add_video, [error]

    def add(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return add_really(*arguments)

    monkeypatch.setattr(bench.catalog, "add_video", add)
    bench.settings = Settings(index=bench.catalog.directory, poll_seconds=0.01, lease_seconds=0.3)
    job = bench.upload()
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.attempts) == ("done", 2) and bench.files() == [f"{job.video_id}.mp4"]


def test_a_file_moved_for_a_job_that_ended_with_an_older_id_is_deleted(bench: Bench) -> None:
    add_video(bench.catalog, "old", MP4)
    job = bench.upload()
    bench.store.keep(Path(job.source_path), job.video_id)
    bench.queue.lease("worker", 60)
    bench.queue.finish(job.id, "old")
    assert delete_orphans(bench.store, bench.catalog, bench.queue) == 1 and bench.files() == []


# Workers that are processes, and die


def start_process(bench: Bench, moment: str, lease_seconds: float = 0.5) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(TESTS / "faults/dying_worker.py"), str(bench.catalog.directory), moment]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, str(lease_seconds)], env=environment)


def kill_at(bench: Bench, moment: str) -> None:
    """Start a worker and kill it, as nothing can be handled, when it has come to `moment`."""
    process = start_process(bench, moment)
    sign = bench.catalog.directory / f"at-{moment}"
    try:
        wait_until(lambda: sign.exists() or process.poll() is not None)
    finally:
        process.kill()
        process.wait()
    assert sign.exists(), "it ended by itself"


def finish_with_a_process(bench: Bench, condition: Callable[[], bool]) -> None:
    process = start_process(bench, "never")
    try:
        wait_until((bench.catalog.directory / f"ready-{process.pid}").exists)
        wait_until(condition)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("moment", "num_attempts"), [("decode", 2), ("moved", 2), ("transaction", 2), ("committed", 1)]
)
def test_a_job_whose_worker_is_killed_is_done_exactly_once(
    bench: Bench, moment: str, num_attempts: int
) -> None:
    job = bench.upload()
    kill_at(bench, moment)
    assert bench.queue.get(job.id).state == ("done" if moment == "committed" else "running")
    finish_with_a_process(bench, lambda: bench.queue.get(job.id).ended)
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.attempts, ended.video_id) == ("done", num_attempts, job.video_id)
    assert [video.id for video in bench.catalog.list_videos()] == [job.video_id]
    assert bench.catalog.sequence == 1 and bench.files() == [f"{job.video_id}.mp4"]


def test_an_upload_whose_worker_is_killed_before_it_removes_it_is_deleted(bench: Bench) -> None:
    add_video(bench.catalog, "old", MP4)
    job = bench.upload()
    kill_at(bench, "finished")
    assert bench.queue.get(job.id).state == "done" and bench.files() == [Path(job.source_path).name]
    finish_with_a_process(bench, lambda: bench.files() == [])
    assert bench.queue.get(job.id).video_id == "old" and bench.catalog.num_videos == 1


def test_a_file_that_kills_its_workers_fails_after_three_and_holds_up_nothing(bench: Bench) -> None:
    poison, good = bench.upload(POISON), bench.upload()
    num_deaths = 0
    while not bench.queue.get(poison.id).ended:
        process = start_process(bench, "never", lease_seconds=0.2)
        wait_until(lambda: process.poll() is not None or bench.queue.get(poison.id).ended)  # noqa: B023
        if process.poll() is None:
            process.kill()
        else:
            assert process.returncode == -signal.SIGKILL
            num_deaths += 1
        process.wait()
        if num_deaths == 2:
            assert bench.queue.get(good.id).state == "done"
    failed = bench.queue.get(poison.id)
    assert (num_deaths, failed.state, failed.reason) == (3, "failed", GAVE_UP_REASON)
    delete_orphans(bench.store, bench.catalog, bench.queue)
    assert bench.files() == [f"{good.video_id}.mp4"] and bench.catalog.num_videos == 1


def status_fields(pid: int) -> list[str]:
    """State, parent's id and so on of a process; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_running(pid: int) -> bool:
    return status_fields(pid)[:1] not in ([], ["Z"], ["X"])


def children_of(pid: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [child for child in pids if status_fields(child)[1:2] == [str(pid)]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_worker_killed_while_it_decodes_takes_its_decoder_along_and_the_next_one_does_the_job(
    tmp_path: Path,
) -> None:
    import torch

    from model import XClip, XClipConfig
    from service.loading import open_index

    torch.manual_seed(0)
    XClip(XClipConfig.tiny()).eval().save(tmp_path / "model")
    index = tmp_path / "index"
    open_index(Settings(index=index, model=str(tmp_path / "model"), device="cpu")).close()
    film = write_numbered_video(tmp_path / "film.mp4", 900, rate=1, codec="mpeg4")
    store = MediaStore(index)
    store.prepare()
    program = (
        "from pathlib import Path\nfrom service.settings import Settings\n"
        "from service.ingest.worker_process import run_worker\n"
        f"run_worker(Settings(index=Path({str(index)!r}), device='cpu', lease_seconds=3.0))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", program], cwd=TESTS.parent, env=environment)

    with Catalog.open(index) as catalog:
        queue = JobQueue(catalog)
        upload = store.new_upload_path()
        upload.write_bytes(film.read_bytes())
        job = enqueue(queue, None, str(upload), delete_source=True)
        worker = start()
        try:
            wait_until(lambda: queue.get(job.id).state == "running", 240)
            wait_until(lambda: bool(children_of(worker.pid)), 60)
            children = children_of(worker.pid)
        finally:
            worker.kill()
            worker.wait()
        assert queue.get(job.id).state == "running" and children
        wait_until(lambda: not any(is_running(child) for child in children), 60)
        worker = start()
        try:
            wait_until(lambda: queue.get(job.id).ended, 240)
        finally:
            worker.terminate()
            assert worker.wait(60) == 0
        ended = queue.get(job.id)
        assert (ended.state, ended.attempts, ended.reason) == ("done", 2, None)
        assert catalog.totals() == (1, 15) and catalog.sequence == 1
        assert store.kept(job.video_id) is not None and not list(store.uploads_directory.iterdir())
    assert verify(index).is_clean


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The server's side


def run_supervised(
    program: str, until: Callable[[], bool], grace_seconds: float = 10, state: WorkerState | None = None
) -> None:
    async def supervise() -> None:
        command = [sys.executable, "-c", program]
        task = asyncio.create_task(keep_worker_running(command, grace_seconds, state or WorkerState()))
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
    monkeypatch.setattr("service.ingest.worker_process.FIRST_PAUSE_SECONDS", 0.05)
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


def test_a_worker_that_is_being_started_is_asked_to_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ready = asyncio.create_subprocess_exec, tmp_path / "ready"

    async def slowly(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await real(*command, **options)
        while not ready.exists():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    program = f"""
import pathlib, signal, sys, time
ready = pathlib.Path({str(ready)!r})
signal.signal(signal.SIGTERM, lambda *_: (ready.with_name("ended").touch(), sys.exit(0)))
ready.touch()
time.sleep(60)
"""
    run_supervised(program, ready.exists)
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("sys.exit(2)", "one of its settings are wrong"),
        ("sys.exit(1)", "cannot load the model or the index"),
        ("os.kill(os.getpid(), 9)", "usually because memory ran out"),
        ("sys.exit(77)", "status 77"),
    ],
)
def test_a_worker_that_ends_before_it_takes_jobs_is_known_with_the_reason(end: str, reason: str) -> None:
    state = WorkerState()
    assert state.problem is not None and "being started" in state.problem
    run_supervised(f"import os, sys; {end}", lambda: "cannot start" in (state.problem or ""), state=state)
    assert reason in (state.problem or "")


def test_a_worker_is_well_from_when_it_takes_jobs_until_it_cannot_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.ingest.worker_process.FIRST_PAUSE_SECONDS", 0.05)
    state, problems = WorkerState(), []
    program = f"""
import os, pathlib, sys, time
first, dies = pathlib.Path({str(tmp_path / "first")!r}), pathlib.Path({str(tmp_path / "dies")!r})
if first.exists(): sys.exit(1)
first.touch()
print("something that a library says")
print("ready", flush=True)
while not dies.exists(): time.sleep(0.01)
os.kill(os.getpid(), 9)
"""

    def look() -> bool:
        if state.problem not in problems:
            problems.append(state.problem)
        if state.problem is None:
            (tmp_path / "dies").touch()
        return len(problems) == 3

    run_supervised(program, look, state=state)
    assert problems[0] is not None and "being started" in problems[0]
    assert problems[1] is None
    assert problems[2] is not None and "cannot load" in problems[2]


def test_a_worker_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.ingest.worker_process.FIRST_PAUSE_SECONDS", 0.05)
    really_start = asyncio.create_subprocess_exec
    refusals = [OSError(errno.EAGAIN, "no more processes"), OSError(errno.ENOMEM, "no memory")]

    async def start(*command: str, **options: Any) -> asyncio.subprocess.Process:
        if refusals:
            raise refusals.pop()
        return await really_start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    program = f"import pathlib, time; pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)"
    run_supervised(program, (tmp_path / "ready").exists)
    assert "no more processes" in caplog.text


def test_a_decoder_that_says_other_bytes_than_were_sent_gets_nothing_in(bench: Bench) -> None:
    of_another = hashlib.sha256(b"what somebody else will send").hexdigest()
    bench.read = lambda path: replace(read_by_rote(path), content_sha256=of_another)
    job = bench.upload()
    bench.run()
    assert bench.queue.get(job.id).reason == "the file is not the one that was sent"
    assert bench.catalog.find_by_sha256(of_another) is None and bench.files() == []


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


def test_the_worker_is_started_for_the_same_index_model_device_and_runtime() -> None:
    command = worker_command(Settings(index=Path("/index"), model="demo", device="cpu", runtime="torch"))
    assert command[:4] == [sys.executable, "-m", "xclip_search", "worker"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--index"] == "/index" and options["--model"] == "demo" and options["--device"] == "cpu"
    assert options["--runtime"] == "torch"
    assert options["--parent"] == str(os.getpid())
    assert "--model" not in worker_command(Settings(index=Path("/index")))


def test_a_worker_whose_memory_is_full_ends_and_leaves_the_job_to_the_next_one(bench: Bench) -> None:
    job = bench.upload()

    def read(path: Path, cancelled: threading.Event) -> NewVideo:
        raise MemoryError

    with pytest.raises(MemoryError):
        Worker(bench.settings, bench.catalog, bench.store, read).run(threading.Event())
    assert bench.queue.get(job.id).state == "running" and bench.files() != []


def test_a_worker_that_answers_nothing_is_noticed_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"FIRST_PAUSE": 0.05, "BEAT": 0.05, "SILENT": 0.5, "KILL": 1.5}.items():
        monkeypatch.setattr(f"service.ingest.worker_process.{name}_SECONDS", seconds)
    state, problems, again = WorkerState(), set(), tmp_path / "again"
    program = f"""
import os, pathlib, signal, time
first = pathlib.Path({str(tmp_path / "first")!r})
if first.exists(): pathlib.Path({str(again)!r}).touch(); time.sleep(60)
first.touch()
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""

    def look() -> bool:
        problems.add(state.problem)
        return again.exists()

    run_supervised(program, look, state=state)
    assert None in problems and any("has not answered for" in (problem or "") for problem in problems)


def test_a_worker_tells_the_server_that_it_is_alive_while_it_reads_and_while_it_waits(bench: Bench) -> None:
    beats = {"idle": 0, "reading": 0}
    is_reading, stop = threading.Event(), threading.Event()

    def beat() -> None:
        beats["reading" if is_reading.is_set() else "idle"] += 1
        if beats["reading"] >= 3:
            stop.set()

    def read(path: Path, cancelled: threading.Event) -> NewVideo:
        is_reading.set()
        stop.wait(10)
        return read_by_rote(path)

    bench.upload()
    Worker(bench.settings, bench.catalog, bench.store, read, beat).run(stop)
    assert beats["idle"] >= 1 and beats["reading"] >= 3


@pytest.mark.parametrize("of_its_own", [True, False])
def test_a_worker_yields_to_searches_also_where_sessions_are_scheduled_as_groups(of_its_own: bool) -> None:
    program = """
import os
from pathlib import Path
from service.ingest.worker_process import yield_to_searches
group = Path("/proc/self/autogroup")
before, of_group = os.nice(0), group.read_text() if group.exists() else ""
yield_to_searches(7)
print(os.nice(0) - before)
print(of_group and group.read_text() != of_group)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, start_new_session=of_its_own, capture_output=True, text=True, check=True)
    niceness, group_changed = done.stdout.split("\n")[:2]
    # A process may be at 13 or more already, and 19 is the end.
    assert int(niceness) == min(7, 19 - os.nice(0))
    # The session of a server, or of who started the worker by hand, is not the worker's to slow down.
    assert group_changed in ({"True", ""} if of_its_own else {"False", ""})
