"""Several writers of one index in PostgreSQL, and what is left when its processes are killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from indexer.errors import (
    ChangesForgottenError,
    IndexDamagedError,
    IndexerError,
    IndexStorageError,
    IndexSupersededError,
    OtherwiseDoneError,
    QueryTimeoutError,
    SearchCancelledError,
)
from indexer.maintenance.verification import rebuild, verify
from indexer.store.cancellation import cancellable
from indexer.store.filters import parse_filter
from indexer.store.job import NewJob
from indexer.store.postgres.catalog import PostgresCatalog
from indexer.store.records import IndexFacts, KnownFile
from indexer.store.store import Store, create_store, open_store
from indexer.store.transcripts import Line, Transcript
from tests.support.catalog_builders import add_video, make_segment, new_video, sha256_of
from tests.support.postgres import PostgresServer, find_programs, running_server
from tests.support.stores import StoreFactory

pytestmark = pytest.mark.store("postgres")

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def catalog(store_factory: StoreFactory) -> PostgresCatalog:
    made: PostgresCatalog = store_factory.create()
    return made


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each of these gives, all begun at the same moment."""
    barrier = threading.Barrier(len(works))

    def work(one: Callable[[], Any]) -> Any:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(work, works))


def test_a_follower_of_four_writers_loses_no_video_and_no_segment(catalog: PostgresCatalog) -> None:
    num_each, done = 15, threading.Event()

    def write(writer: int) -> None:
        random = np.random.default_rng(writer)
        with open_store(catalog.address) as own:
            for number in range(num_each):
                # Of different sizes, so that one that began earlier ends later.
                segments = [make_segment(random) for _ in range(1 + 20 * ((number + writer) % 2))]
                add_video(own, 1000 * writer + number, segments)

    def follow() -> tuple[list[int], list[int], int]:
        ids, sequences, last_id, sequence, is_last = [], [], 0, 0, False
        with open_store(catalog.address) as own:
            while True:
                is_last = done.is_set()
                for block, _ in own.iterate_video_features(7):
                    new = block[block > last_id].tolist()
                    ids += new
                last_id = max([last_id, *ids])
                for change in own.changes_since(sequence):
                    sequences.append(change.sequence)
                    sequence = change.sequence
                if is_last:
                    return ids, sequences, len(ids)

    with ThreadPoolExecutor(5) as pool:
        following = pool.submit(follow)
        writing = [pool.submit(write, writer) for writer in range(4)]
        try:
            for one in writing:
                one.result()
        finally:
            done.set()  # Or the follower would never end.
        ids, sequences, num_ids = following.result()
    assert ids == list(range(1, num_ids + 1)) == catalog.segment_ids().tolist()
    assert sequences == list(range(1, 4 * num_each + 1))
    assert catalog.totals() == (4 * num_each, num_ids) and verify(catalog.address).is_clean


def test_the_same_bytes_are_one_video_whatever_number_of_writers_add_them(catalog: PostgresCatalog) -> None:
    segment = make_segment(np.random.default_rng(0))

    def add(writer: int) -> Any:
        with open_store(catalog.address) as own:
            return own.add_video(new_video(1, [segment], id=f"from-{writer}"))

    outcomes = at_once(*[lambda writer=writer: add(writer) for writer in range(6)])
    assert [outcome.created for outcome in outcomes].count(True) == 1
    assert len({outcome.video_id for outcome in outcomes}) == 1 and catalog.totals() == (1, 1)


def test_the_same_upload_at_several_servers_is_one_job(catalog: PostgresCatalog) -> None:
    def admit(number: int) -> Any:
        with open_store(catalog.address) as own:
            new = NewJob(source_path=f"/{number}", content_sha256=sha256_of(1))
            return own.jobs.admit(new, max_queued=10)

    admissions = at_once(*[lambda number=number: admit(number) for number in range(5)])
    assert sum(admission.is_new for admission in admissions) == 1
    assert len({admission.job.id for admission in admissions}) == 1


