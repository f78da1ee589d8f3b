"""What tests/indexer/store/test_full_disk.py does in a process of its own, where files cannot grow or the
disk is full.

    python -m tests.faults.full_disk_worker SCENARIO FOLDER

prints a JSON object. RLIMIT_FSIZE makes every write beyond a size fail; Python ignores the signal for it.
"""

# ruff: noqa: T201, this is a program that prints its answer.

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from indexer.coarse.index import CoarseIndex
from indexer.errors import IndexReadOnlyError, IndexStorageError
from indexer.maintenance.backup import backup, restore
from indexer.store.job import NewJob
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.disk import reserve_path
from tests.faults.crash_cycles import Ledger, compare
from tests.faults.crash_worker import D, F, segments_of
from tests.support.catalog_builders import add_video, create_catalog

NUM_VIDEOS = 20
CLONE_NEWNS = 0x00020000


@contextlib.contextmanager
def limited_to(size_bytes: int) -> Iterator[None]:
    """No file can be written to beyond this size."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


class Index:
    """An index that is open, and the ledger of what it acknowledged."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger()
        self.catalog = create_catalog(directory, embedding_dim=D, num_frames=F)
        self.index = CoarseIndex.open(self.catalog)
        self.problems: list[str] = []
        self.num_failed = 0
        self.number = 0
        for _ in range(NUM_VIDEOS):
            self.add()
        self.index.follow()
        self.index.compact()
        self.index.save()

    def add(self) -> bool:
        """Whether it was acknowledged; where not, by which error."""
        number, self.number = self.number, self.number + 1
        begin = {"begin": "add", "number": number, "id": f"video-{number}", "title": "a", "metadata": {}}
        try:
            add_video(self.catalog, number, segments_of(number), title="a")
        except IndexStorageError as error:
            self.note(error)
            return False
        self.ledger.write([begin, {"done": True, "id": f"video-{number}", "created": True}])
        return True

    def delete(self, number: int) -> None:
        try:
            self.catalog.delete_video(f"video-{number}")
        except IndexStorageError as error:
            self.note(error)
        else:
            self.ledger.write([{"begin": "delete", "number": number}, {"done": True}])

    def update(self, number: int) -> None:
        try:
            self.catalog.update_video(f"video-{number}", title="b")
        except IndexStorageError as error:
            self.note(error)
        else:
            words = {"begin": "update", "number": number, "title": "b", "metadata": {}}
            self.ledger.write([words, {"done": True}])

    def note(self, error: Exception) -> None:
        """An error of the expected kind; it has to say where."""
        self.num_failed += 1
        if str(self.directory) not in str(error):
            self.problems.append(f"unclear: {error!r}")

    def expect_reading(self) -> None:
        """All that was acknowledged is found, by the processes that had the index open."""
        live = sum(bool(videos - {None}) for videos in self.ledger.possible.values())
        self.index.follow()
        query = np.ones((1, D), np.float32)
        _, ids = self.index.search(query, 10_000)
        features = self.catalog.segment_features(ids[0])
        if self.catalog.num_videos != live or len(self.catalog.list_videos(1000)) != live:
            self.problems.append(f"{self.catalog.num_videos} videos, {live} acknowledged")
        if len(features) != self.catalog.num_segments:
            self.problems.append(f"{len(features)} of {self.catalog.num_segments} segments found")

    def expect_all_well(self) -> None:
        """After there is space again: writes go on, and nothing is lost, here and when it is reopened."""
        if not self.add():
            self.problems.append("no write after there is space again")
        self.index.follow()
        self.index.compact()
        self.index.save()
        self.expect_reading()
        self.catalog.close()
        self.problems += [f"{name}: {n}" for name, n in (+compare(self.directory, self.ledger)).items()]

    def report(self) -> dict[str, Any]:
        return {"failed": self.num_failed, "problems": self.problems}


def attempt(index: Index, action: Callable[[], object]) -> None:
    """Something whose failing is an OSError or an error of the index."""
    try:
        action()
    except (OSError, IndexStorageError):
        index.num_failed += 1


def changes(directory: Path, limit: int) -> dict[str, Any]:
    """Adding, changing and deleting, the log at `limit` bytes more than it has."""
    index = Index(directory)
    size = (directory / "catalog.sqlite3-wal").stat().st_size
    with limited_to(size + limit):
        for position in range(6):
            index.add()
            index.update(position)
            index.delete(10 + position)
        index.expect_reading()
        attempt(index, lambda: Catalog.open(directory).close())
    index.expect_all_well()
    return index.report()


