"""The job queue: a job is worked on by one worker at a time and always comes to an end."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import DuplicateIdError, InvalidRecordError, JobNotFoundError, LeaseLostError
from indexer.store.job_rows import GAVE_UP_REASON
from indexer.store.store import open_store
from tests.support.catalog_builders import (
    add_and_finish,
    add_video,
    enqueue,
    make_segment,
    sha256_of,
)

REPOSITORY = Path(__file__).resolve().parents[3]


class Clock:
    """A clock that tests advance."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def catalog(store_factory, clock):
    catalog = store_factory.create()
    catalog.clock = clock
    return catalog


@pytest.fixture
def queue(catalog):
    return catalog.jobs


@pytest.fixture
def segment():
    return make_segment(np.random.default_rng(0))


def test_a_job_lives_from_queued_over_running_to_done(queue, clock):
    queued = enqueue(
        queue,
        "video-1",
        "/inbox/a.mp4",
        title="A dog",
        metadata={"a": [1]},
        uri="u",
        content_sha256=sha256_of(1),
        delete_source=True,
    )
    assert (queued.state, queued.attempts, queued.created_at) == ("queued", 0, 1000.0)
    assert (queued.title, queued.metadata, queued.uri, queued.delete_source) == (
        "A dog",
        {"a": [1]},
        "u",
        True,
    )
    assert queue.list_jobs(state="queued") == [queue.get(queued.id)] == [queued] and not queued.ended
    clock.now = 1001.0
    running = queue.lease("worker", 30.0)
    assert (running.id, running.state, running.attempts) == (queued.id, "running", 1)
    assert (running.worker_name, running.started_at, running.lease_expires_at) == ("worker", 1001.0, 1031.0)
    clock.now = 1005.0
    done = queue.finish(queued.id, "video-1")
    assert (done.state, done.finished_at, done.reason, done.ended) == ("done", 1005.0, None, True)
    assert queue.lease("worker", 30.0) is None


def test_a_failed_job_keeps_its_reason(queue):
    job = enqueue(queue, "v", "/a")
    queue.lease("worker", 30.0)
    failed = queue.fail(job.id, "the file is not a video")
    assert (failed.state, failed.reason, failed.ended) == ("failed", "the file is not a video", True)
    assert queue.counts() == {"queued": 0, "running": 0, "done": 0, "failed": 1}


def test_the_video_and_the_end_of_its_job_are_one_change(queue, catalog, segment):
    job = enqueue(queue, "video-1", "/a")
    with pytest.raises(LeaseLostError):
        add_and_finish(catalog, 1, [segment], job)  # Not leased: nothing is added.
    assert catalog.num_videos == 0
    leased = queue.lease("worker", 30.0)
    with pytest.raises(JobNotFoundError):
        add_and_finish(catalog, 1, [segment], replace(leased, id="no such job"))
    assert catalog.num_videos == 0
    add_and_finish(catalog, 1, [segment], leased)
    assert queue.get(job.id).state == "done" and catalog.num_videos == 1


def test_a_job_for_known_bytes_ends_with_the_id_they_have(queue, catalog, segment):
    add_video(catalog, 1, [segment])
    job = enqueue(queue, "another", "/a")
    leased = queue.lease("worker", 30.0)
    assert not add_and_finish(catalog, 1, [segment], leased, id="another").created
    assert queue.get(job.id).video_id == "video-1"


def test_jobs_come_in_order_each_once(queue):
    jobs = [enqueue(queue, None, f"/{n}") for n in range(3)]
    assert [queue.lease("worker", 30.0).id for _ in jobs] == [job.id for job in jobs]
    assert queue.lease("worker", 30.0) is None


def test_an_expired_job_is_tried_three_times_behind_the_others(queue, clock):
    bad, good = enqueue(queue, None, "/bad"), enqueue(queue, None, "/good")
    assert queue.lease("a", 30.0).id == bad.id
    clock.now += 29.0
    assert queue.lease("fetching", 30.0, unfetched=True) is None and queue.get(bad.id).state == "running"
    clock.now += 1.0
    assert queue.lease("b", 1000.0).id == good.id, "one that kills its workers does not block the rest"
    assert queue.get(bad.id).state == "queued" and queue.get(bad.id).worker_name is None
    for attempt in (2, 3):
        assert queue.lease("c", 30.0).attempts == attempt
        clock.now += 31.0
    assert queue.lease("d", 30.0) is None
    failed = queue.get(bad.id)
    assert (failed.state, failed.reason, failed.attempts) == ("failed", GAVE_UP_REASON, 3)
    assert queue.counts() == {"queued": 0, "running": 1, "done": 0, "failed": 1}