def test_workers_pass_over_a_job_that_another_one_is_taking(catalog: PostgresCatalog) -> None:
    first, second = (catalog.jobs.enqueue(NewJob(source_path=f"/{number}")) for number in range(2))
    with catalog.connections.transaction(of_jobs=True) as connection:
        connection.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", (first.id,))
        leased = catalog.jobs.lease("quick", 30.0)
        assert leased is not None and leased.id == second.id
        assert catalog.jobs.lease("third", 30.0) is None, "what is being taken is not waited for"


def test_a_lease_is_by_the_clock_of_the_server(
    catalog: PostgresCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 5.0)
    job = catalog.jobs.enqueue(NewJob(source_path="/a"))
    ((now,),) = catalog.connections.rows("SELECT extract(epoch FROM clock_timestamp())::float8")
    assert abs(job.created_at - now) < 60


def test_what_is_acknowledged_is_seen_by_every_other_object(catalog: PostgresCatalog) -> None:
    random = np.random.default_rng(0)
    with open_store(catalog.address) as other:
        for number in range(5):
            add_video(catalog, number, [make_segment(random)])
            assert other.get_video(f"video-{number}").sequence == other.sequence == number + 1
        other.delete_video("video-2")
        assert catalog.totals() == (4, 4) and catalog.changes_since(5)[0].kind == "delete"


def test_what_is_kept_is_not_compressed_and_numbers_keep_their_form(catalog: PostgresCatalog) -> None:
    metadata = {"b": 1.0, "a": [1, 1.0, 2**70, 5e-324, -0.0], "z\0": "x\0y", "": None}
    add_video(catalog, 1, [make_segment(np.random.default_rng(0))], metadata=metadata, title="a\0b\x01")
    record = catalog.get_video("video-1")
    assert list(record.metadata) == list(metadata) and repr(record.metadata) == repr(metadata)
    assert record.title == "a\0b\x01"
    storages = catalog.connections.rows(
        "SELECT attstorage::text FROM pg_catalog.pg_attribute"
        " WHERE attrelid = 'features'::regclass AND attname = 'bytes'"
    )
    assert storages == [("p",)]


@pytest.mark.parametrize(("num_frames", "dimension"), [(4, 8), (12, 512), (9, 700), (3, 4096)])
def test_features_in_several_parts_are_whole_and_stay_in_their_rows(
    num_frames: int, dimension: int, store_factory: StoreFactory
) -> None:
    random = np.random.default_rng(0)
    segments = [make_segment(random, dimension, num_frames) for _ in range(20)]
    store = store_factory.create(num_frames=num_frames, embedding_dim=dimension)
    add_video(store, 1, segments[:1])
    add_video(store, 2, segments[1:])
    (block,) = store.iterate_features()
    asked = store.segment_features([20, 3])
    ids, videos = store.video_features([3, 20])
    pages = [len(some_ids) for some_ids, _ in store.iterate_video_features(block_size=8)]
    ((bytes_outside,),) = store.connections.rows(
        "SELECT pg_relation_size(reltoastrelid) FROM pg_catalog.pg_class WHERE oid = 'features'::regclass"
    )
    assert bytes_outside == 0 and verify(store.address).is_clean
    assert np.array_equal(block.frames, np.stack([segment.frame_features for segment in segments]))
    assert np.array_equal(block.video, np.stack([segment.video_feature for segment in segments]))
    assert np.array_equal(asked.frames, block.frames[[19, 2]])
    assert ids.tolist() == [3, 20] and np.array_equal(videos, block.video[[2, 19]])
    assert pages == [8, 8, 4]


