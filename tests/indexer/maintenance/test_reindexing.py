"""Reindexing: what comes out is a fresh index of the same files, and nothing acknowledged is lost."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import (
    IndexBusyError,
    IndexDamagedError,
    IndexNotFoundError,
    IndexSupersededError,
)
from indexer.maintenance.backup import backup, restore
from indexer.maintenance.reindexing import (
    NO_FILE_REASON,
    Progress,
    ReindexReport,
    RollbackEffect,
    discard_others,
    reindex,
    roll_back,
    rollback_effect,
)
from indexer.maintenance.verification import rebuild, verify
from indexer.media.sampling import Sampling
from indexer.store.job import NewJob
from indexer.store.records import KnownFile
from indexer.store.sqlite.generations import POINTER_FILE
from indexer.store.store import create_store, generations_of, open_store
from service.ingest.media_store import MediaStore, delete_orphans
from tests.support.catalog_builders import enqueue
from tests.support.reindex_stand_in import (
    AFTER_THE_SWITCH,
    KILLED_AT,
    OTHER_SAMPLING,
    SAMPLING,
    StandIn,
    facts_of,
    fingerprint_of,
    write_clip,
)
from tests.support.stores import StoreFactory

Address = Path | str
TESTS = Path(__file__).resolve().parents[2]


def make(index: Address, sampling: Sampling = SAMPLING) -> Any:
    return create_store(index, facts_of(sampling))


def generations(index: Address) -> list[int]:
    return generations_of(index).numbers()


def add(catalog: Any, name: str, **fields: Any) -> str:
    """Index a file next to the index, made if it is not there."""
    path = catalog.index_directory.parent / "files" / name
    if not path.exists():
        write_clip(path)
    return StandIn(catalog).add(path, **{"id": name, "uri": path.as_uri(), **fields})


def run(index: Address, sampling: Sampling = OTHER_SAMPLING, **options: Any) -> ReindexReport:
    make_pipeline: Any = StandIn
    return reindex(index, facts_of(sampling), make_pipeline, **options)


def content(catalog: Any) -> dict[str, Any]:
    """All that an index says of its videos, by id; but for numbers of its own."""
    found = {}
    for record in catalog.list_videos(1000):
        infos = catalog.video_segments(record.id)
        features = catalog.segment_features([info.segment_id for info in infos])
        fields = {name: value for name, value in vars(record).items() if name != "sequence"}
        rows = [(i.start_seconds, i.end_seconds, i.num_frames, i.frame_times.tolist()) for i in infos]
        found[record.id] = (fields, rows, features.video.tobytes(), features.frames.tobytes())
    return found


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder of the videos' files."""
    return tmp_path / "stores" / "files"


@pytest.fixture
def index(store_factory: StoreFactory) -> Address:
    """Six videos, of ids, titles and metadata of all kinds."""
    index = store_factory.address()
    with make(index) as catalog:
        for number in range(6):
            add(
                catalog,
                f"v{number}",
                title=None if number == 2 else f"title {number}",
                metadata={"n": number},
            )
        catalog.update_video("v3", title="another", metadata={"é": [1]})
        catalog.delete_video("v4")
    return index


def test_a_reindexed_index_is_a_fresh_one_of_the_same_files_and_keeps_what_is_said_of_them(
    index: Address, files: Path, store_factory: StoreFactory
) -> None:
    with open_store(index) as former:
        before = content(former)
        order = former.video_ids()
    report = run(index)
    assert (report.switched, report.generation, report.num_encoded, report.missing) == (True, 2, 5, [])
    with (
        open_store(index, fingerprint=fingerprint_of(OTHER_SAMPLING)) as catalog,
        make(store_factory.address(), OTHER_SAMPLING) as fresh,
    ):
        assert Sampling.from_json(catalog.sampling_json) == OTHER_SAMPLING and catalog.video_ids() == order
        for video_id, (fields, *_) in before.items():
            kept = ("id", "uri", "title", "metadata", "trusted", "added_at")
            path = files / video_id
            StandIn(fresh).add(path, **{name: fields[name] for name in kept})
        after = content(catalog)
        assert after == content(fresh)
        assert {video_id: fields for video_id, (fields, *_) in after.items()} == {
            video_id: fields for video_id, (fields, *_) in before.items()
        }
        assert all(after[video_id][2] != before[video_id][2] for video_id in before)
    assert verify(index).is_clean


