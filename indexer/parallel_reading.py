"""Rows of many segments, read over several connections at once.

What the operating system does not hold of a catalog comes from the disk, page after page, each waited for. A
disk answers several readers in about the time of one.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from indexer.catalog_connections import ConnectionPool

NUM_READERS: Final = 4
MIN_ROWS: Final = 64
"""Fewer are read sooner than threads are woken."""

Rows = dict[int, Sequence[Any]]
"""Rows by the id of their segment."""

Read = Callable[[sqlite3.Connection, Sequence[int]], Rows]
"""Those of the ids that exist, as one connection sees them."""


class ParallelReading:
    """The threads that read for a catalog, begun when they are first needed. For several threads."""

    def __init__(self, connections: ConnectionPool) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    def rows(self, read: Read, segment_ids: Sequence[int]) -> Mapping[int, Sequence[Any]]:
        """What `read` gives for all of the ids. A video that is deleted meanwhile may come in part."""
        if len(segment_ids) < MIN_ROWS:
            return self._read(read, segment_ids)
        in_order = sorted(set(segment_ids))  # Neighbours share pages.
        size = -(-len(in_order) // NUM_READERS)
        first, *others = (in_order[start : start + size] for start in range(0, len(in_order), size))
        read_by_others = [self._submit(read, part) for part in others]
        found = self._read(read, first)
        for part in read_by_others:
            found.update(part.result())
        return found

    def close(self) -> None:
        """Let the threads end."""
        with self._lock:
            threads, self._threads, self._closed = self._threads, None, True
        if threads is not None:
            threads.shutdown()

    def _submit(self, read: Read, segment_ids: Sequence[int]) -> Future[Rows]:
        with self._lock:
            if self._closed:
                raise RuntimeError("this catalog is closed")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(NUM_READERS - 1, thread_name_prefix="catalog-reading")
            return self._threads.submit(self._read, read, segment_ids)

    def _read(self, read: Read, segment_ids: Sequence[int]) -> Rows:
        with self._connections.reading() as connection:
            return read(connection, segment_ids)