@pytest.mark.parametrize(
    ("statement", "part"),
    [
        ("UPDATE videos SET title = 'other'", "catalog"),
        ("UPDATE videos SET row_crc32 = 0", "catalog"),
        ("UPDATE videos SET folded_title = 'x'", "totals"),
        ("UPDATE videos SET asked_metadata = '{}'", "totals"),
        ("UPDATE segments SET end_seconds = 99", "catalog"),
        ("UPDATE segments SET video_number = 2 WHERE id = 1", "catalog"),
        ("UPDATE features SET bytes = set_byte(bytes, 0, 77)", "catalog"),
        ("UPDATE features SET bytes = set_byte(bytes, 8, 3)", "catalog"),
        ("UPDATE features SET bytes = set_byte(bytes, 20, get_byte(bytes, 20) # 1)", "catalog"),
        ("UPDATE features SET bytes = set_byte(bytes, 55, get_byte(bytes, 55) # 1)", "catalog"),
        ("UPDATE features SET bytes = set_byte(bytes, 120, get_byte(bytes, 120) # 1)", "catalog"),
        ("UPDATE features SET bytes = bytes || '\\x00'", "catalog"),
        ("UPDATE features SET bytes = substr(bytes, 1, length(bytes) - 1)", "catalog"),
        ("UPDATE features SET bytes = substr(bytes, 1, 7)", "catalog"),
        ("UPDATE features SET part = 1", "catalog"),
        ("UPDATE changes SET kind = 'update' WHERE sequence = 1", "change log"),
        ("DELETE FROM changes WHERE sequence = 2", "change log"),
        ("UPDATE counters SET num_videos = 7", "totals"),
        ("UPDATE words SET terms = ' other '", "words"),
        ("DELETE FROM words", "words"),
        ("UPDATE files SET size_bytes = 3", "files"),
        ("UPDATE jobs SET source_path = '/other'", "jobs"),
        ("UPDATE transcripts SET lines = 'x'", "catalog"),
    ],
)
def test_verify_finds_what_is_not_what_was_written(
    catalog: PostgresCatalog, statement: str, part: str
) -> None:

    random = np.random.default_rng(0)
    for number in range(3):
        add_video(catalog, number, [make_segment(random)], title=f"Title {number}", metadata={"a": "b"})
    catalog.files.remember([KnownFile("file:///x", 1, 2, sha256_of(1))])
    catalog.jobs.enqueue(NewJob(source_path="/a"))
    catalog.transcripts.put("video-1", Transcript("en", (Line(0.0, 1.0, "hello"),)))
    assert verify(catalog.address).is_clean
    with catalog.connections.reading() as connection:
        assert connection.execute(statement.encode()).rowcount
    findings = verify(catalog.address).findings
    assert part in {finding.part for finding in findings}
    if part in ("totals", "words", "files", "jobs"):
        rebuild(catalog.address)
        assert verify(catalog.address).is_clean
    if "features SET" in statement:
        with pytest.raises(IndexDamagedError):
            catalog.segment_features([1])
        assert catalog.totals() == (3, 3), "the connection is of use again"
    if "bytes, 55" in statement:
        with pytest.raises(IndexDamagedError):
            catalog.video_features([1])


def test_features_come_in_the_order_asked_from_a_stream_and_from_a_snapshot(catalog: PostgresCatalog) -> None:
    random = np.random.default_rng(0)
    add_video(catalog, 1, [make_segment(random) for _ in range(60)])
    asked = [*range(60, 0, -1), 77, 7]
    read = catalog.segment_features(asked)
    assert read.segment_ids.tolist() == [*range(60, 0, -1), 7]
    (block,) = catalog.iterate_features()
    rows = read.segment_ids - 1
    with catalog.snapshot() as pinned:
        again = pinned.segment_features(asked)
    for name in ("segment_ids", "video_keys", "video", "frames", "num_frames"):
        expected = getattr(block, name)[rows]
        assert np.array_equal(getattr(read, name), expected) and np.array_equal(
            getattr(again, name), expected
        )


def test_a_stream_that_ends_at_a_damaged_row_leaves_a_connection_of_use(catalog: PostgresCatalog) -> None:
    random = np.random.default_rng(0)
    add_video(catalog, 1, [make_segment(random) for _ in range(300)])
    with catalog.connections.reading() as connection:
        process_id = connection.info.backend_pid
        connection.execute(
            "UPDATE features SET bytes = set_byte(bytes, 60, get_byte(bytes, 60) # 1) WHERE segment_id = 1"
        )
    for _ in range(3):
        with pytest.raises(IndexDamagedError, match="segment 1 "):
            catalog.segment_features(range(1, 301))
    assert len(catalog.segment_features(range(2, 301))) == 299
    with catalog.connections.reading() as connection:
        assert connection.info.backend_pid == process_id


