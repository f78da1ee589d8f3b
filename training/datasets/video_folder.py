"""Finds the videos of a data set in a folder: one walk, then look-ups by name.

An id from an annotation is only ever compared with names that the walk saw. It is never made part of a path,
so none can lead out of the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from indexer.ingest.library import VIDEO_EXTENSIONS
from training.errors import DatasetError

_PREFERRED_ENDINGS: Final = (".mp4", ".webm", ".avi", ".mkv", ".mov")
"""Where one name has several files. The official MSR-VTT loader takes .mp4 before .webm."""


class VideoFolder:
    """The files of a folder and its sub-folders, links to folders followed, hidden ones left out.

    Raises:
        DatasetError: The folder, or one in it, cannot be listed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.several: dict[str, tuple[Path, ...]] = {}
        """Names that were asked for and have several files, the one that is taken first."""
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in _walk(folder):
            self._by_name.setdefault(path.name, []).append(path)
            if path.suffix.lower() in VIDEO_EXTENSIONS:
                self._by_stem.setdefault(path.stem, []).append(path)

    def find(self, names: Iterable[str]) -> Path | None:
        """The file of the first name that has one: named exactly so, or so with a video's ending."""
        for name in names:
            found = self._by_name.get(name) or self._by_stem.get(name)
            if found:
                if len(found) > 1:
                    found = sorted(found, key=_preference)
                    self.several[name] = tuple(found)
                return found[0]
        return None


def problem_with(path: Path) -> str | None:
    """Why a file cannot be a video, as far as that is seen without opening it; None for no reason."""
    try:
        if not path.is_file():
            return "a link to nothing" if path.is_symlink() else "no file"
        return None if path.stat().st_size else "an empty file"
    except OSError as error:
        return error.strerror or "not accessible"
    except ValueError:  # A path with a zero byte.
        return "no file"


def _preference(path: Path) -> tuple[int, str]:
    ending = path.suffix.lower()
    known = ending in _PREFERRED_ENDINGS
    return (_PREFERRED_ENDINGS.index(ending) if known else len(_PREFERRED_ENDINGS), str(path))


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, each folder once, whatever links lead to it."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                found = sorted(
                    (entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name
                )
        except OSError as error:
            raise DatasetError(f"the folder {current} cannot be listed: {error.strerror}") from None
        for entry in found:
            if entry.is_dir():
                waiting.append(Path(entry.path))
            else:
                yield Path(entry.path)
