"""Converted towers on disk: made once by one of several processes, checked whenever they are read."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from platformdirs import user_cache_path

from model.atomic_files import fsync_directory, fsync_file, make_directories

VERDICT_FILE = "verdict.json"
MAX_KEPT = 8
"""Conversions in the cache; one of a large tower takes a gigabyte. The longest unused are deleted first."""

logger = logging.getLogger("xclip_search.model")


@dataclass(frozen=True)
class Verdict:
    """What became of a conversion.

    Attributes:
        problem: Why it must not be used; None where it may.
        sha256: Of each file, by its name.
    """

    problem: str | None
    sha256: dict[str, str]


def cache_folder() -> Path:
    """Where conversions are kept: in the user's folder for caches, as XDG_CACHE_HOME has it."""
    return user_cache_path("xclip-search", appauthor=False) / "towers"


@contextmanager
def conversion(key: str, make: Callable[[Path], str | None]) -> Iterator[tuple[Path, str | None]]:
    """A conversion from the cache; one that is missing or damaged is made, by one process.

    Args:
        key: Names it, and all that it depends on.
        make: Writes its files into the empty folder that it is given; returns why they must not be used, or
            None. It may raise; nothing is kept then.

    Yields:
        Its folder, which may be read while the context lasts, and what `make` returned.
    """
    with TemporaryDirectory(prefix="xclip-search-") as unkept:
        try:
            directory = _kept(cache_folder(), key, make)
        except OSError as error:  # No permission, a folder that is read only, a full disk.
            logger.warning("converted towers cannot be kept, and are converted at each start: %s", error)
            directory = Path(unkept)
            _write_verdict(directory, make(directory))
        yield directory, _read_verdict(directory).problem


def _kept(folder: Path, key: str, make: Callable[[Path], str | None]) -> Path:
    directory = folder / key
    if _is_whole(directory):
        directory.touch()  # Used just now, see `_delete_unused`.
        return directory
    make_directories(folder)
    # One lock for all: a second process that starts meanwhile waits, and finds what the first one made.
    with FileLock(folder / "lock"):
        if not _is_whole(directory):
            for stale in (
                directory,
                *folder.glob("unfinished-*"),
            ):  # Damaged, or left by a process that was killed.
                shutil.rmtree(stale, ignore_errors=True)
            with TemporaryDirectory(prefix="unfinished-", dir=folder) as above:
                unfinished = Path(above) / key
                unfinished.mkdir()
                _write_verdict(unfinished, make(unfinished))
                for path in unfinished.iterdir():
                    fsync_file(path)
                fsync_directory(unfinished)
                unfinished.replace(directory)
            fsync_directory(folder)
            _delete_unused(folder)
    return directory


def _write_verdict(directory: Path, problem: str | None) -> None:
    verdict = Verdict(problem, {path.name: _sha256(path) for path in directory.iterdir()})
    (directory / VERDICT_FILE).write_text(json.dumps(asdict(verdict)), encoding="utf-8")


def _read_verdict(directory: Path) -> Verdict:
    return Verdict(**json.loads((directory / VERDICT_FILE).read_text(encoding="utf-8")))


def _is_whole(directory: Path) -> bool:
    """Whether a conversion is there, every byte as it was written."""
    try:
        return all(
            _sha256(directory / name) == digest for name, digest in _read_verdict(directory).sha256.items()
        )
    except (
        FileNotFoundError,
        TypeError,
        ValueError,
    ):  # The last two: what should be the verdict is no such thing.
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _delete_unused(folder: Path) -> None:
    found = [path for path in folder.iterdir() if (path / VERDICT_FILE).is_file()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[MAX_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