def test_a_heartbeat_keeps_the_lease(queue, clock):
    job = enqueue(queue, None, "/a")
    queue.lease("a", 30.0)
    for _ in range(5):
        clock.now += 25.0
        queue.heartbeat(job.id, 30.0)
    assert queue.lease("b", 30.0) is None and queue.get(job.id).attempts == 1


def test_a_worker_thought_dead_cannot_touch_what_another_leased(queue, catalog, clock, segment):
    job = enqueue(queue, "v", "/a")
    first = queue.lease("a", 30.0)
    clock.now += 31.0
    second = queue.lease("b", 30.0)
    for report in (
        lambda: queue.heartbeat(job.id, 30.0, attempt=first.attempts),
        lambda: queue.finish(job.id, "v", attempt=first.attempts),
        lambda: queue.fail(job.id, "no", attempt=first.attempts),
        lambda: queue.release(job.id, attempt=first.attempts),
        lambda: add_and_finish(catalog, 1, [segment], first),
    ):
        with pytest.raises(LeaseLostError, match="leased by another worker"):
            report()
    assert queue.get(job.id) == second and catalog.num_videos == 0
    assert queue.finish(job.id, "v", attempt=second.attempts).state == "done"


def test_a_released_job_has_lost_no_try(queue):
    job = enqueue(queue, None, "/a")
    for _ in range(5):
        assert queue.lease("a", 30.0).attempts == 1
        assert queue.release(job.id).state == "queued"


def test_a_cancelled_job_is_lost_to_its_worker(queue):
    waiting, running = enqueue(queue, None, "/b"), None
    assert queue.cancel(waiting.id).reason == "cancelled"
    running = enqueue(queue, None, "/a")
    queue.lease("a", 30.0)
    queue.cancel(running.id, "no longer wanted")
    for report in (queue.heartbeat, queue.finish):
        with pytest.raises(LeaseLostError, match="failed"):
            report(running.id, 30.0)
    assert queue.cancel(running.id, "again").reason == "no longer wanted"


def finish_once(queue, job):
    queue.lease("a", 30.0)
    queue.finish(job.id, job.video_id)


def fail_once(queue, job):
    queue.lease("a", 30.0)
    queue.fail(job.id, "the file is not a video")


def release_once(queue, job):
    queue.lease("a", 30.0)
    queue.release(job.id)


@pytest.mark.parametrize(
    ("bring_about", "state", "reason"),
    [
        (lambda queue, job: None, "failed", "cancelled"),
        (lambda queue, job: queue.lease("a", 30.0), "failed", "cancelled"),
        (release_once, "failed", "cancelled"),
        (lambda queue, job: queue.cancel(job.id, "first"), "failed", "first"),
        (fail_once, "failed", "the file is not a video"),
        (finish_once, "done", None),
    ],
    ids=["queued", "running", "released", "cancelled", "failed", "done"],
)
def test_a_cancel_ends_what_has_not_ended_and_is_final(queue, clock, bring_about, state, reason):
    job = enqueue(queue, "v", "/a")
    bring_about(queue, job)
    clock.now += 1
    cancelled = queue.cancel(job.id)
    assert (cancelled.state, cancelled.reason, cancelled.ended) == (state, reason, True)
    clock.now += 100
    assert queue.lease("b", 30.0) is None
    assert queue.get(job.id) == cancelled


def test_a_job_whose_lease_expired_can_be_cancelled_before_anyone_takes_it(queue, clock):
    job = enqueue(queue, "v", "/a")
    queue.lease("a", 30.0)
    clock.now += 31
    assert queue.cancel(job.id).state == "failed"
    assert queue.lease("b", 30.0) is None


