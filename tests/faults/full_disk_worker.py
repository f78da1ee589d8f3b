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
from indexer.errors import IndexStorageError
from indexer.maintenance.backup import backup, restore
from indexer.store.sqlite.catalog import Catalog
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


def full_disk(folder: Path) -> dict[str, Any]:
    """A file system of its own, of 6 MB, that fills up and is given space again."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        return {"skipped": "this process may not have mounts of its own"}
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            return {"skipped": result.stderr}
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


def main() -> int:
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name == "full_disk":
        print(json.dumps(full_disk(folder)))
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
