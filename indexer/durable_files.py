"""Files that are whole or absent after a power failure."""

from __future__ import annotations

import os
from pathlib import Path


def publish_file(unfinished: Path, path: Path) -> None:
    """Give a written file its name, replacing what had it: fsync, rename, fsync of the folder."""
    synchronize_file(unfinished)
    unfinished.replace(path)
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
