"""What an index that is searched needs now and then, done in a thread beside the searches.

The background scores are made anew, the coarse index is compacted and saved, each when it is time for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from indexer.coarse.building import leave_room_for_searches
from indexer.coarse.index import CoarseIndex
from indexer.search.background import BackgroundScores

logger = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 600.0
"""What has failed is not tried again before: a damaged segment or a full disk stays so for a while."""

_Task = Literal["background scores", "compaction", "saving"]


class IndexUpkeep:
    """One thread at a time, started when there is something to do. Safe to use from several threads.

    No answer depends on it: what fails is logged and tried again later.
    """

    def __init__(self, index: CoarseIndex, background: BackgroundScores, directory: Path) -> None:
        """directory: of the index, for the log."""
        self._index = index
        self._background = background
        self._directory = directory
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._not_before: dict[_Task, float] = {}

    def start_where_needed(self, *, after_search: bool) -> None:
        """after_search: scores are wanted, so there should be a background for them."""
        is_needed = (
            (after_search and self._background.is_stale and self._may("background scores"))
            or (self._index.needs_compaction and self._may("compaction"))
            or (self._index.needs_saving and self._may("saving"))
        )
        if not is_needed:
            return
        with self._lock:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(
                target=self._work, args=(after_search,), name="coarse-index-upkeep"
            )
            self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def close(self) -> None:
        """Finish what is under way, and start nothing more."""
        with self._lock:
            self._closed = True
        self.wait()

    def _work(self, after_search: bool) -> None:
        leave_room_for_searches()
        if after_search:
            self._do("background scores", self._background.is_stale, self._background.make)
        self._do("compaction", self._index.needs_compaction, self._index.compact)
        self._do("saving", self._index.needs_saving, self._index.save)

    def _do(self, task: _Task, is_needed: bool, do: Callable[[], object]) -> None:
        if not (is_needed and self._may(task)):
            return
        try:
            do()
        except Exception as error:  # Above is nobody who could do anything about it.
            self._not_before[task] = time.monotonic() + PAUSE_SECONDS
            logger.warning("upkeep of the index %s, %s: %s", self._directory, task, error)

    def _may(self, task: _Task) -> bool:
        return task not in self._not_before or time.monotonic() >= self._not_before[task]