def test_a_cancel_and_the_end_at_the_same_moment_have_one_outcome(queue, catalog, segment):
    outcomes = set()
    with open_store(catalog.address) as other, ThreadPoolExecutor(2) as pool:
        other_queue = other.jobs
        for number in range(60):
            job = enqueue(queue, f"video-{number}", "/a")
            leased = queue.lease("a", 1e12)
            together = threading.Barrier(2)

            def finish(number=number, leased=leased, together=together):
                together.wait(10)
                try:
                    add_and_finish(catalog, number, [segment], leased)
                except LeaseLostError:
                    return "lost"
                return "added"

            def cancel(job=job, together=together):
                together.wait(10)
                return other_queue.cancel(job.id).state

            finishing, cancelling = pool.submit(finish), pool.submit(cancel)
            outcome = finishing.result(), cancelling.result(), queue.get(job.id).state
            exists = bool(catalog.get_videos([job.video_id]))
            assert (*outcome, exists) in {
                ("added", "done", "done", True),
                ("lost", "failed", "failed", False),
            }
            outcomes.add(outcome[0])
    assert catalog.num_videos == catalog.sequence
    assert outcomes <= {"added", "lost"} and outcomes


def test_an_id_that_is_waited_for_is_taken(queue, catalog, segment):
    job = enqueue(queue, "v", "/a")
    with pytest.raises(DuplicateIdError):
        enqueue(queue, "v", "/b")
    queue.cancel(job.id)
    enqueue(queue, "v", "/b")
    add_video(catalog, 1, [segment])
    with pytest.raises(DuplicateIdError):
        enqueue(queue, "video-1", "/c")


@pytest.mark.parametrize("changes", [{"video_id": "a b"}, {"title": "\ud800"}, {"content_sha256": "x"}])
def test_what_cannot_be_stored_is_refused(queue, changes):
    with pytest.raises(InvalidRecordError):
        enqueue(queue, **{"video_id": None, "source_path": "/a", **changes})
    with pytest.raises(InvalidRecordError):
        queue.lease("a", 0.0)
    assert queue.list_jobs() == []


def test_unknown_jobs_are_not_found(queue):
    for ask in (queue.get, queue.cancel, queue.release):
        with pytest.raises(JobNotFoundError, match="nothing"):
            ask("nothing")


def test_lists_are_newest_first_by_state_and_page(queue):
    jobs = [enqueue(queue, None, f"/{n}") for n in range(5)]
    queue.lease("a", 30.0)
    assert [job.number for job in queue.list_jobs()] == [5, 4, 3, 2, 1]
    assert [job.id for job in queue.list_jobs(state="running")] == [jobs[0].id]
    assert [job.number for job in queue.list_jobs(2, after=4)] == [3, 2]
    assert queue.list_jobs(0) == []


def test_ended_jobs_can_be_forgotten(queue, clock):
    ended, waiting = enqueue(queue, None, "/a"), enqueue(queue, None, "/b")
    queue.cancel(ended.id)
    assert queue.forget_ended(before=clock.now) == 0
    assert queue.forget_ended(before=clock.now + 1) == 1
    assert [job.id for job in queue.list_jobs()] == [waiting.id]


def test_uploads_of_ended_jobs_are_known_and_no_others(queue):
    jobs = [enqueue(queue, None, f"/{name}", delete_source=name != "theirs") for name in ("a", "theirs", "b")]
    for job in jobs[:2]:
        queue.cancel(job.id)
    paths = [Path(job.source_path) for job in jobs] + [Path("/c")]
    assert queue.ended_sources(paths) == [Path("/a")] and queue.ended_sources([]) == []


def test_no_two_workers_get_the_same_job(queue, catalog):
    program = (
        "import sys\n"
        "from indexer.store.store import open_store\n"
        "catalog = open_store(sys.argv[1])\n"
        "queue = catalog.jobs\n"
        "catalog.clock = lambda: 1000.0\n"
        "while job := catalog.jobs.lease('process', 30.0):\n"
        "    sys.stdout.write(job.id + '\\n')\n"
    )
    jobs = {enqueue(queue, None, f"/{n}").id for n in range(60)}
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(catalog.address)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )

    def work(name):
        taken = []
        while job := queue.lease(name, 30.0):
            taken.append(job.id)
        return taken

    with ThreadPoolExecutor(3) as pool:
        taken = [job_id for part in pool.map(work, "abc") for job_id in part]
    output, _ = other.communicate(timeout=60)
    taken += output.split()
    assert len(taken) == len(set(taken)) == 60 and set(taken) == jobs
