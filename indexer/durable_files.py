"""Files and folders that are whole or absent after a power failure."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from indexer.errors import IndexExistsError


def publish_file(unfinished: Path, path: Path) -> None:
    """Give a written file its name, replacing what had it: fsync, rename, fsync of the folder."""
    synchronize_file(unfinished)
    unfinished.replace(path)
    synchronize_directory(path.parent)


@contextlib.contextmanager
def appearing_whole(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` that takes its name at the end, and is removed where something fails.

    Its files are brought to disk by whoever writes them. Raises IndexExistsError where `directory` is neither
    absent nor an empty folder.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise IndexExistsError(f"{directory} is not empty; name a folder that is empty or not there yet")
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f".{directory.name}.{secrets.token_hex(8)}.new")
    unfinished.mkdir(mode=0o750)
    try:
        yield unfinished
        for path in unfinished.rglob("*"):
            if path.is_dir():
                synchronize_directory(path)
        synchronize_directory(unfinished)
        # Onto an empty folder, or nothing: fails where something came meanwhile.
        unfinished.rename(directory)
        synchronize_directory(directory.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def synchronize_file(path: Path) -> None:
    """Bring what was written to `path` to disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def synchronize_directory(directory: Path) -> None:
    """Make names given in `directory` last (fsync of a folder, on systems that know it)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
