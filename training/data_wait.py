"""How long a loop waits for its data: whether decoding or the network is what holds it up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class DataWait(Generic[T]):
    """Passes an iterable on and clocks it.

        batches = DataWait(training_batches(...))
        for batch in batches: ...
        batches.share     # of the loop's time that went by in waiting, 0 to 1

    seconds: waited so far. elapsed_seconds: since the first item was asked for, as of the last one that came.
    num_items: that came. Iterating again goes on counting.
    """

    def __init__(self, source: Iterable[T]) -> None:
        self._source = source
        self.seconds = 0.0
        self.elapsed_seconds = 0.0
        self.num_items = 0

    def __iter__(self) -> Iterator[T]:
        asked = time.perf_counter()
        mark = asked  # until when `elapsed_seconds` counts
        iterator = iter(self._source)
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                came = time.perf_counter()
                self.seconds += came - asked
                self.elapsed_seconds += came - mark
                mark = came
            self.num_items += 1
            yield item
            asked = time.perf_counter()

    @property
    def share(self) -> float:
        """Waiting by elapsed time, 0 to 1; 0 before the first item."""
        return self.seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0