def checkpoint(directory: Path, limit: int) -> dict[str, Any]:
    """The log is brought into a database of which only the first bytes can be written, `limit` from its
    end."""
    index = Index(directory)
    size = (directory / "catalog.sqlite3").stat().st_size + limit

    def bring() -> None:
        with index.catalog.connections.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    with limited_to(max(0, size)):
        attempt(index, bring)
        index.expect_reading()
    index.expect_all_well()
    return index.report()


def save(directory: Path, limit: int) -> dict[str, Any]:
    """The coarse index is saved in files of `limit` bytes."""
    index = Index(directory)
    index.add()
    index.index.follow()
    index.index.compact()
    with limited_to(limit):
        attempt(index, index.index.save)
        index.expect_reading()
    if left := list(directory.glob("*.new")):
        index.problems.append(f"left: {left}")
    with Catalog.open(directory) as catalog:
        if CoarseIndex.open(catalog).num_segments != index.catalog.num_segments:
            index.problems.append("the saved coarse index is another one")
        if index.num_failed == 0 and CoarseIndex.open(catalog).needs_saving:
            index.problems.append("saved, and of no use")
    index.expect_all_well()
    return index.report()


def back_up(directory: Path, limit: int) -> dict[str, Any]:
    """A backup and then a restore, with files of `limit` bytes."""
    index = Index(directory)
    (directory / "media").mkdir()
    (directory / "media" / "a.mp4").write_bytes(bytes(150_000))
    target, again = directory.with_name("backup"), directory.with_name("again")
    with limited_to(limit):
        attempt(index, lambda: backup(directory, target))
        index.expect_reading()
    if index.num_failed:
        if target.exists():
            index.problems.append("half a backup")
        backup(directory, target)
    with limited_to(limit):
        attempt(index, lambda: restore(target, again))
    if index.num_failed:
        if again.exists():
            index.problems.append("half an index")
        restore(target, again)
    if any(path.name.endswith(".new") for path in directory.parent.iterdir()):
        index.problems.append("a file is left")
    index.problems += [f"restored, {name}: {n}" for name, n in (+compare(again, index.ledger)).items()]
    index.expect_all_well()
    return index.report()


def create(directory: Path, limit: int) -> dict[str, Any]:
    """An index is made where files can have `limit` bytes."""
    problems, num_failed = [], 0
    with limited_to(limit):
        try:
            create_catalog(directory, embedding_dim=D, num_frames=F).close()
        except (OSError, IndexStorageError):
            num_failed = 1
    if num_failed and directory.exists() and any(directory.iterdir()):
        problems.append(f"left: {list(directory.iterdir())}")
    shutil.rmtree(directory, ignore_errors=True)
    create_catalog(directory, embedding_dim=D, num_frames=F).close()
    return {"failed": num_failed, "problems": problems}


SCENARIOS: dict[str, tuple[Callable[[Path, int], dict[str, Any]], tuple[int, ...]]] = {
    "changes": (changes, (0, 30, 5_000, 8_300, 40_000, 81_000, 200_000, 333_333, 600_000, 10**8)),
    "checkpoint": (checkpoint, (-(10**8), -100_000, -60_000, -20_000, -4_096, 10**8)),
    "save": (save, (0, 1, 100, 300, 350, 1_000, 1_500, 2_000, 10**8)),
    "back_up": (back_up, (0, 100, 8_192, 40_000, 100_000, 140_000, 155_000, 10**8)),
    "create": (create, (0, 1, 8_192, 20_000, 60_000, 10**8)),
}


