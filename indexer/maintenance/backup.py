"""Copies of an index: made while it is in use, checked before they come back.

    BACKUP/
      backup.json        what this is: format, index directory, sequence, fingerprint, sha256 of every file
      catalog.sqlite3    the catalog of one moment
      media/, uploads/   the files that the service keeps beside it: accepted videos, and those still waiting

What is derived is left out; the first start makes it again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from indexer.atomic_files import atomic_directory, sha256_of_file, sha256_of_json
from indexer.errors import (
    BackupDamagedError,
    IndexExistsError,
    IndexNotFoundError,
    IndexSupersededError,
)
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from indexer.store.sqlite.schema import CATALOG_FILE
from model.atomic_files import fsync_file

MANIFEST_FILE: Final = "backup.json"
"""Whether a folder is a backup, this file tells."""
FORMAT: Final = 1
_KEPT_FOLDERS: Final = ("media", "uploads")
_MAX_TRIES: Final = 10
_OWN_CHECKSUM: Final = "manifest_sha256"
"""Over the rest of the manifest; older backups have none."""

OnProgress = Callable[[int, int], None]
"""Called with files done and files in all."""


@dataclass(frozen=True)
class BackupReport:
    """What a backup holds: the catalog after the change `sequence`."""

    num_videos: int
    num_segments: int
    sequence: int
    fingerprint: str
    num_files: int
    size_bytes: int


def backup(
    index: str | Path, destination: str | Path, on_progress: OnProgress = lambda done, total: None
) -> BackupReport:
    """Copy the index in `index` to `destination`, which must be empty or absent. It may be in use meanwhile.

    Of several generations the current one is copied, and is the only one of what is restored.

    All is of one moment, the one at which the catalog is copied: files are never changed once they have their
    name, so those that are there before and those that are there after together hold all that it names.
    `destination` appears whole or not at all.
    Raises IndexNotFoundError, IndexDamagedError, IndexExistsError (something is in `destination`), OSError,
    IndexSupersededError where another generation became the current one meanwhile.
    """
    index, destination = Path(index).resolve(), Path(destination).resolve()
    if destination.is_relative_to(index):
        raise IndexExistsError(f"a backup cannot lie inside the index that it is of: {destination}")
    with Catalog.open(index) as catalog, atomic_directory(destination, MANIFEST_FILE) as unfinished:
        for _ in range(_MAX_TRIES):
            _copy_new_files(index, unfinished)
            _copy_catalog(catalog, unfinished / CATALOG_FILE)
            _copy_new_files(index, unfinished)
            successor = catalog.superseded_by
            if successor is not None:  # The index was reindexed meanwhile.
                raise IndexSupersededError(successor.generation)
            if _has_all_waiting_uploads(index, unfinished):
                break
        with Catalog.open(unfinished) as copied:
            num_videos, num_segments = copied.totals()
            sequence = copied.sequence
        files = [path for path in _files(unfinished) if not path.name.endswith(("-wal", "-shm"))]
        rows: dict[str, dict[str, Any]] = {}
        for num_done, path in enumerate(files, start=1):
            fsync_file(path)
            rows[path.relative_to(unfinished).as_posix()] = {
                "size_bytes": path.stat().st_size,
                "sha256": sha256_of_file(path),
            }
            on_progress(num_done, len(files))
        report = BackupReport(
            num_videos,
            num_segments,
            sequence,
            catalog.fingerprint,
            len(files),
            sum(row["size_bytes"] for row in rows.values()),
        )
        manifest = {
            "format": FORMAT,
            "made_at": time.time(),
            "index_directory": str(index),
            **asdict(report),
            "files": rows,
        }
        manifest[_OWN_CHECKSUM] = _sha256_of(manifest)
        (unfinished / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        fsync_file(unfinished / MANIFEST_FILE)
    return report


def restore(
    source: str | Path, index: str | Path, on_progress: OnProgress = lambda done, total: None
) -> BackupReport:
    """Bring the backup in `source` back as the index `index`, which must be empty or absent.

    Every file is compared with its sha256 as it is copied; `index` appears whole or not at all. Waiting
    uploads are found at their new place.
    Raises BackupDamagedError, IndexExistsError, OSError.
    """
    source, index = Path(source).resolve(), Path(index).resolve()
    manifest = _read_manifest(source)
    files: dict[str, dict[str, Any]] = manifest["files"]
    with atomic_directory(index, CATALOG_FILE) as unfinished:
        for num_done, (name, row) in enumerate(files.items(), start=1):
            target = unfinished / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                shutil.copyfile(source / name, target)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
                raise BackupDamagedError(f"the backup lacks {name}") from None
            if not _is_what_was_written(target, row):
                raise BackupDamagedError(f"{name} in the backup is not what was written")
            target.chmod(0o640 if name == CATALOG_FILE else 0o600)
            fsync_file(target)
            on_progress(num_done, len(files))
        with Catalog.open(unfinished) as catalog:
            # A job that was damaged when it was copied stays so; `verify` reports it.
            JobQueue(catalog).move_sources(Path(manifest["index_directory"]), index)
            report = BackupReport(
                *catalog.totals(),
                catalog.sequence,
                catalog.fingerprint,
                len(files),
                sum(row["size_bytes"] for row in files.values()),
            )
    return report


def damages_of_backup(source: Path) -> Iterator[str]:
    """What is wrong with the files of the backup in `source`, each in a sentence. Reads all of them."""
    try:
        files = _read_manifest(source)["files"]
    except BackupDamagedError as error:
        yield str(error)
        return
    for name, row in files.items():
        if not (source / name).is_file():
            yield f"the backup lacks {name}"
        elif not _is_what_was_written(source / name, row):
            yield f"{name} in the backup is not what was written"


def _is_what_was_written(path: Path, row: Mapping[str, Any]) -> bool:
    return bool(path.stat().st_size == row["size_bytes"] and sha256_of_file(path) == row["sha256"])


def _copy_new_files(index: Path, unfinished: Path) -> None:
    """Copy what the service keeps and is not copied yet; what goes away meanwhile was not wanted any more."""
    for folder in _KEPT_FOLDERS:
        for path in _files(index / folder):
            target = unfinished / path.relative_to(index)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.part")
            try:
                if target.exists() and target.stat().st_size == path.stat().st_size:
                    continue
                shutil.copyfile(path, partial)
            except FileNotFoundError:
                partial.unlink(missing_ok=True)
            else:
                partial.replace(target)


def _copy_catalog(catalog: Catalog, target: Path) -> None:
    target.unlink(missing_ok=True)
    catalog.copy_to(target)


def _has_all_waiting_uploads(index: Path, unfinished: Path) -> bool:
    """Whether the file of every job that waits in the copied catalog was copied too. One that came after the
    first look at the files and was done before the second is in neither; the catalog of now says it is done.
    """
    with Catalog.open(unfinished, check=False) as copy:
        waiting = JobQueue(copy).waiting_sources()
    return all(
        (unfinished / path.relative_to(index)).exists() for path in waiting if path.is_relative_to(index)
    )


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def _read_manifest(source: Path) -> dict[str, Any]:
    path = source / MANIFEST_FILE
    if not path.is_file():
        raise IndexNotFoundError(f"there is no backup in {source} (no file {MANIFEST_FILE})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        names = [PurePosixPath(name) for name in manifest["files"]]
        if manifest.get(_OWN_CHECKSUM, "") not in ("", _sha256_of(manifest)):
            raise BackupDamagedError(f"{path} is not what was written")
        is_ours = manifest["format"] == FORMAT and isinstance(manifest["index_directory"], str)
        is_ours &= all(isinstance(row["sha256"], str) for row in manifest["files"].values())
        is_ours &= all(isinstance(row["size_bytes"], int) for row in manifest["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupDamagedError(f"{path} is not what was written: {error}") from None
    if not is_ours or CATALOG_FILE not in manifest["files"]:
        raise BackupDamagedError(f"{path} is not of a backup that this version reads")
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise BackupDamagedError(f"{path} names files outside of the backup")
    return dict(manifest)


def _sha256_of(manifest: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != _OWN_CHECKSUM}
    return sha256_of_json(rest)
