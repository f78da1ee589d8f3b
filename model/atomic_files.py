"""Files and names that last: after a power failure each is what it was, or wholly what it should be."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, bring it to disk, then put it in the place of `path`.

    An interruption leaves what was at `path` before. Raises OSError, and leaves nothing behind.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        write(unfinished)
        publish_file(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def publish_file(unfinished: Path, path: Path) -> None:
    """Give a written file its name, replacing what had it: fsync, rename, fsync of the folder."""
    synchronize_file(unfinished)
    unfinished.replace(path)
    synchronize_directory(path.parent)


def make_directories(directory: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, where they are missing; their names last. mode: of the folder."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    for path in missing:
        synchronize_directory(path.parent)


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
