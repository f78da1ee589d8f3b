"""What the disk of a catalog allows: whether it can be written to, and deletions on a full disk.

SQLite writes a deletion to its log before space becomes free. So a file next to the catalog keeps some: it is
given up when a deletion finds the disk full, and made again when there is space.

A catalog on a read-only file system is read without the files that SQLite keeps next to one that is open.
SQLite then assumes that no process writes to it either (`immutable`), so it is opened again when the file
has changed, as it has where another machine or container can write what is read-only here.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

RESERVE_SIZES_BYTES: Final = (16 << 20, 4 << 20, 1 << 20)
"""The first is as large as the log becomes before it is brought into the catalog (1,000 pages of 8 KiB), and
one deletion of a film of some thousand segments. Where there is no space for it, a smaller one."""


def reserve_path(catalog: Path) -> Path:
    """Of the file that keeps space."""
    return catalog.with_name(f"{catalog.name}-reserve")


def keep_reserve(catalog: Path) -> None:
    """Make the reserve where it is not there. Where it cannot be made, a later call does it."""
    path = reserve_path(catalog)
    for size_bytes in RESERVE_SIZES_BYTES:
        try:
            if path.exists() and path.stat().st_size >= size_bytes:
                return
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
            try:
                os.posix_fallocate(descriptor, 0, size_bytes)
            finally:
                os.close(descriptor)
            return
        except OSError:
            release_reserve(catalog)


def release_reserve(catalog: Path) -> bool:
    """Give up the reserve; whether there was one."""
    with contextlib.suppress(OSError):
        reserve_path(catalog).unlink()
        return True
    return False


def is_read_only(catalog: Path) -> bool:
    """Whether the catalog lies on a file system that takes no writes."""
    try:
        return bool(os.statvfs(catalog.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def read_only_uri(catalog: Path) -> str:
    """How SQLite opens a catalog that cannot be written to here.

    Where it has a log, another process has it open, or it was not closed; without the log it would be old.
    """
    log = catalog.with_name(f"{catalog.name}-wal")
    has_log = log.exists() and log.stat().st_size > 0
    return f"{catalog.absolute().as_uri()}?{'mode=ro' if has_log else 'immutable=1'}"


def state_of(catalog: Path) -> tuple[object, ...]:
    """What is another one when the catalog has been written to."""
    found: list[object] = []
    for path in (catalog, catalog.with_name(f"{catalog.name}-wal")):
        try:
            stat = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)
