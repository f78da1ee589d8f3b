"""Which of the catalogs in an index directory is the current one.

An index that was reindexed (`indexer.maintenance.reindexing`) has several generations, each a catalog with
what is derived from it. Files of videos are shared.

    INDEX/catalog.sqlite3, coarse*, features*    generation 1
    INDEX/generations/2/catalog.sqlite3, ...     generation 2, and so on
    INDEX/current.json                           names the current one; absent: 1
    INDEX/media/, INDEX/uploads/                 of all generations

Every generation but the current one has a row that names another one and refuses changes
(`indexer.store.sqlite.connections`). A switch from A to B writes A's row, takes B's away and then renames
current.json: the first of these steps is the switch, and what a crash leaves of the others is made up for
when the index is opened. In between both have a row, and that of the higher epoch counts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from indexer.atomic_files import sha256_of_json
from indexer.errors import IndexBusyError, IndexDamagedError, IndexNotFoundError
from indexer.store.records import FIRST_GENERATION, Successor
from indexer.store.sqlite.schema import CATALOG_FILE
from model.atomic_files import write_atomically

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

POINTER_FILE: Final = "current.json"
_FOLDER: Final = "generations"
_FORMAT: Final = 1


def directory_of(index_directory: Path, generation: int) -> Path:
    """Where the catalog of a generation lies, and what is derived from it."""
    if generation == FIRST_GENERATION:
        return index_directory
    return index_directory / _FOLDER / str(generation)


def generations(index_directory: Path) -> list[int]:
    """Numbers of the generations that have a catalog, ascending."""
    numbers = [int(path.name) for path in (index_directory / _FOLDER).glob("*") if path.name.isdecimal()] + [
        FIRST_GENERATION
    ]
    return sorted(n for n in numbers if (directory_of(index_directory, n) / CATALOG_FILE).is_file())


def new_generation(index_directory: Path) -> int:
    """A number that no generation has, nor a folder that is left of one."""
    names = [path.name for path in (index_directory / _FOLDER).glob("*") if path.name.isdecimal()]
    return max([FIRST_GENERATION, *map(int, names)]) + 1


def remove_generation(index_directory: Path, generation: int) -> None:
    """Delete the files of a generation. Videos, uploads and the other generations stay. Raises OSError."""
    directory = directory_of(index_directory, generation)
    (directory / CATALOG_FILE).unlink()  # First: without it the rest is no generation.
    if generation != FIRST_GENERATION:
        shutil.rmtree(directory)
        return
    for pattern in (f"{CATALOG_FILE}-*", "coarse*", "features*"):
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_for_reindexing(index_directory: Path) -> Iterator[None]:
    """Let only one process at a time make, change or remove other generations than the current one.

    The lock is released when the process dies.

    Raises:
        IndexNotFoundError: there is no index.
        IndexBusyError: another process has the lock.
    """
    if not index_exists(index_directory):
        raise IndexNotFoundError(f"there is no index in {index_directory} (no file {CATALOG_FILE})")
    folder = index_directory / _FOLDER
    folder.mkdir(mode=0o750, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexBusyError(f"another process is reindexing {index_directory}") from None
        except OSError as error:  # A file system without locks.
            logger.warning("cannot lock %s: %s", folder, error)
        yield
    finally:
        os.close(descriptor)


def find_named_generation(index_directory: Path, rows: Mapping[int, Successor | None]) -> int:
    """Which generation current.json should name, from what the catalogs say of each other.

    Args:
        index_directory: named in the error.
        rows: for each generation, the row that names another one.

    Raises:
        IndexDamagedError: the rows do not determine one.
    """
    switches = [row for row in rows.values() if row is not None and row.epoch > 0]
    if switches:
        last = max(switches, key=lambda row: row.epoch)
        if last.generation in rows:
            return last.generation
    without = [number for number, row in rows.items() if row is None]
    if len(without) != 1:
        raise IndexDamagedError(
            f"the catalogs in {index_directory} do not determine which is the current one"
        )
    return without[0]


def index_exists(index_directory: Path) -> bool:
    """Whether there is an index, without opening it."""
    return (index_directory / POINTER_FILE).exists() or bool(generations(index_directory))


def named_generation(index_directory: Path) -> int:
    """The generation that current.json names; it is the current one but for a switch that was cut short.

    Raises IndexNotFoundError where there is no index, IndexDamagedError where the file is not what was
    written, or is gone though it is needed.
    """
    path = index_directory / POINTER_FILE
    try:
        content = json.loads(path.read_bytes())
        generation = content.pop("generation")
        if content != {"format": _FORMAT, "sha256": sha256_of_json({"generation": generation})}:
            raise ValueError("its checksum differs")
    except (FileNotFoundError, NotADirectoryError):
        generation = FIRST_GENERATION
        others = generations(index_directory)
        if others and generation not in others:
            raise IndexDamagedError(f"{path} is gone; rebuild finds out which generation it named") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexDamagedError(
            f"{path} is damaged ({error}); rebuild finds out which generation it named"
        ) from None
    if not (directory_of(index_directory, generation) / CATALOG_FILE).is_file():
        if generation == FIRST_GENERATION:
            raise IndexNotFoundError(f"there is no index in {index_directory} (no file {CATALOG_FILE})")
        raise IndexDamagedError(f"the catalog of generation {generation} of {index_directory} is gone")
    return int(generation)


def name_generation(index_directory: Path, generation: int) -> None:
    """Replace current.json; it is on disk when this returns. Raises OSError."""
    content = {
        "format": _FORMAT,
        "generation": generation,
        "sha256": sha256_of_json({"generation": generation}),
    }
    text = json.dumps(content) + "\n"
    write_atomically(index_directory / POINTER_FILE, lambda path: path.write_text(text, encoding="utf-8"))
