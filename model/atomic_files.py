"""Files that are, after a power failure, either what they were or wholly what they should be."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file and replace `path` with it; an interruption leaves what was there before.

    Args:
        path: the file to replace or create, in a folder that exists.
        write: writes the file to the path that it is given, next to `path`.

    Raises:
        OSError: something could not be written; nothing is left.

    Example:
        >>> write_atomically(Path("config.json"), lambda path: path.write_text("{}"))
        >>> Path("config.json").read_text()
        '{}'
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        write(unfinished)
        replace_file(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def replace_file(unfinished: Path, path: Path) -> None:
    """Give a written file its name, replacing what had it."""
    fsync_file(unfinished)  # Before the renaming, which may reach the disk before the content does.
    unfinished.replace(path)
    fsync_directory(path.parent)


def make_directories(directory: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, where they are missing, and bring their names to disk.

    Args:
        directory: may exist.
        mode: of the folder itself.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    for path in missing:
        fsync_directory(path.parent)


def fsync_file(path: Path) -> None:
    """Bring what was written to `path` to disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(directory: Path) -> None:
    """Bring the names in `directory` to disk, on systems where a folder can be synchronized."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
