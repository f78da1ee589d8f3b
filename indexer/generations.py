"""Which of the catalogs in an index directory is the current one.

An index whose videos were encoded anew (`indexer.reindexing`) has several generations, each a catalog with
the coarse index made from it. Files of videos are shared.

    INDEX/catalog.sqlite3, coarse*            generation 1
    INDEX/generations/2/catalog.sqlite3, ...  generation 2, and so on
    INDEX/current.json                        names the current one; absent: 1
    INDEX/media/, INDEX/uploads/              of all generations

Every generation but the current one has a row that names another one and refuses changes
(`indexer.succession`). A switch from A to B writes A's row, takes B's away and then renames current.json: the
first of these steps is the switch, and what a crash leaves of the others is made up for when the index is
opened. In between both have a row, and that of the higher epoch counts.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Final

from indexer.catalog_schema import CATALOG_FILE
from indexer.durable_files import publish_file
from indexer.errors import IndexDamagedError, IndexNotFoundError
from indexer.file_checksums import sha256_of_json

FIRST_GENERATION: Final = 1
POINTER_FILE: Final = "current.json"
_FOLDER: Final = "generations"
_FORMAT: Final = 1


def directory_of(index_directory: Path, generation: int) -> Path:
    """Where the catalog and the coarse index of a generation lie."""
    if generation == FIRST_GENERATION:
        return index_directory
    return index_directory / _FOLDER / str(generation)


def generations(index_directory: Path) -> list[int]:
    """Numbers of the generations that have a catalog, ascending."""
    numbers = [int(path.name) for path in (index_directory / _FOLDER).glob("*") if path.name.isdecimal()] + [
        FIRST_GENERATION
    ]
    return sorted(n for n in numbers if (directory_of(index_directory, n) / CATALOG_FILE).is_file())


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
            raise ValueError("its checksum is another one")
    except FileNotFoundError:
        generation = FIRST_GENERATION
        others = generations(index_directory)
        if others and generation not in others:
            raise IndexDamagedError(f"{path} is gone; rebuild finds out which generation it named") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexDamagedError(
            f"{path} is not what was written ({error}); rebuild finds out which generation it named"
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
    unfinished = index_directory / f"{POINTER_FILE}.{secrets.token_hex(8)}.new"
    try:
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
        publish_file(unfinished, index_directory / POINTER_FILE)
    finally:
        unfinished.unlink(missing_ok=True)
