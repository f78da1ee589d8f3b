"""Folders that are whole or absent, and the sha256 by which files are recognised as what was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from indexer.errors import IndexExistsError
from model.atomic_files import fsync_directory, make_directories

DERIVED_FILE_MODE: Final = 0o640
"""Of files made from the catalog, as it has it itself: features reveal something of the videos too."""


@contextlib.contextmanager
def atomic_directory(directory: Path, last: str) -> Iterator[Path]:
    """A folder to fill, which becomes `directory` at the end, and is removed where something fails.

    It lies next to `directory` and takes its name. A mount point, such as a container's volume, cannot be
    replaced: there it lies inside, and at the end what it holds moves up. The caller brings the files that it
    writes to disk.

    Args:
        directory: absent, or an empty folder.
        last: of a mount point, the file that moves up after all others: a process that looks for it finds all
            or nothing.

    Raises:
        IndexExistsError: `directory` is neither absent nor an empty folder.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise _taken(directory)
    is_mount_point = os.path.ismount(directory)
    parent = directory if is_mount_point else directory.parent
    make_directories(parent)
    unfinished = parent / f".{directory.name}.{secrets.token_hex(8)}.new"
    unfinished.mkdir(mode=0o750)
    try:
        yield unfinished
        for path in unfinished.rglob("*"):
            if path.is_dir():
                fsync_directory(path)
        fsync_directory(unfinished)
        if is_mount_point:
            _move_up(unfinished, last)
        else:
            # Onto an empty folder, or nothing: fails where something came meanwhile.
            unfinished.rename(directory)
            fsync_directory(parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _move_up(unfinished: Path, last: str) -> None:
    directory = unfinished.parent
    if any(path != unfinished for path in directory.iterdir()):
        raise _taken(directory)
    for path in list(unfinished.iterdir()):
        if path.name != last:
            path.rename(directory / path.name)
    fsync_directory(directory)
    (unfinished / last).rename(directory / last)
    fsync_directory(directory)


def _taken(directory: Path) -> IndexExistsError:
    return IndexExistsError(
        f"{directory} is not empty; choose an empty folder or one that does not exist yet"
    )


def sha256_of_file(path: Path) -> str:
    """64 hex digits over the file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Mapping[str, Any]) -> str:
    """64 hex digits over JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