def test_with_the_same_model_and_sampling_there_is_nothing_to_do(index: Address) -> None:
    report = run(index, SAMPLING)
    assert (report.switched, report.num_encoded, report.generation) == (False, 0, 1)
    assert generations(index) == [1]


def test_an_interrupted_run_goes_on_where_it_was_and_follows_what_changed_since(index: Address) -> None:
    seen: list[str | None] = []

    def give_up(event: Any) -> None:
        seen.append(event.video_id)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(index, progress=Progress(on_event=give_up))
    with open_store(index) as catalog:
        assert catalog.generation == 1
        catalog.delete_video("v0")
        catalog.update_video("v1", title="changed meanwhile")
        add(catalog, "v7")
    report = run(index)
    assert (report.num_kept, report.num_encoded, report.num_deleted) == (2, 3, 1)
    with open_store(index) as catalog:
        assert set(catalog.video_ids()) == {"v1", "v2", "v3", "v5", "v7"}
        assert catalog.get_video("v1").title == "changed meanwhile"


def test_what_is_added_changed_and_deleted_during_a_run_is_there_after_it(
    index: Address, files: Path
) -> None:
    changes: list[Callable[[Any], Any]] = [
        lambda catalog: add(catalog, "late"),
        lambda catalog: catalog.delete_video("v0"),
        lambda catalog: catalog.update_video("v1", title="late"),
        lambda catalog: (catalog.delete_video("v2"), add(catalog, "again")),
        lambda catalog: add(catalog, "later"),
        lambda catalog: catalog.delete_video("late"),
    ]
    with open_store(index) as current:

        def change(event: Any) -> None:
            if changes:
                changes.pop(0)(current)

        # The bytes of v2 under another id; its file has that name.
        (files / "again").write_bytes((files / "v2").read_bytes())
        report = run(index, progress=Progress(on_event=change))
        assert report.switched and not changes
        expected = {video_id: fields for video_id, (fields, *_) in content(current).items()}
        with pytest.raises(IndexSupersededError):
            add(current, "too-late")
    with open_store(index) as catalog:
        assert {video_id: fields for video_id, (fields, *_) in content(catalog).items()} == expected
        assert {"again", "later"} <= set(expected) and not {"v0", "v2", "late"} & set(expected)


def test_files_that_were_found_missing_before_hold_nothing_up_and_a_duplicate_stands_in(
    index: Address, files: Path
) -> None:
    content = (files / "v2").read_bytes()
    with open_store(index) as catalog:
        for name in ("v1", "v2"):
            (files / name).unlink()
            catalog.update_video(name, missing_since=1.0)
        copy = files / "copy of v2"
        write_clip(copy, content)
        sha256 = hashlib.sha256(content).hexdigest()
        catalog.files.remember([KnownFile(copy.as_uri(), len(content), 1, sha256)])
    report = run(index)
    assert report.switched and report.missing == [("v1", NO_FILE_REASON)]
    with open_store(index) as catalog:
        assert "v2" in catalog.video_ids() and "v1" not in catalog.video_ids()
        assert catalog.files.find([copy.as_uri()])


def test_videos_whose_files_are_gone_or_changed_are_listed_and_nothing_is_switched(
    index: Address, files: Path
) -> None:
    (files / "v1").unlink()
    write_clip(files / "v3", b"other bytes")
    report = run(index)
    assert not report.switched and [video_id for video_id, _ in report.missing] == ["v1", "v3"]
    assert report.missing[0][1] == NO_FILE_REASON
    with open_store(index) as catalog:
        assert catalog.generation == 1
        catalog.update_video("v5", title="it takes changes")
    report = run(index, allow_missing=True)
    assert report.switched and len(report.missing) == 2
    with open_store(index) as catalog:
        assert set(catalog.video_ids()) == {"v0", "v2", "v5"}
    with generations_of(index).open(1) as former:
        assert {"v1", "v3"} <= set(former.video_ids())


