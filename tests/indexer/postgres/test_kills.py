"""Nothing that was acknowledged is lost, doubled, resurrected or torn, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import IndexStorageError
from indexer.maintenance.verification import verify
from indexer.store.records import IndexFacts
from indexer.store.store import create_store, open_store
from tests.faults.killed_writer import segments_of
from tests.support.catalog_builders import add_video, make_segment
from tests.support.postgres import PostgresServer, find_programs, running_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).resolve().parents[3]
NUM_CYCLES = int(os.environ.get("XCLIP_TEST_KILL_CYCLES", "20"))
NUM_WRITERS = 3
FACTS = IndexFacts(fingerprint="f" * 64, model_spec="demo", embedding_dim=8, num_frames=4, sampling_json="{}")


@pytest.fixture
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    programs = find_programs()
    assert programs is not None
    with running_server(programs) as server:
        yield server


class Writer:
    """A process of `tests.faults.killed_writer`, and what may be true after what it has said.

    possible: for each number whether its video may be there: {True}, {False}, or both while that is in doubt.
    """

    def __init__(self, address: str, share: int, seed: int, possible: dict[int, set[bool]]) -> None:
        self.possible = possible
        self.num_acknowledged = 0
        command = [sys.executable, "-m", "tests.faults.killed_writer", address, share, NUM_WRITERS, seed]
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            match line.split():
                case ["begin", operation, number]:
                    self.possible.setdefault(int(number), {False}).add(operation == "add")
                case ["end", operation, number]:
                    self.possible[int(number)] = {operation == "add"}
                    self.num_acknowledged += 1

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def paused(writers: list[Writer]) -> Iterator[None]:
    """While they are stopped, and all that they have said is known."""
    for writer in writers:
        writer.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    yield
    for writer in writers:
        writer.process.send_signal(signal.SIGCONT)


def wait_until_it_answers(server: PostgresServer) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            server.execute("SELECT 1")
            return
        except Exception:
            assert time.monotonic() < deadline
            if not server.is_running:
                with contextlib.suppress(subprocess.SubprocessError):
                    server.start()
            time.sleep(0.05)


def count_wrong(address: str, possible: dict[int, set[bool]]) -> Counter[str]:
    """How many videos are lost, doubled, resurrected or torn."""
    wrong: Counter[str] = Counter()
    with open_store(address) as store, store.snapshot() as snapshot:
        records = [record for block in snapshot.iterate_videos() for record in block]
        there = Counter(int(record.id.removeprefix("video-")) for record in records)
        contents = Counter(record.content_sha256 for record in records)
        wrong["doubled"] = sum(count - 1 for count in (*there.values(), *contents.values()))
        for number, may_be in possible.items():
            if (there[number] > 0) not in may_be:
                wrong["lost" if may_be == {True} else "resurrected"] += 1
        for record in records:
            expected = segments_of(int(record.id.removeprefix("video-")))
            infos = snapshot.video_segments(record.id)
            features = snapshot.segment_features([info.segment_id for info in infos])
            is_whole = len(features) == len(expected) and all(
                np.array_equal(features.video[row], segment.video_feature)
                and np.array_equal(features.frames[row], segment.frame_features)
                for row, segment in enumerate(expected)
            )
            wrong["torn"] += not is_whole
    return +wrong


def kill_something(server: PostgresServer, cycle: int, writers: list[Writer], address: str) -> None:
    """By turns a writer, a process of the server that works for one, and the postmaster; all by SIGKILL."""
    match cycle % 3:
        case 0:
            share = cycle // 3 % NUM_WRITERS
            writers[share].kill()
            writers[share] = Writer(address, share, 1_000 + cycle, writers[share].possible)
        case 1:
            rows = server.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'xclip-search'")
            with contextlib.suppress(ProcessLookupError):
                os.kill(rows[cycle % len(rows)][0], signal.SIGKILL)
        case _:
            server.kill()


def test_cycles_of_kills_lose_double_resurrect_and_tear_nothing(server: PostgresServer) -> None:
    """XCLIP_TEST_KILL_CYCLES: how many."""
    address = server.address()
    create_store(address, FACTS).close()
    writers = [Writer(address, share, share, {}) for share in range(NUM_WRITERS)]
    wrong: Counter[str] = Counter()
    try:
        for cycle in range(NUM_CYCLES):
            done = [writer.num_acknowledged for writer in writers]
            deadline = time.monotonic() + 60
            while any(w.num_acknowledged < n + 2 for w, n in zip(writers, done, strict=True)):
                assert time.monotonic() < deadline, "a writer does not go on"
                time.sleep(0.01)
            time.sleep(0.01 * (cycle % 7))
            kill_something(server, cycle, writers, address)
            wait_until_it_answers(server)
            with paused(writers):
                possible = {number: may for writer in writers for number, may in writer.possible.items()}
                wrong += count_wrong(address, possible)
            assert not wrong, f"in cycle {cycle}"
    finally:
        for writer in writers:
            writer.kill()
    with open_store(address) as store:
        changes: list[Any] = []
        while some := store.changes_since(changes[-1].sequence if changes else 0):
            changes += some
        assert [change.sequence for change in changes] == list(range(1, store.sequence + 1))
    report = verify(address)
    assert report.is_clean, report.findings
    assert min(writer.num_acknowledged for writer in writers) > 0


def test_a_synchronous_standby_that_takes_over_has_all_that_was_acknowledged(server: PostgresServer) -> None:
    programs = find_programs()
    assert programs is not None
    # By default a standby that has lost its primary looks for the promotion up to 5 s later.
    options = "-c wal_retrieve_retry_interval=200ms"
    with running_server(programs, standby_of=server, options=options) as standby:
        server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        server.execute("SELECT pg_reload_conf()")
        address = server.address(others=[standby])
        acknowledged: list[int] = []
        with create_store(address, FACTS) as store:
            store.silence_limit_seconds = 1.5
            stop = threading.Event()

            def write() -> None:
                random = np.random.default_rng(0)
                number = 0
                while not stop.is_set():
                    try:
                        add_video(store, number, [make_segment(random)])  # type: ignore[arg-type]
                    except IndexStorageError:
                        time.sleep(0.05)
                        continue  # The same once more: it may be there.
                    acknowledged.append(number)
                    number += 1

            thread = threading.Thread(target=write)
            thread.start()
            try:
                wait_until(lambda: len(acknowledged) > 20)
                server.kill()
                started = time.monotonic()
                standby.promote()
                before = len(acknowledged)
                wait_until(lambda: len(acknowledged) > before + 5)
                assert time.monotonic() - started < 5.0
            finally:
                stop.set()
                thread.join()
            assert set(store.video_ids()) == {f"video-{number}" for number in acknowledged}
            assert store.num_videos == len(acknowledged)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
