"""The generations of an index in a directory, for the process that makes, switches and removes them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from indexer.store.records import IndexFacts, Successor
from indexer.store.sqlite.catalog import Catalog, read_successors
from indexer.store.sqlite.generations import (
    generations,
    locked_for_reindexing,
    name_generation,
    named_generation,
    new_generation,
    remove_generation,
)


class DirectoryGenerations:
    """Of the index in a directory. All methods raise what `Catalog.open` raises."""

    def __init__(self, index_directory: Path) -> None:
        self._directory = index_directory

    def locked(self) -> AbstractContextManager[None]:
        """Let only one process at a time make, change or remove other generations than the current one. The
        lock is released when the process dies.

        Raises:
            IndexNotFoundError: there is no index.
            IndexBusyError: another process has the lock.
        """
        return locked_for_reindexing(self._directory)

    def numbers(self) -> list[int]:
        """Of the generations that there are, ascending."""
        return generations(self._directory)

    def successors(self) -> dict[int, Successor | None]:
        """For each generation, which one takes the changes instead; None for the current one."""
        return read_successors(self._directory)

    def open_current(self) -> Catalog:
        """The current generation. Completes the last switch where a crash cut it short: current.json
        names it. To be called with the lock."""
        current = Catalog.open(self._directory)
        if named_generation(self._directory) != current.generation:
            name_generation(self._directory, current.generation)
        return current

    def open(self, number: int, *, although_superseded: bool = False) -> Catalog:
        """A generation, the current one or not, see `Catalog.open_generation`."""
        return Catalog.open_generation(self._directory, number, although_superseded=although_superseded)

    def create(self, facts: IndexFacts, *, successor_of: int) -> Catalog:
        """A new, empty generation. successor_of: the current one, which takes the changes until it hands
        over."""
        number = new_generation(self._directory)
        return Catalog.create(self._directory, facts, generation=number, successor_of=successor_of)

    def remove(self, number: int) -> None:
        """Remove a generation that is not the current one. Videos, uploads and the others stay."""
        remove_generation(self._directory, number)
