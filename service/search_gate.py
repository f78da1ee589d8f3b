"""How many searches run at once, and how many may wait: beyond that, a no at once beats a late yes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from service.errors import OverloadedError

Answer = TypeVar("Answer")


class SearchGate:
    """Runs blocking searches in threads: `num_threads` at once, `max_waiting` behind them.

    Must be made inside a running event loop.
    """

    def __init__(self, num_threads: int, max_waiting: int) -> None:
        self._limiter = CapacityLimiter(num_threads)
        self._max_inside = num_threads + max_waiting
        self.num_inside = 0

    async def run(self, search: Callable[[], Answer]) -> Answer:
        """The answer of `search`, called in a thread. Raises OverloadedError where too many wait already."""
        if self.num_inside >= self._max_inside:
            raise OverloadedError()
        self.num_inside += 1
        try:
            return await to_thread.run_sync(search, limiter=self._limiter)
        finally:
            self.num_inside -= 1