def test_going_back_restores_the_index_as_it_was_at_the_switch_and_says_what_that_hides(
    index: Address,
) -> None:
    with open_store(index) as catalog:
        before = content(catalog)
    run(index)
    with open_store(index) as catalog:
        add(catalog, "new")
        catalog.delete_video("v0")
        catalog.update_video("v1", title="new title")
        after = content(catalog)
        assert rollback_effect(index) == RollbackEffect(1, num_hidden=1, num_returned=1)
        report = roll_back(index)
        assert (report.generation, report.former_generation, report.switched) == (1, 2, True)
        assert (report.num_hidden, report.num_returned, report.num_kept) == (1, 1, 5)
        with pytest.raises(IndexSupersededError):
            catalog.delete_video("v1")
    with open_store(index, fingerprint=fingerprint_of(SAMPLING)) as catalog:
        assert content(catalog) == before
        catalog.delete_video("v2")
    # Nothing is lost for good: going back once more returns to what was left, where v0 was deleted.
    assert rollback_effect(index) == RollbackEffect(2, num_hidden=1, num_returned=2)
    roll_back(index)
    with open_store(index, fingerprint=fingerprint_of(OTHER_SAMPLING)) as catalog:
        assert content(catalog) == after
    assert verify(index).is_clean


def test_reindexing_after_going_back_builds_a_new_generation_of_what_the_index_has_now(
    index: Address,
) -> None:
    run(index)
    roll_back(index)
    with open_store(index) as catalog:
        catalog.delete_video("v0")
    report = run(index)
    assert (report.generation, report.num_encoded, generations(index)) == (3, 4, [1, 2, 3])
    assert rollback_effect(index).generation == 1, "the generation that was left last"


def test_there_is_no_way_back_without_a_former_generation(index: Address) -> None:
    with pytest.raises(IndexNotFoundError, match="no former generation"):
        roll_back(index)
    run(index)
    assert discard_others(index) == [1] and generations(index) == [2]
    with pytest.raises(IndexNotFoundError):
        generations_of(index).open(1)
    if isinstance(index, Path):
        assert not list(index.glob("catalog*")) and not list(index.glob("coarse*"))
    with pytest.raises(IndexNotFoundError, match="no former generation"):
        roll_back(index)
    with open_store(index) as catalog:
        assert (catalog.generation, catalog.num_videos) == (2, 5)
    assert verify(index).is_clean


def test_jobs_come_along_and_running_jobs_wait_again(index: Address) -> None:
    with open_store(index) as former:
        queue = former.jobs
        done = enqueue(queue, "d", "/done", metadata={"é": 1})
        queue.lease("worker", 60)
        queue.finish(done.id, "v1")
        running = enqueue(queue, "r", "/running")
        queue.lease("worker", 60)
        new = NewJob(source_path="/queued", content_sha256="b" * 64, title="t", delete_source=True)
        queued = former.jobs.admit(new, max_queued=9).job
        assert queued is not None
        finished = queue.get(done.id)
        report = run(index)
        assert report.num_jobs == 3
        for write in (
            lambda: queue.lease("worker", 60),
            lambda: queue.heartbeat(running.id, 60),
            lambda: queue.fail(running.id, "x"),
        ):
            with pytest.raises(IndexSupersededError):
                write()
    with open_store(index) as catalog:
        queue = catalog.jobs
        assert queue.get(done.id) == finished and queue.get(queued.id) == queued
        again = queue.get(running.id)
        assert (again.state, again.attempts, again.lease_expires_at) == ("queued", 1, None)
        assert catalog.jobs.admit(new, max_queued=9).job == queued
        assert enqueue(queue, None, "/x").number > queued.number
        leased = queue.lease("next", 60)
        assert leased is not None and leased.id == queued.id, "fewest attempts first"