def mount(folder: Path, options: str) -> str:
    """Mount a file system of its own, for this process alone; why it cannot be done, empty where it was."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        return "this process may not have mounts of its own"
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            return result.stderr
    return ""


def fill(path: Path) -> None:
    """Until not a byte is free."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def full_disk_deletions(folder: Path) -> dict[str, Any]:
    """Videos are deleted and jobs cancelled where not a byte is free, also by a process that starts then."""
    if reason := mount(folder, "size=40m"):
        return {"skipped": reason}
    index = Index(folder / "index")
    index.catalog.keep_reserve()
    queue = index.catalog.jobs
    jobs = [queue.enqueue(NewJob(source_path=f"/{number}")) for number in range(2)]
    fill(folder / "filler")
    refused = not index.add()
    index.catalog.delete_video("video-0")
    queue.cancel(jobs[0].id)
    fill(folder / "filler")
    index.catalog.close()
    fill(folder / "filler of what was freed")
    with Catalog.open(folder / "index") as catalog:
        for number in range(1, 10):
            catalog.delete_video(f"video-{number}")
        catalog.jobs.cancel(jobs[1].id)
        left = catalog.num_videos
        states = sorted(job.state for job in catalog.jobs.list_jobs())
        (folder / "filler").unlink()
        catalog.delete_video("video-10")
        add_video(catalog, 100, segments_of(100))
        catalog.keep_reserve()
        kept = reserve_path(catalog.path).stat().st_size
    return {"refused": refused, "left": left, "states": states, "reserve": kept}


def read_only(folder: Path) -> dict[str, Any]:
    """An index is searched on a read-only file system: closed, open elsewhere, and left with a log."""
    if reason := mount(folder, "size=60m"):
        return {"skipped": reason}
    seen = folder.with_name("seen")
    seen.mkdir()
    subprocess.run(["mount", "--bind", str(folder), str(seen)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(seen)], check=True)
    index = Index(folder / "index")
    index.catalog.close()
    report: dict[str, Any] = {}

    def look(catalog: Catalog) -> list[int]:
        coarse = CoarseIndex.open(catalog)
        _, ids = coarse.search(np.ones((1, D), np.float32), 10_000)
        return [catalog.num_videos, len(catalog.segment_features(ids[0])), int(coarse.needs_saving)]

    with Catalog.open(seen / "index") as catalog:
        report["closed"] = look(catalog)
        try:
            catalog.delete_video("video-0")
        except IndexReadOnlyError as error:
            report["refused"] = str(error)
        with Catalog.open(folder / "index") as writer:
            add_video(writer, 200, segments_of(200))
            report["open elsewhere"] = catalog.num_videos
            writer.delete_video("video-1")
            writer.delete_video("video-2")
            report["changed again"] = catalog.num_videos
        report["closed again"] = catalog.num_videos
    crashed = (
        "import os; from indexer.store.sqlite.catalog import Catalog; import sys; "
        "c = Catalog.open(sys.argv[1]); c.update_video('video-5', title='x'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", crashed, str(folder / "index")], check=True)
    (folder / "index" / "catalog.sqlite3-shm").unlink()
    try:
        Catalog.open(seen / "index").close()
    except IndexReadOnlyError as error:
        report["with a log"] = str(error)
    return report


def full_disk(folder: Path) -> dict[str, Any]:
    """A file system of its own, of 6 MB, that fills up and is given space again."""
    if reason := mount(folder, "size=6m"):
        return {"skipped": reason}
    index = Index(folder / "index")
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    kinds: set[str] = set()
    note = index.note

    def note_kind(error: Exception) -> None:
        kinds.add(type(error).__name__)
        note(error)

    index.note = note_kind  # type: ignore[method-assign]
    for position in range(30):
        index.add()
        index.update(position % 8)
    index.expect_reading()
    num_failed = index.num_failed
    for action in (
        index.index.save,
        lambda: backup(index.directory, folder / "backup"),
        lambda: create_catalog(folder / "other", embedding_dim=D, num_frames=F),
    ):
        attempt(index, action)
    num_refused = index.num_failed - num_failed
    index.expect_reading()
    filler.unlink()
    index.expect_all_well()
    return {**index.report(), "kinds": sorted(kinds), "refused": num_refused}


ON_A_FILE_SYSTEM_OF_ITS_OWN = {
    "full_disk": full_disk,
    "full_disk_deletions": full_disk_deletions,
    "read_only": read_only,
}


def main() -> int:
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name in ON_A_FILE_SYSTEM_OF_ITS_OWN:
        print(json.dumps(ON_A_FILE_SYSTEM_OF_ITS_OWN[name](folder)))
        return 0
    scenario, limits = SCENARIOS[name]
    reports = {}
    for limit in limits:
        (folder / str(limit)).mkdir()
        reports[limit] = scenario(folder / str(limit) / "index", limit)
    print(json.dumps(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
