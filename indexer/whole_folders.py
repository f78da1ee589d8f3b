"""Folders that are whole or absent, whatever happens while they are filled."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from indexer.errors import IndexExistsError
from model.durable_files import make_directories, synchronize_directory


@contextlib.contextmanager
def appearing_whole(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` that takes its name at the end, and is removed where something fails.

    Its files are brought to disk by whoever writes them. Raises IndexExistsError where `directory` is neither
    absent nor an empty folder.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise IndexExistsError(f"{directory} is not empty; name a folder that is empty or not there yet")
    make_directories(directory.parent)
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
