"""Copies of an index: made while it is in use, checked before they are restored.

    BACKUP/
      backup.json        what this is: format, index directory, sequence, fingerprint, sha256 of every file
      catalog.sqlite3    the catalog of one moment
      media/, uploads/   the files that the service keeps next to it: accepted videos, uploads of waiting jobs

What is derived is left out; the first start builds it again.
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
"""A folder with this file is a backup."""

FORMAT: Final = 1
_KEPT_FOLDERS: Final = ("media", "uploads")
_MAX_TRIES: Final = 10
_OWN_CHECKSUM: Final = "manifest_sha256"
"""Field of the manifest: sha256 over the rest of it. Older backups have none."""

OnProgress = Callable[[int, int], None]
"""Called with the number of files done and of all files."""


@dataclass(frozen=True)
class BackupReport:
    """What a backup holds.

    Attributes:
        num_videos: in the catalog.
        num_segments: in the catalog.
        sequence: number of its last change.
        fingerprint: of the index.
        num_files: the catalog and the files next to it.
        size_bytes: of all files.
    """

    num_videos: int
    num_segments: int
    sequence: int
    fingerprint: str
    num_files: int
    size_bytes: int


def backup(
    index: str | Path, destination: str | Path, on_progress: OnProgress = lambda done, total: None
) -> BackupReport:
    """Copy an index, which may be in use meanwhile. Of several generations, the current one is copied.

    All is of one moment, the one at which the catalog is copied. `destination` appears whole or not at all.

    Args:
        index: the index directory.
        destination: absent, or an empty folder.
        on_progress: called while the copied files are hashed.

    Raises:
        IndexNotFoundError: there is no index.
        IndexDamagedError: the structure of the catalog, or of its copy, is damaged.
        IndexExistsError: something is in `destination`, or it lies inside the index.
        IndexSupersededError: another generation became the current one meanwhile.
        OSError: the disk refused a read or a write.
    """
    index, destination = Path(index).resolve(), Path(destination).resolve()
    if destination.is_relative_to(index):
        raise IndexExistsError(f"a backup cannot lie inside the index that it is of: {destination}")
    with Catalog.open(index) as catalog, atomic_directory(destination, MANIFEST_FILE) as unfinished:
        _copy_one_moment(catalog, unfinished)
        files: dict[str, dict[str, Any]] = {}
        paths = _files(unfinished)
        for num_done, path in enumerate(paths, start=1):
            fsync_file(path)
            facts = {"size_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            files[path.relative_to(unfinished).as_posix()] = facts
            on_progress(num_done, len(paths))
        with Catalog.open(unfinished) as copied:  # Checks the structure of the copy.
            report = _report(copied, files)
        manifest = {
            "format": FORMAT,
            "made_at": time.time(),
            "index_directory": str(index),
            **asdict(report),
            "files": files,
        }
        manifest[_OWN_CHECKSUM] = _sha256_of(manifest)
        (unfinished / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        fsync_file(unfinished / MANIFEST_FILE)
    return report


def restore(
    source: str | Path, index: str | Path, on_progress: OnProgress = lambda done, total: None
) -> BackupReport:
    """Make an index of a backup. Every file is compared with its sha256; `index` appears whole or not at all.

    Args:
        source: the backup.
        index: absent, or an empty folder. Jobs find their waiting uploads there.
        on_progress: called for each file that was copied.

    Raises:
        IndexNotFoundError: there is no backup in `source`.
        BackupDamagedError: the backup is not what was written; nothing was restored.
        IndexExistsError: something is in `index`.
        OSError: the disk refused a read or a write.
    """
    source, index = Path(source).resolve(), Path(index).resolve()
    manifest = _read_manifest(source)
    files: dict[str, dict[str, Any]] = manifest["files"]
    with atomic_directory(index, CATALOG_FILE) as unfinished:
        for num_done, (name, facts) in enumerate(files.items(), start=1):
            target = unfinished / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                shutil.copyfile(source / name, target)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
                raise BackupDamagedError(f"the backup lacks {name}") from None
            if not _is_intact(target, facts):
                raise BackupDamagedError(f"{name} in the backup does not match its checksum")
            target.chmod(0o640 if name == CATALOG_FILE else 0o600)
            fsync_file(target)
            on_progress(num_done, len(files))
        with Catalog.open(unfinished) as catalog:
            # A job that was damaged when it was copied stays so; `verify` reports it.
            JobQueue(catalog).move_sources(Path(manifest["index_directory"]), index)
            return _report(catalog, files)


def damages_of_backup(source: Path) -> Iterator[str]:
    """What is wrong with the files of the backup in `source`, each in a sentence. Reads all of them."""
    try:
        files = _read_manifest(source)["files"]
    except BackupDamagedError as error:
        yield str(error)
        return
    for name, facts in files.items():
        if not (source / name).is_file():
            yield f"the backup lacks {name}"
        elif not _is_intact(source / name, facts):
            yield f"{name} in the backup does not match its checksum"


def _copy_one_moment(catalog: Catalog, unfinished: Path) -> None:
    """Copy the catalog, and the files that it names.

    Files never change once they have their name. So those that are there before the catalog is copied and
    those that are there after it together hold all that it names, but for one kind: the upload of a job that
    was accepted after the first look and ended before the second. Then the whole is repeated.
    """
    index = catalog.index_directory
    for _ in range(_MAX_TRIES):
        _copy_new_files(index, unfinished)
        (unfinished / CATALOG_FILE).unlink(missing_ok=True)
        catalog.copy_to(unfinished / CATALOG_FILE)
        _copy_new_files(index, unfinished)
        if successor := catalog.superseded_by:  # The index was reindexed meanwhile.
            raise IndexSupersededError(successor.generation)
        with Catalog.open(unfinished, check=False) as copied:
            waiting = [path for path in JobQueue(copied).waiting_sources() if path.is_relative_to(index)]
        if all((unfinished / path.relative_to(index)).exists() for path in waiting):
            return


def _copy_new_files(index: Path, unfinished: Path) -> None:
    """Copy the files that are not copied yet; one that is deleted meanwhile is not needed."""
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


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def _report(catalog: Catalog, files: Mapping[str, Mapping[str, Any]]) -> BackupReport:
    size_bytes = sum(facts["size_bytes"] for facts in files.values())
    return BackupReport(*catalog.totals(), catalog.sequence, catalog.fingerprint, len(files), size_bytes)


def _is_intact(path: Path, facts: Mapping[str, Any]) -> bool:
    return bool(path.stat().st_size == facts["size_bytes"] and sha256_of_file(path) == facts["sha256"])


def _read_manifest(source: Path) -> dict[str, Any]:
    path = source / MANIFEST_FILE
    if not path.is_file():
        raise IndexNotFoundError(f"there is no backup in {source} (no file {MANIFEST_FILE})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest.get(_OWN_CHECKSUM, "") not in ("", _sha256_of(manifest)):
            raise ValueError("its checksum differs")
        is_ours = manifest["format"] == FORMAT and isinstance(manifest["index_directory"], str)
        is_ours &= all(isinstance(facts["sha256"], str) for facts in files.values())
        is_ours &= all(isinstance(facts["size_bytes"], int) for facts in files.values())
        names = [PurePosixPath(name) for name in files]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupDamagedError(f"{path} is damaged: {error}") from None
    if not is_ours or CATALOG_FILE not in files:
        raise BackupDamagedError(f"{path} is not of a backup that this version reads")
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise BackupDamagedError(f"{path} names files outside of the backup")
    return dict(manifest)


def _sha256_of(manifest: Mapping[str, Any]) -> str:
    return sha256_of_json({name: value for name, value in manifest.items() if name != _OWN_CHECKSUM})
