"""What the generations of an index say that are not the current one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from indexer.catalog import Catalog
from indexer.errors import IndexNotFoundError
from indexer.generations import generations


def last_epoch(index: Path) -> int:
    """The highest epoch in any generation of an index; 0 before the first switch."""
    epochs = [0]
    for number in generations(index):
        with Catalog.open_generation(index, number) as catalog:
            succession = catalog.succession
        epochs.append(0 if succession is None else succession.epoch)
    return max(epochs)


def former_generation(index: Path, current: Catalog) -> int | None:
    """The generation that was the current one before `current`, or None."""
    found: list[tuple[int, int]] = []
    for number in generations(index):
        if number == current.generation:
            continue
        with Catalog.open_generation(index, number) as catalog:
            succession = catalog.succession
        if succession is not None and succession.epoch > 0:
            found.append((succession.epoch, number))
    return max(found)[1] if found else None


def find_in_others(catalog: Catalog, video_ids: Sequence[str]) -> set[str]:
    """Those of `video_ids` that another generation of the index has than `catalog`.

    Raises IndexDamagedError and what else opening a catalog raises: whose the videos are is not known then.
    """
    found: set[str] = set()
    index = catalog.index_directory
    for number in generations(index) if video_ids else ():
        if number == catalog.generation:
            continue
        try:
            with Catalog.open_generation(index, number) as other:
                found |= other.get_videos(video_ids).keys()
        except IndexNotFoundError:  # It was discarded just now.
            continue
    return found