def test_a_filter_ends_at_its_limit_and_where_its_search_is_cancelled(catalog: PostgresCatalog) -> None:
    segment = make_segment(np.random.default_rng(0))
    long = {"list": list(range(10_000))}
    for number in range(8):
        add_video(catalog, number, [segment], metadata=long)
    costly = parse_filter({"not": {"or": [{"metadata.list": {"in": [-1 - n]}} for n in range(80)]}})
    catalog.filter_limit_seconds = 0.1
    with pytest.raises(QueryTimeoutError, match=r"0\.1 seconds"):
        catalog.matching(costly)
    catalog.filter_limit_seconds = 1000.0
    cancelled = threading.Event()
    threading.Timer(0.1, cancelled.set).start()
    started = time.monotonic()
    with cancellable(cancelled), pytest.raises(SearchCancelledError):
        catalog.matching(costly)
    assert time.monotonic() - started < 20
    assert catalog.totals() == (8, 8), "the connection is of use again"


def test_a_generation_hands_over_in_one_transaction(catalog: PostgresCatalog) -> None:
    random = np.random.default_rng(0)
    add_video(catalog, 1, [make_segment(random)])
    new = PostgresCatalog.create(str(catalog.address), catalog.facts, generation=2, successor_of=1)
    with new, contextlib.suppress(IndexerError):
        add_video(new, 1, [make_segment(random)])
        add_video(new, 2, [make_segment(random)])
        assert new.directory != catalog.directory and new.index_directory == catalog.index_directory
        with open_store(catalog.address) as opened:
            assert opened.generation == 1
        assert catalog.ids_in_other_generations(["video-1", "video-2", "x"]) == {"video-1", "video-2"}
        with catalog.transaction() as transaction:
            catalog.hand_over(new, transaction)
        with pytest.raises(IndexSupersededError):
            add_video(catalog, 3, [make_segment(random)])
        with pytest.raises(IndexSupersededError):
            catalog.jobs.forget_ended(0.0)
        with open_store(catalog.address) as opened:
            assert (opened.generation, opened.superseded_by, opened.totals()) == (2, None, (2, 2))
            add_video(opened, 3, [make_segment(random)])
        return
    raise AssertionError("a step failed")


def test_a_copy_of_the_file_is_for_postgresql_to_make(catalog: PostgresCatalog, tmp_path: Path) -> None:
    with pytest.raises(OtherwiseDoneError, match=r"pg_dump .*--schema=t.*pg_restore"):
        catalog.copy_to(tmp_path / "copy")


def test_a_connection_that_the_server_ended_is_replaced_without_a_failure(catalog: PostgresCatalog) -> None:
    assert catalog.totals() == (0, 0)
    with open_store(catalog.address) as other:
        other.connections.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
            " WHERE pid != pg_backend_pid() AND application_name = 'xclip-search'"
        )
        time.sleep(0.3)
        assert catalog.totals() == (0, 0)


# What is left when processes are killed


def write_until_the_end(
    store: Store[Any], first: int, acknowledged: list[int], is_over: threading.Event
) -> None:
    """Add videos until the database is gone or, where it was back before a connection was asked for, until
    it is over; what is in the list was acknowledged."""
    random = np.random.default_rng(first)
    for number in itertools.count(first):
        if is_over.is_set():
            return
        try:
            add_video(store, number, [make_segment(random) for _ in range(4)])
        except IndexStorageError:
            return
        acknowledged.append(number)


def check_after_a_crash(address: str | Path, acknowledged: list[int]) -> None:
    with open_store(address) as store:
        there = set(store.video_ids())
        lost = {f"video-{number}" for number in acknowledged} - there
        assert not lost, "what was acknowledged is there"
        changes, sequence = [], 0
        with contextlib.suppress(ChangesForgottenError):
            while some := store.changes_since(sequence):
                changes += some
                sequence = some[-1].sequence
        assert len(changes) == sequence == store.sequence
    report = verify(address)
    assert report.is_clean, report.findings
    assert report.num_segments == 4 * report.num_videos, "each is wholly there"


def test_a_backend_that_is_killed_mid_write_tears_nothing(postgres_of_its_own: PostgresServer) -> None:
    crash(postgres_of_its_own, kill_a_backend, num_writers=2)


def test_a_postmaster_that_is_killed_mid_write_tears_nothing(postgres_of_its_own: PostgresServer) -> None:
    crash(postgres_of_its_own, lambda server: server.kill(), num_writers=2)


