"""How many searches run at once, and how many may wait: beyond that, a no at once beats a late yes.

Those that wait are served by turns, one of each client, so that whoever asks a lot waits behind himself. When
the queue is full, a client with fewer in it takes a place from the one with most.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from indexer.search.cancellation import cancellable, raise_if_cancelled
from service.auth.limits import CLIENT
from service.errors import OverloadedError, TooManyRequestsError

Answer = TypeVar("Answer")


class SearchGate:
    """Runs blocking searches in threads: `num_threads` at once, `max_waiting` behind them.

    observe: called with each answer and the seconds that its search waited.
    Must be made inside a running event loop.
    """

    def __init__(
        self,
        num_threads: int,
        max_waiting: int,
        observe: Callable[[object, float], None] = lambda answer, waited_seconds: None,
    ) -> None:
        self._num_threads = num_threads
        self._max_waiting = max_waiting
        self._observe = observe
        # Room for as many searches again that were abandoned and have not noticed yet.
        self._limiter = CapacityLimiter(2 * num_threads)
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._num_abandoned = 0
        self.num_running = 0
        self.num_waiting = 0
        self.num_shed: Counter[str] = Counter()
        """How many were refused, by the kind of problem."""

    @property
    def num_inside(self) -> int:
        """Searches that run or wait."""
        return self.num_running + self.num_waiting

    @property
    def is_full(self) -> bool:
        """Whether no further search can wait, unless it takes another's place."""
        return self.num_running >= self._num_threads and self.num_waiting >= self._max_waiting

    async def run(self, search: Callable[[], Answer], *, begun: bool = False) -> Answer:
        """The answer of `search`, called in a thread.

        begun: it goes on with a request that had a turn before, and may wait though the queue is full, for
        what was done so far would be lost; another client may still take its place.
        Raises OverloadedError where too many wait already, and TooManyRequestsError where most of them are
        this client's own. Where the caller is cancelled, the search is told (`indexer.search.cancellation`)
        and its
        place is given to the next, though to no more than `num_threads` at a time.
        """
        arrived = time.monotonic()
        await self._enter(CLIENT.get(), begun)
        waited_seconds = time.monotonic() - arrived
        place = _Place()
        loop = asyncio.get_running_loop()

        def call() -> Answer:
            try:
                with cancellable(place.abandoned):
                    raise_if_cancelled()
                    return search()
            finally:
                with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits for the place.
                    loop.call_soon_threadsafe(self._end, place)

        try:
            answer = await to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)
        except asyncio.CancelledError:
            self._abandon(place)
            raise
        self._observe(answer, waited_seconds)
        return answer

    async def _enter(self, client: str, begun: bool) -> None:
        if self.num_running < self._num_threads:
            self.num_running += 1
            return
        if self.is_full and not begun:
            self.check_room(client)
            self._send_away_last_of_heaviest()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        self.num_waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release()  # The turn had come just now.
            elif client in self._queues and turn in self._queues[client]:
                self._queues[client].remove(turn)
                self._took_from(client)
            raise

    def check_room(self, client: str) -> None:
        """Raise what `run` would raise at once for a search of this client, and count it as refused."""
        if not self.is_full:
            return
        own = len(self._queues.get(client, ()))
        if own + 1 < len(self._queues.get(self._heaviest(), ())):
            return  # It would take a place from another client.
        is_alone = not self._queues.keys() - {client}
        problem = OverloadedError() if is_alone or not own else TooManyRequestsError()
        self.num_shed[problem.kind] += 1
        raise problem

    def _heaviest(self) -> str:
        return max(self._queues, key=lambda client: len(self._queues[client]), default="")

    def _send_away_last_of_heaviest(self) -> None:
        heaviest = self._heaviest()
        turn = self._queues[heaviest].pop()
        self._took_from(heaviest)
        self.num_shed[TooManyRequestsError.kind] += 1
        turn.set_exception(TooManyRequestsError())

    def _took_from(self, client: str) -> None:
        self.num_waiting -= 1
        if not self._queues[client]:
            del self._queues[client]

    def _release(self) -> None:
        """Give a free place to the next client's first search."""
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            self._queues.move_to_end(client)
            self._took_from(client)
            if not turn.done():
                turn.set_result(None)
                return
            # It was cancelled, and not out of the queue yet.
        self.num_running -= 1

    def _abandon(self, place: _Place) -> None:
        place.abandoned.set()
        if not place.ended and self._num_abandoned < self._num_threads:
            self._num_abandoned += 1
            place.given_away = True
            self._release()

    def _end(self, place: _Place) -> None:
        place.ended = True
        if place.given_away:
            self._num_abandoned -= 1
        else:
            self._release()


class _Place:
    """What one running search holds. ended: its thread has. given_away: to the next, before that."""

    def __init__(self) -> None:
        self.abandoned = threading.Event()
        self.ended = False
        self.given_away = False