def test_a_generation_that_was_begun_for_another_fingerprint_is_removed(index: Address, files: Path) -> None:
    (files / "v1").rename(files.parent / "v1")
    assert not run(index).switched
    (files.parent / "v1").rename(files / "v1")
    third = Sampling(4, max_segment_seconds=7)
    report = run(index, third)
    assert report.switched and generations(index) == [1, report.generation]


def test_only_one_run_at_a_time(index: Address) -> None:
    with generations_of(index).locked():
        with pytest.raises(IndexBusyError):
            run(index)
        with pytest.raises(IndexBusyError):
            discard_others(index)
    assert run(index).switched


@pytest.mark.store("sqlite")
def test_rebuild_finds_out_which_generation_a_lost_pointer_named(index: Path) -> None:
    run(index)
    discard_others(index)
    run(index, SAMPLING)
    (index / POINTER_FILE).unlink()
    with pytest.raises(IndexDamagedError, match="rebuild"):
        open_store(index)
    assert not verify(index).is_clean
    rebuild(index)
    with open_store(index) as catalog:
        assert catalog.generation == 3 and catalog.num_videos == 5
    assert verify(index).is_clean


# Kills


def run_killed_at(index: Address, *arguments: str) -> None:
    command = [sys.executable, str(TESTS / "support/reindex_stand_in.py"), str(index), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    status = subprocess.run(command, env=environment, check=False)
    assert status.returncode == 9, "it ended by itself"


def has_switched_at(index: Address, moment: str) -> bool:
    return moment in AFTER_THE_SWITCH["sqlite" if isinstance(index, Path) else "postgres"]


def writable_generations(index: Address) -> list[int]:
    """Numbers of the generations that take changes; the title of v1 is "after" in them."""
    writable = []
    for number in generations(index):
        with generations_of(index).open(number) as catalog:
            try:
                catalog.update_video("v1", title="after")
            except IndexSupersededError:
                continue
            writable.append(number)
    return writable


def records(catalog: Any) -> dict[str, Any]:
    return {video_id: fields for video_id, (fields, *_) in content(catalog).items()}


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_run_that_is_killed_at_any_step_leaves_one_generation_that_takes_changes_and_has_all(
    index: Address, moment: str
) -> None:
    with open_store(index) as former:
        enqueue(former.jobs, "job", "/job")
        add(former, "acknowledged")
        expected = records(former)
        run_killed_at(index, moment)
        has_switched = has_switched_at(index, moment)
        with open_store(index) as current:
            assert records(current) == expected
            assert [job.video_id for job in current.jobs.list_jobs()] == ["job"]
            assert current.generation == (2 if has_switched else 1)
            assert writable_generations(index) == [current.generation]
        if has_switched:
            with pytest.raises(IndexSupersededError):
                former.delete_video("v1")
    assert run(index).switched != has_switched
    with open_store(index) as current:
        assert current.get_video("v1").title == "after" and set(current.video_ids()) == set(expected)
    assert verify(index).is_clean


@pytest.mark.parametrize("moment", KILLED_AT[2:])
def test_going_back_that_is_killed_at_any_step_leaves_the_one_generation_or_the_other_whole(
    index: Address, moment: str
) -> None:
    with open_store(index) as first:
        before = content(first)
    run(index)
    with open_store(index) as second:
        enqueue(second.jobs, "job", "/job")
        add(second, "acknowledged")
        after = content(second)
        run_killed_at(index, moment, "back")
        has_switched = has_switched_at(index, moment)
        with open_store(index) as current:
            assert content(current) == (before if has_switched else after)
            assert [job.video_id for job in current.jobs.list_jobs()] == ["job"]
            assert writable_generations(index) == [current.generation]
        if has_switched:
            with pytest.raises(IndexSupersededError):
                second.delete_video("v1")
    assert roll_back(index).switched
    with open_store(index) as current:
        assert set(current.video_ids()) == set(after if has_switched else before)
    assert verify(index).is_clean


def test_clips_differ() -> None:
    """The stand-in must distinguish files, or equal features would prove nothing."""
    sums = {hashlib.sha256(StandIn.features(name.encode(), 4, 8)[0].tobytes()).digest() for name in "abc"}
    assert len(sums) == 3 and np.isfinite(StandIn.features(b"a", 4, 8)[1]).all()


@pytest.mark.store("sqlite")
def test_a_backup_holds_the_current_generation_alone(index: Path, tmp_path: Path) -> None:
    run(index)
    with open_store(index) as catalog:
        expected = content(catalog)
    backup(index, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    with open_store(tmp_path / "restored", fingerprint=fingerprint_of(OTHER_SAMPLING)) as catalog:
        assert catalog.generation == 1 and content(catalog) == expected
        catalog.delete_video("v1")
    assert verify(tmp_path / "restored").is_clean and generations(tmp_path / "restored") == [1]


# Videos that a new generation could not take over: the former one keeps them, and their files stay

LEFT, KEPT, ORPHAN = "a" * 32, "b" * 32, "c" * 32


def upload(catalog: Any, video_id: str, **fields: Any) -> Path:
    """An indexed video whose file lies in the store."""
    path = MediaStore(catalog.index_directory).media_directory / f"{video_id}.bin"
    write_clip(path, f"bytes of {video_id}".encode())
    StandIn(catalog).add(path, id=video_id, **fields)
    return path


def after_cleanup(index: Address) -> list[str]:
    """Names in the store after cleaning up for the current generation."""
    with open_store(index) as catalog:
        store = MediaStore(catalog.index_directory)
        delete_orphans(store, catalog, catalog.jobs)
    return sorted(path.name for path in store.media_directory.iterdir())


def upload_orphan(index: Address) -> None:
    """A file that no video has."""
    with open_store(index) as catalog:
        write_clip(MediaStore(catalog.index_directory).media_directory / f"{ORPHAN}.bin")


@pytest.fixture
def unmigrated(store_factory: StoreFactory) -> Address:
    """Two generations, after a switch without LEFT in the second, because its file was other bytes then."""
    index = store_factory.address()
    with make(index) as catalog:
        MediaStore(catalog.index_directory).prepare()
        upload(catalog, KEPT)
        write_clip(upload(catalog, LEFT, title="left"), b"other bytes")
    report = run(index, allow_missing=True)
    assert report.switched and [video_id for video_id, _ in report.missing] == [LEFT]
    return index


def test_files_that_any_generation_names_are_kept_until_it_is_discarded(unmigrated: Address) -> None:
    upload_orphan(unmigrated)
    assert after_cleanup(unmigrated) == [f"{LEFT}.bin", f"{KEPT}.bin"]
    discard_others(unmigrated)
    assert after_cleanup(unmigrated) == [f"{KEPT}.bin"]


def test_nothing_is_deleted_where_a_former_generation_cannot_be_read(unmigrated: Address) -> None:
    upload_orphan(unmigrated)
    if isinstance(unmigrated, Path):
        for path in unmigrated.glob("catalog.sqlite3-*"):
            path.unlink()
        (unmigrated / "catalog.sqlite3").write_bytes(b"not a catalog" * 1000)
    else:
        with generations_of(unmigrated).open(1) as former, former.connections.reading() as connection:
            connection.execute("ALTER TABLE videos RENAME TO lost")
    assert len(after_cleanup(unmigrated)) == 3


def test_a_video_that_was_not_encoded_is_there_again_after_going_back(unmigrated: Address) -> None:
    with open_store(unmigrated) as catalog:
        upload(catalog, "d" * 32)
    report = roll_back(unmigrated)
    assert (report.num_hidden, report.num_returned) == (1, 1)
    with open_store(unmigrated) as catalog:
        assert catalog.get_video(LEFT).title == "left"
        assert set(catalog.video_ids()) == {LEFT, KEPT}
    # The file of a video that only the other generation has stays too.
    assert f"{'d' * 32}.bin" in after_cleanup(unmigrated)
    assert verify(unmigrated).is_clean