@pytest.fixture(scope="module")
def own_server() -> Any:
    programs = find_programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL 15 or later on this machine (Debian: apt install postgresql)")
    with running_server(programs) as server:
        yield server


@pytest.fixture
def postgres_of_its_own(own_server: PostgresServer) -> PostgresServer:
    """One that no other test is connected to."""
    return own_server


def kill_a_backend(server: PostgresServer) -> None:
    """SIGKILL; PostgreSQL then ends all others too and recovers from its log."""
    with psycopg.connect(server.address().split("&schema")[0], autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'xclip-search'"
        ).fetchall()
    for (process_id,) in rows:
        with contextlib.suppress(ProcessLookupError):  # One that was just about to end.
            os.kill(process_id, signal.SIGKILL)
            return
    raise AssertionError("there is no process to kill")


def crash(
    server: PostgresServer,
    kill: Callable[[PostgresServer], None],
    *,
    num_writers: int,
    delay_seconds: float = 0.3,
) -> None:
    """Let several write, kill, start again, and see what is there."""
    address = server.address()
    facts = IndexFacts(
        fingerprint="f" * 64, model_spec="demo", embedding_dim=8, num_frames=4, sampling_json="{}"
    )
    create_store(address, facts).close()
    stores = [open_store(address) for _ in range(num_writers)]
    acknowledged: list[list[int]] = [[] for _ in stores]
    is_over = threading.Event()
    with ThreadPoolExecutor(num_writers) as pool:
        writing = [
            pool.submit(write_until_the_end, store, 100_000 * number, acknowledged[number], is_over)
            for number, store in enumerate(stores)
        ]
        while not all(acknowledged):
            time.sleep(0.01)
        time.sleep(delay_seconds)
        kill(server)
        wait(writing, timeout=2, return_when=FIRST_COMPLETED)  # It ends all others, unless none is in use.
        wait_until_it_answers(server)
        is_over.set()
        for one in writing:
            one.result(timeout=60)
    for store in stores:
        store.close()
    check_after_a_crash(address, [number for some in acknowledged for number in some])


def wait_until_it_answers(server: PostgresServer) -> None:
    for _ in range(200):
        try:
            psycopg.connect(server.address().split("&schema")[0]).close()
            return
        except psycopg.OperationalError:
            if not server.is_running:  # A postmaster that is gone does not come back by itself.
                with contextlib.suppress(subprocess.SubprocessError):
                    server.start()
            time.sleep(0.1)
    raise AssertionError("the server does not come back")


@pytest.mark.cluster
def test_writers_in_processes_of_their_own_lose_nothing_when_they_are_killed(
    postgres_of_its_own: PostgresServer,
) -> None:
    address = postgres_of_its_own.address()
    facts = IndexFacts(
        fingerprint="f" * 64, model_spec="demo", embedding_dim=8, num_frames=4, sampling_json="{}"
    )
    create_store(address, facts).close()
    program = (
        "import sys, numpy as np\n"
        "from indexer.store.store import open_store\n"
        "from tests.support.catalog_builders import add_video, make_segment\n"
        "store, first, random = open_store(sys.argv[1]), int(sys.argv[2]), np.random.default_rng(0)\n"
        "for number in range(first, first + 100000):\n"
        "    add_video(store, number, [make_segment(random) for _ in range(4)])\n"
        "    print(number, flush=True)\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(100_000 * number)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    acknowledged: list[int] = []
    for writer in writers:
        assert writer.stdout is not None
        acknowledged += [int(writer.stdout.readline()) for _ in range(10)]
        writer.kill()
    for writer in writers:
        acknowledged += [int(line) for line in writer.communicate()[0].splitlines() if line.isdigit()]
    check_after_a_crash(address, acknowledged)


def test_a_writer_that_does_nothing_is_ended_by_the_server_and_a_reader_is_not(
    catalog: PostgresCatalog,
) -> None:
    asked = "SHOW idle_in_transaction_session_timeout"
    for of_jobs in (False, True):
        with catalog.connections.transaction(of_jobs=of_jobs) as connection:
            assert connection.execute(asked).fetchall() == [("1min",)]
    with catalog.connections.snapshot() as connection:
        assert connection.execute(asked).fetchall() == [("0",)]
