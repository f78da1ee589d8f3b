"""What keeps an index quick to search, in the background: baseline scores, coarse index, feature file."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from indexer.coarse.index import CoarseIndex, limit_faiss_threads
from indexer.errors import IndexUnavailableError, SearchCancelledError
from indexer.features.reader import FeatureReader
from indexer.search.baseline import BaselineScores
from indexer.store.cancellation import cancellable
from indexer.store.store import SearchedStore

logger = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 600.0
"""What has failed is not retried sooner: a damaged segment or a full disk stays so for a while."""

_Task = Literal["baseline scores", "compaction", "saving", "feature file", "kept rows", "feature check"]


class IndexRefresher:
    """Makes the baseline scores again, compacts and saves the coarse index, brings the feature file and the
    rows that are kept in line, reads the feature file into memory, each when it is due.

    Runs one thread at a time, when there is something to do. Safe to use from several threads. No answer
    depends on it: what fails is logged and retried later.
    """

    def __init__(
        self,
        catalog: SearchedStore,
        index: CoarseIndex,
        features: FeatureReader,
        baseline: BaselineScores,
    ) -> None:
        """catalog: that index and features are made from."""
        self._catalog = catalog
        self._index = index
        self._features = features
        self._baseline = baseline
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._not_before: dict[_Task, float] = {}

    def start_where_needed(self, *, after_search: bool) -> None:
        """after_search: scores are wanted, so there should be a baseline for them, and features in memory."""
        is_needed = (
            (after_search and self._baseline.is_stale and self._may("baseline scores"))
            or (after_search and self._features.needs_check and self._may("feature check"))
            or (self._index.needs_compaction and self._may("compaction"))
            or (self._index.needs_saving and self._may("saving"))
            or (self._features.needs_update and self._may("feature file"))
            or (self._must_keep_rows and self._may("kept rows"))
        )
        if not is_needed:
            return
        with self._lock:
            if self._closing.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._work, args=(after_search,), name="index-refresh")
            self._thread.start()

    def wait(self) -> None:
        """Block until nothing is under way."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def close(self) -> None:
        """Finish what is under way, but for the baseline scores, which nobody will ask for; start no more."""
        with self._lock:
            self._closing.set()
        self.wait()

    def _work(self, after_search: bool) -> None:
        limit_faiss_threads()
        if after_search:
            # One search and the end, as from the command line, must not wait for what the next would use.
            with cancellable(self._closing):
                self._do("baseline scores", self._baseline.is_stale, self._baseline.make)
        self._do("compaction", self._index.needs_compaction, self._index.compact)
        self._do("saving", self._index.needs_saving, self._index.save)
        self._do("feature file", self._features.needs_update, self._features.update)
        self._do("kept rows", self._must_keep_rows, self._catalog.keep_rows)
        if after_search:
            self._do("feature check", self._features.needs_check, self._features.check)

    @property
    def _must_keep_rows(self) -> bool:
        return self._catalog.must_keep_rows(self._index.sequence)

    def _do(self, task: _Task, is_needed: bool, do: Callable[[], object]) -> None:
        if not (is_needed and self._may(task)):
            return
        try:
            do()
        except SearchCancelledError:
            return
        except IndexUnavailableError:
            return  # Its searches are over as well; the first one after that asks again.
        except MemoryError:
            raise  # Not only this failed: what runs the searcher has to know.
        except Exception as error:  # The top of a thread: there is no caller to raise to.
            self._not_before[task] = time.monotonic() + PAUSE_SECONDS
            logger.warning("refreshing the index %s, %s: %s", self._catalog.directory, task, error)

    def _may(self, task: _Task) -> bool:
        return task not in self._not_before or time.monotonic() >= self._not_before[task]
